"""Service: what every endpoint needs. The engine on its thread, the names it is served by, whether requests
are taken, and how prompts become tokens.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gyrfalcon.checkpoint.hub import HUB_ID
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import CheckpointError, GyrfalconError, PromptTooLong, RequestError
from gyrfalcon.request import Delta, SamplingParams
from gyrfalcon.serve.engine_thread import EngineThread, Sink, Submission
from gyrfalcon.serve.errors import RETRY_LATER, ApiError, as_api_error, queue_full, wrong_option
from gyrfalcon.serve.metrics import Metrics
from gyrfalcon.serve.requests import Conversation, Generation, Length

BYTES_PER_TOKEN = 4  # about as many as a token of text has, for what is not tokenised yet
LONG_BYTES, MANY_TOKENS = 2048, 16384  # of prompts that are read elsewhere than on the event loop


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server was asked for, the engine aside. max_queued_tokens: of prompts that wait for their
    first token; None: no limit.
    """

    names: tuple[str, ...]
    ignore_unknown: bool = False
    max_queued_tokens: int | None = None
    public_metrics: bool = False


class Service:
    """One model behind all endpoints. Made on the running event loop, which alone uses it."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        settings: Settings,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.metrics = Metrics()
        self.is_draining = False
        self.failure: BaseException | None = None
        self._engine: Engine | None = None
        self._on_failure = on_failure
        self._num_queued_tokens = 0
        self._ready = asyncio.Event()
        self.thread = EngineThread(make_engine, self._take_engine, self._fail, self._see)

    def start(self) -> None:
        """Begins to load the engine; requests get 503 until that is done."""
        self.thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.state == "ready"

    @property
    def state(self) -> str:
        """ready, or in one word why requests are not taken."""
        if self.failure is not None:
            return "failed"
        if self.is_draining:
            return "draining"
        if self._engine is None:
            return "loading"
        stalled = self._engine.stalled_seconds >= self._engine.config.rank_timeout
        return "stalled" if stalled else "ready"

    @property
    def engine(self) -> Engine:
        """The engine; ApiError 503 while there is none to use."""
        if not self.is_ready or self._engine is None:
            raise ApiError(
                503,
                f"wanted a server that is ready, got one that is {self.state}; ask again later",
                code=self.state,
                headers=RETRY_LATER,
            )
        return self._engine

    async def until_loaded(self) -> None:
        """Waits for the engine, or for its failure."""
        await self._ready.wait()

    def check_model(self, name: str | None) -> None:
        """ApiError 404 for a name that is not served; a request may have none where it need not."""
        names = self.settings.names
        if name is not None and name not in names:
            message = f"wanted a model that is served: {', '.join(names)}; got {name!r:.80}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def ids_of_texts(
        self, prompts: Sequence[str | tuple[int, ...]], add_special_tokens: bool
    ) -> list[Sequence[int]]:
        """The token ids of prompts, some of which are ids already."""
        engine = self.engine
        self._check_queue(sum(map(_estimate, prompts)))

        def work() -> list[Sequence[int]]:
            return [
                engine.encode(one, add_special_tokens) if isinstance(one, str) else one
                for one in prompts
            ]

        num_bytes = sum(len(one) for one in prompts if isinstance(one, str))
        with _named("prompt"):
            return await asyncio.to_thread(work) if num_bytes > LONG_BYTES else work()

    async def ids_of_chat(self, conversation: Conversation) -> Sequence[int]:
        """The token ids of a conversation, by the chat template of the checkpoint."""
        engine = self.engine
        self._check_queue(sum(_estimate(message.content) for message in conversation.messages))

        def work() -> list[int]:
            text = engine.tokenizer.chat.prompt(
                conversation.messages,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final=conversation.continue_final,
            )
            return engine.encode(text, add_special_tokens=False)

        with _named("messages"):
            return await asyncio.to_thread(work)

    def chat_stops(self) -> tuple[str, ...]:
        """What ends an answer in a chat."""
        with _named("messages"):
            return self.engine.tokenizer.chat.stops

    async def submit(
        self, prompts: Sequence[Sequence[int]], generation: Generation, sink: Sink, param: str
    ) -> Submission:
        """Hands prompts to the engine and waits until it has taken them. ApiError where it does not;
        `param` is the option that they came in.
        """
        engine, params, length = self.engine, generation.params, generation.length
        _check_ids("logit_bias", params.logit_bias, engine)
        _check_ids("stop_token_ids", params.stop_ids, engine)
        asked = [(ids, _with_length(params, length, len(ids), engine.max_len)) for ids in prompts]
        num_tokens = sum(map(len, prompts))

        def check() -> None:
            for ids, own in asked:
                engine.check(ids, replace(own, structured=None))

        with _named(param):
            await asyncio.to_thread(check) if num_tokens > MANY_TOKENS else check()
        if params.structured is not None:
            with _named(generation.constrained_by):
                await asyncio.to_thread(engine.check, *asked[0])
        self._check_queue(num_tokens)
        with _named(param):
            submission = self.thread.submit(asked, sink)
        submission.num_queued_tokens = num_tokens
        self._num_queued_tokens += num_tokens
        try:
            with _named(param):
                await submission.accepted
        except BaseException:
            self.cancel(submission)
            raise
        return submission

    def cancel(self, submission: Submission) -> None:
        """Frees what a submission holds; nothing happens when it is over."""
        self._leave_queue(submission)
        self.thread.cancel(submission)

    def _check_queue(self, num_tokens: int) -> None:
        most = self.settings.max_queued_tokens
        if (
            most is not None
            and self._num_queued_tokens
            and self._num_queued_tokens + num_tokens > most
        ):
            raise queue_full(
                f"wanted a queue of at most {most} prompt tokens, got {self._num_queued_tokens} waiting "
                f"and {num_tokens} more; ask again later"
            )

    def _leave_queue(self, submission: Submission) -> None:
        self._num_queued_tokens -= submission.num_queued_tokens
        submission.num_queued_tokens = 0

    def _see(self, submission: Submission, delta: Delta) -> None:
        self._leave_queue(submission)
        self.metrics.see(submission, delta)

    def _take_engine(self, engine: Engine) -> None:
        self._engine = engine
        self.metrics.watch(engine, self.settings.names[0])
        self._ready.set()

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._ready.set()
        self._on_failure(error)


def served_names(model: str) -> tuple[str, ...]:
    """What a model is called where nothing else was asked for: a hub id as it is, else the folder's name."""
    path = Path(model)
    if not path.is_dir() and HUB_ID.fullmatch(model):
        return (model,)
    return (path.resolve().name if path.is_dir() else model,)


def _with_length(
    params: SamplingParams, length: Length, prompt_len: int, max_len: int
) -> SamplingParams:
    """The parameters with the most tokens that may follow a prompt. Where there is no room for one the
    engine's own check says so.
    """
    room, wanted = max_len - prompt_len, length.max_tokens
    if wanted is None or not length.wanted:
        wanted = room if wanted is None else min(wanted, room)
    elif 0 < room < wanted:
        message = (
            f"wanted at most {max_len} tokens, prompt and `{length.option}` together; got {prompt_len} + "
            f"{wanted}; ask for {room} or fewer"
        )
        raise ApiError(400, message, param=length.option, code="context_length_exceeded")
    return replace(params, max_new_tokens=max(wanted, 0 if length.max_tokens == 0 else 1))


def _check_ids(param: str, token_ids: Iterable[int], engine: Engine) -> None:
    vocab_size = engine.model_config.vocab_size
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise wrong_option(param, f"token ids below {vocab_size}", str(token_id))


def _estimate(prompt: str | Sequence[int]) -> int:
    """About how many tokens a prompt has."""
    return len(prompt) // BYTES_PER_TOKEN if isinstance(prompt, str) else len(prompt)


@contextmanager
def _named(param: str) -> Iterator[None]:
    """Errors of ours as the caller is told them; those of a prompt name the option it came in."""
    try:
        yield
    except (RequestError, CheckpointError) as error:
        code = "context_length_exceeded" if isinstance(error, PromptTooLong) else "invalid_value"
        raise ApiError(400, str(error), param=param, code=code) from None
    except GyrfalconError as error:
        raise as_api_error(error) from None
