"""Answers that are sent whole: collects what the engine gives, watches whether the client is still there."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gyrfalcon.errors import NoTokenAllowed
from gyrfalcon.request import Delta, FinishReason
from gyrfalcon.serve.answer_size import LONG_ENTRIES
from gyrfalcon.serve.errors import ApiError, as_api_error, as_json
from gyrfalcon.serve.formats import Format, Json

T = TypeVar("T")
REASON = "gyrfalcon.refused"  # in the scope of a request that was answered with an error
ENDED_WELL = (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(slots=True)
class Head:
    """What all parts of an answer say of it."""

    format: Format
    model: str
    headers: Mapping[str, str]
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    num_new_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompts, for their first samples
    num_accepted_tokens: int = 0  # of the new tokens, those that were drafted
    _extras_are_out: bool = False

    def __post_init__(self) -> None:
        self.id = self.format.id_prefix + secrets.token_hex(12)

    def fields(self, kind: str) -> Json:
        """The fields before the choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self) -> Json:
        """The tokens so far."""
        num_prompt = sum(len(prompt.ids) for prompt in self.format.prompts)
        usage: Json = {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_new_tokens,
            "total_tokens": num_prompt + self.num_new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }
        if self.num_accepted_tokens:
            accepted = {"accepted_prediction_tokens": self.num_accepted_tokens}
            usage["completion_tokens_details"] = accepted
        return usage

    def num_entries(self) -> int:
        """Tokens and log-probabilities so far."""
        prompts = self.format.prompts
        of_prompts = sum(self.format.num_entries(len(prompt.ids), 0) for prompt in prompts)
        return of_prompts + self.format.num_entries(0, self.num_new_tokens)

    def extras(self) -> Json:
        """What stands beside the choices once: whole, or in the first chunk."""
        extras = {} if self._extras_are_out else self.format.extras()
        self._extras_are_out = True
        return extras

    def take(self, prompt: int, delta: Delta) -> None:
        """Counts a delta and takes the prompt's scores; ApiError where it ended in a failure."""
        if delta.finish_reason is not None and delta.finish_reason not in ENDED_WELL:
            raise failed(delta)
        self.num_new_tokens += delta.token is not None
        self.num_cached_tokens += 0 if delta.index else delta.num_cached_tokens
        self.num_accepted_tokens += delta.num_accepted_tokens
        if delta.prompt_logprobs is not None:
            self.format.prompts[prompt].scores = delta.prompt_logprobs


class WholeAnswer:
    """A sink of the engine thread, and the ASGI response that waits for it. `cancel` frees what the
    request still holds.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._num_left = len(head.format.prompts) * head.format.num_samples
        self._deltas: dict[tuple[int, int], list[Delta]] = defaultdict(list)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cancel: Callable[[], None] = lambda: None

    def take(self, prompt: int, delta: Delta) -> None:
        if self._done.done():
            return
        try:
            self._head.take(prompt, delta)
        except ApiError as error:
            self.fail(error)
            return
        self._deltas[prompt, delta.index].append(delta)
        self._num_left -= delta.finish_reason is not None
        if not self._num_left:
            self._done.set_result(None)

    def flush(self) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(as_api_error(error))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({gone, self._done}, return_when=asyncio.FIRST_COMPLETED)
            if self._done.done():
                response = await self._response()
                await response(scope, receive, send)
        finally:
            gone.cancel()
            self.cancel()

    async def _response(self) -> Response:
        error = self._done.exception()
        if error is not None:
            return error_response(as_api_error(error))
        is_long = self._head.num_entries() > LONG_ENTRIES
        body = await asyncio.to_thread(self._body) if is_long else self._body()
        return Response(body, 200, dict(self._head.headers), "application/json")

    def _body(self) -> bytes:
        """All of it; one choice at a time is in memory as anything but bytes."""
        head, form = self._head, self._head.format
        choices = b",".join(
            as_json(form.whole(prompt, index, self._deltas.pop((prompt, index))))
            for prompt in range(len(form.prompts))
            for index in range(form.num_samples)
        )
        before, after = head.fields(form.kind), {"usage": head.usage()} | head.extras()
        return b"".join((as_json(before)[:-1], b',"choices":[', choices, b"],", as_json(after)[1:]))


class NoAnswer:
    """What a client is sent that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


def json_response(
    body: object, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """A body as JSON."""
    return Response(as_json(body), status, dict(headers or {}), "application/json")


class ErrorResponse(Response):
    """An error in OpenAI's envelope; leaves its reason in the scope for who counts them."""

    def __init__(self, error: ApiError) -> None:
        body = as_json(error.envelope)
        super().__init__(body, error.status, error.headers, "application/json")
        self._reason = error.code or error.kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[REASON] = self._reason
        await super().__call__(scope, receive, send)


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's envelope."""
    return ErrorResponse(error)


def failed(delta: Delta) -> ApiError:
    """What a caller is told of a sample that the engine ended by itself."""
    if isinstance(delta.failure, NoTokenAllowed):  # what was asked for allows none
        return ApiError(400, str(delta.failure), code="no_token_allowed")
    reason = "" if delta.finish_reason is None else delta.finish_reason.value
    return ApiError(500, delta.error or f"wanted a complete text, got one that was {reason}")


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None where the client leaves before, which cancels it."""
    gone, working = asyncio.ensure_future(until_gone(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        gone.cancel()
        working.cancel()
