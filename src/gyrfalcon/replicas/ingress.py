"""Ingress: what receives requests from Ray's HTTP proxy and passes them on to replicas. Imports no torch."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gyrfalcon.errors import RankDied
from gyrfalcon.replicas.forwarding import Accepted, Forwarded, Headers, Part, Start, forwarded
from gyrfalcon.replicas.merged_metrics import merged
from gyrfalcon.serve.answers import error_response, until_gone
from gyrfalcon.serve.bodies import Bodies
from gyrfalcon.serve.errors import RETRY_LATER, ApiError, as_api_error, as_json

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0  # for a replica to take a request
TRIES = 3  # replicas that may fail a request before its answer begins
METRICS_SECONDS = 5.0
FAILURES = (RayError, RayServeException, RpcError)  # of a replica, or on the way to it
MOST_MESSAGE_BYTES = 2 << 20  # of a body; gRPC takes 4 MiB with all that is around it
METRICS = "/metrics"
EVENTS = b"text/event-stream"
REQUEST_ID = b"x-request-id"  # which Ray's proxy adds, with the same value


class Ingress:
    """What Ray Serve starts, and asks for its ASGI application."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Forwarder(self._replicas)


class Forwarder:
    """Passes requests on; of a replica that dies, those whose answer has not begun go to another one."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas
        answers = replicas.options(method_name="answer", stream=True)
        # Over gRPC: through Ray's objects a token takes 2 ms longer.
        self._answers = answers.options(_by_reference=False)
        self._large_answers = answers.options(_by_reference=True)
        self._bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            request = forwarded(scope, await self._bodies.read(Request(scope, receive)))
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        working = asyncio.ensure_future(self._answer(request, scope, receive, send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, gone):
                task.cancel()

    async def _answer(self, request: Forwarded, scope: Scope, receive: Receive, send: Send) -> None:
        is_large = len(request.body) > MOST_MESSAGE_BYTES
        answer = _Answer(self._large_answers if is_large else self._answers, request)
        try:
            start = await answer.start()
            if request.path == METRICS and start.status == 200:
                response = Response(await self._metrics(), 200, _texts(start.headers))
                await response(scope, receive, send)
            else:
                await _pass_on(start, answer.body(), send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        finally:
            answer.cancel()

    async def _metrics(self) -> bytes:
        """/metrics of all replicas that say something."""
        asked = self._replicas.broadcast("metrics")
        try:
            found = await asked.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        except TimeoutError:
            message = f"wanted all replicas' metrics within {METRICS_SECONDS:g} s, got too few"
            raise ApiError(503, f"{message}; ask again later", headers=RETRY_LATER) from None
        return merged([one for one in found if isinstance(one, tuple)])


class _Answer:
    """The answer of the first replica that gives one."""

    def __init__(self, answers: DeploymentHandle, request: Forwarded) -> None:
        self._answers, self._request = answers, request
        self._parts: AsyncIterator[Part] | None = None
        self._cancel = _nothing

    async def start(self) -> Start:
        """How it begins; ApiError 503 where no replica gives one."""
        for number in range(TRIES):
            try:
                start = await self._try()
            except FAILURES as error:
                log.warning("a replica failed before it answered: %s", error)
                continue
            if start.status != 503 or number + 1 == TRIES:
                return start
        raise as_api_error(_failed())

    async def body(self) -> AsyncIterator[bytes]:
        """The rest of it; FAILURES where the replica does not live to its end."""
        assert self._parts is not None
        async for part in self._parts:
            assert isinstance(part, bytes)
            yield part

    def cancel(self) -> None:
        """Tells the replica that nobody waits any more; nothing happens when it is over."""
        self._cancel()

    async def _try(self) -> Start:
        """Asks one replica, and remembers it for the next try."""
        self.cancel()
        parts = self._answers.remote(self._request)
        self._parts, self._cancel = parts, parts.cancel
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                accepted = await anext(parts)
        except TimeoutError:
            message = f"wanted a replica that takes the request within {WAIT_SECONDS:g} s, got none"
            raise ApiError(
                503, f"{message}; ask again later", code="loading", headers=RETRY_LATER
            ) from None
        assert isinstance(accepted, Accepted)
        avoided = (*self._request.avoided, accepted.replica)
        self._request = replace(self._request, avoided=avoided)
        start = await anext(parts)
        assert isinstance(start, Start)
        return start


async def _pass_on(start: Start, body: AsyncIterator[bytes], send: Send) -> None:
    """Sends an answer. A stream whose replica dies ends with an error, as one of a server does."""
    headers = [one for one in start.headers if one[0] != REQUEST_ID]
    await send({"type": "http.response.start", "status": start.status, "headers": headers})
    try:
        async for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except FAILURES as error:
        if EVENTS not in dict(start.headers).get(b"content-type", b""):
            raise
        log.warning("a stream ends with its replica: %s", error)
        event = b"data: " + as_json(as_api_error(_failed()).envelope) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _failed() -> RankDied:
    return RankDied("an answer", "a replica that ended", "ask again")


def _texts(headers: Headers) -> dict[str, str]:
    """Headers but for the length of the body, which becomes another one."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name not in (b"content-length", REQUEST_ID)
    }


def _nothing() -> None:
    pass
