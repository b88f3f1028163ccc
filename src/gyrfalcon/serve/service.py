"""Service: what every endpoint needs. The engine on its thread, the names it is served by, whether requests
are taken, and how prompts become tokens.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gyrfalcon.checkpoint.hub import HUB_ID, resolve_model
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import CheckpointError, GyrfalconError, PromptTooLong, RequestError
from gyrfalcon.request import Delta, FinishReason, SamplingParams
from gyrfalcon.serve.access import Caller
from gyrfalcon.serve.answer_size import NumEntries, check_size
from gyrfalcon.serve.bodies import Bodies
from gyrfalcon.serve.engine_thread import EngineThread, Sink, Submission
from gyrfalcon.serve.errors import (
    RETRY_LATER,
    ApiError,
    as_api_error,
    queue_full,
    without_folder,
    wrong_option,
)
from gyrfalcon.serve.metrics import Metrics
from gyrfalcon.serve.queue import MOST_REQUESTS, MOST_TOKENS, Queue, Reservation
from gyrfalcon.serve.requests import Conversation, Generation, Length

log = logging.getLogger(__name__)

COMPILE_SECONDS = 10.0  # that structured output may wait and take
LONG_BYTES, MANY_TOKENS = 2048, 16384  # of prompts that are read elsewhere than on the event loop


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server was asked for, the engine aside. max_queued_requests, max_queued_tokens: see Queue."""

    names: tuple[str, ...]
    ignore_unknown: bool = False
    max_queued_requests: int | None = MOST_REQUESTS
    max_queued_tokens: int | None = MOST_TOKENS
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
        self.metrics = Metrics(settings.names[0])
        self.bodies = Bodies()
        self.queue = Queue(settings.max_queued_requests, settings.max_queued_tokens)
        self.is_draining = False
        self.failure: BaseException | None = None
        self._engine: Engine | None = None
        self._on_failure = on_failure
        self._compilers = ThreadPoolExecutor(2, "compiler")  # one compiles, one waits for its turn
        self._ready = asyncio.Event()
        self.thread = EngineThread(
            make_engine, self._take_engine, self._fail, self._see, self._lose
        )

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
            message = (
                f"wanted a server that is ready, got one that is {self.state}; ask again later"
            )
            raise ApiError(503, message, code=self.state, headers=RETRY_LATER)
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

    def refuse_early(self) -> None:
        """ApiError 503 or 429 where no request is taken, before anything of one is read."""
        if self.engine is not None:
            self.queue.refuse_if_full()

    def enter_queue(self, prompts: Sequence[str | Sequence[int]], num_samples: int) -> Reservation:
        """Room in the queue for prompts that are not tokenised yet, by the least tokens that they can
        have. ApiError 429 where it is full.
        """
        least = self.engine.tokenizer.least_tokens
        num_tokens = sum(least(one) if isinstance(one, str) else len(one) for one in prompts)
        return self.queue.enter(len(prompts) * num_samples, num_tokens * num_samples)

    async def ids_of_texts(
        self, prompts: Sequence[str | tuple[int, ...]], add_special_tokens: bool
    ) -> list[Sequence[int]]:
        """The token ids of prompts, some of which are ids already."""
        engine = self.engine

        def work() -> list[Sequence[int]]:
            return [
                engine.encode(one, add_special_tokens) if isinstance(one, str) else one
                for one in prompts
            ]

        num_bytes = sum(len(one) for one in prompts if isinstance(one, str))
        with self._named("prompt"):
            return await asyncio.to_thread(work) if num_bytes > LONG_BYTES else work()

    async def ids_of_chat(self, conversation: Conversation) -> Sequence[int]:
        """The token ids of a conversation, by the chat template of the checkpoint."""
        engine = self.engine

        def work() -> list[int]:
            text = engine.tokenizer.chat.prompt(
                conversation.messages,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final=conversation.continue_final,
            )
            return engine.encode(text, add_special_tokens=False)

        with self._named("messages"):
            return await asyncio.to_thread(work)

    def chat_stops(self) -> tuple[str, ...]:
        """What ends an answer in a chat."""
        with self._named("messages"):
            return self.engine.tokenizer.chat.stops

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        generation: Generation,
        sink: Sink,
        param: str,
        num_entries: NumEntries,
        reservation: Reservation,
        caller: Caller,
    ) -> Submission:
        """Hands prompts to the engine and waits until it has taken them. ApiError where it does not;
        `param` is the option that they came in, `num_entries` what the answer's size follows from. Cached
        prompts are shared by callers of the same salt, and of the request's own.
        """
        engine, params = self.engine, generation.params
        _check_ids("logit_bias", params.logit_bias, engine)
        _check_ids("stop_token_ids", params.stop_ids, engine)
        asked = _with_lengths(prompts, generation, engine.max_len)
        check_size(num_entries, ((len(ids), own.n * own.max_new_tokens) for ids, own in asked))
        await self._check(prompts, generation, param)
        if params.structured is not None:
            compiled = await self._compiled(generation)
            asked = _with_lengths(prompts, replace(generation, params=compiled), engine.max_len)
        salts = [one for one in (caller.cache_salt, generation.cache_salt) if one is not None]
        salt = "\n".join(salts) or None
        reservation.resize(sum(map(len, prompts)) * params.n)
        with self._named(param):
            how = generation.priority, salt, caller.number
            submission = self.thread.submit(asked, sink, reservation, *how)
        try:
            with self._named(param):
                await submission.accepted
        except BaseException:
            self.cancel(submission)
            raise
        return submission

    async def _check(
        self, prompts: Sequence[Sequence[int]], generation: Generation, param: str
    ) -> None:
        """Raises what the engine would for any of the prompts, structured output aside."""
        engine, plain = self.engine, replace(generation.params, structured=None)
        asked = _with_lengths(prompts, replace(generation, params=plain), engine.max_len)
        own_ids = (*plain.logit_bias, *plain.stop_ids)  # looked at for every prompt

        def check() -> None:
            for ids, own in asked:
                engine.check(ids, own)

        num_checked = sum(len(ids) + len(own_ids) for ids in prompts)
        with self._named(param):
            await asyncio.to_thread(check) if num_checked > MANY_TOKENS else check()

    async def _compiled(self, generation: Generation) -> SamplingParams:
        """The parameters with structured output compiled, on threads where it keeps nobody else waiting.
        ApiError 400 for what cannot be, and 429 when too many others come first.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._compilers, self.engine.prepare, generation.params)
        try:
            with self._named(generation.constrained_by):
                async with asyncio.timeout(COMPILE_SECONDS):
                    return await work
        except TimeoutError:
            message = f"wanted structured output compiled within {COMPILE_SECONDS:g} s, got a longer queue"
            raise queue_full(f"{message}; ask again later") from None

    def cancel(self, submission: Submission) -> None:
        """Frees what a submission holds; nothing happens when it is over."""
        submission.reservation.leave()
        if self.thread.cancel(submission):
            self.metrics.lose(submission, FinishReason.ABORTED)

    def _see(self, submission: Submission, prompt: int, delta: Delta) -> None:
        sample = prompt, delta.index
        if sample not in submission.last_deltas:
            submission.reservation.add(-1, -len(submission.prompts[prompt][0]))
        self.metrics.see(submission, prompt, delta)

    @contextmanager
    def _named(self, param: str) -> Iterator[None]:
        """Errors of ours as the caller is told them; those of a prompt name the option it came in."""
        try:
            yield
        except (RequestError, CheckpointError) as error:
            if isinstance(error, CheckpointError):
                log.warning("%s", error)
            code = (
                "context_length_exceeded" if isinstance(error, PromptTooLong) else "invalid_value"
            )
            message = without_folder(str(error), self._folder)
            raise ApiError(400, message, param=param, code=code) from None
        except GyrfalconError as error:
            raise as_api_error(error) from None

    def _lose(self, submission: Submission) -> None:
        submission.reservation.leave()
        self.metrics.lose(submission, FinishReason.ERROR)

    def _take_engine(self, engine: Engine) -> None:
        self._engine, self._folder = engine, resolve_model(engine.config.model)
        self.metrics.watch(engine)
        self._ready.set()

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._ready.set()
        self._on_failure(error)


def served_names(model: str) -> tuple[str, ...]:
    """What a model is called where nothing else was asked for: a hub id as it is, else the folder's name."""
    path = Path(model)
    if not path.is_dir() and HUB_ID.fullmatch(model):
        return (model,)
    return (path.resolve().name if path.is_dir() else model,)


def _with_lengths(
    prompts: Sequence[Sequence[int]], generation: Generation, max_len: int
) -> list[tuple[Sequence[int], SamplingParams]]:
    """Each prompt with its parameters, which are checked anew for every length alone."""
    made: dict[int, SamplingParams] = {}
    asked = []
    for ids in prompts:
        num_new = _num_new_tokens(generation.length, len(ids), max_len)
        if len(ids) >= max_len:  # the engine's own check tells both lengths
            num_new = max(num_new, generation.params.min_tokens)
        if generation.params.min_tokens > num_new:
            wanted = f"at most {num_new}, as many as may be generated,"
            raise wrong_option("min_tokens", wanted, str(generation.params.min_tokens))
        if num_new not in made:
            made[num_new] = replace(generation.params, max_new_tokens=num_new)
        asked.append((ids, made[num_new]))
    return asked


def _num_new_tokens(length: Length, prompt_len: int, max_len: int) -> int:
    """The most tokens that may follow a prompt. Where there is no room for one the engine's own check
    says so.
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
    return max(wanted, 0 if length.max_tokens == 0 else 1)


def _check_ids(param: str, token_ids: Iterable[int], engine: Engine) -> None:
    vocab_size = engine.model_config.vocab_size
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise wrong_option(param, f"token ids below {vocab_size}", str(token_id))
