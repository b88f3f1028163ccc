"""The engine on a thread of its own. Requests and cancellations come in through an inbox and are carried out
between steps; what a step gave goes to the event loop in one call, for all requests. While there is nothing
to do the thread sleeps.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import EngineClosed, GyrfalconError, QueueFull, RequestError
from gyrfalcon.request import Delta, SamplingParams
from gyrfalcon.serve.queue import Reservation

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # between two looks whether the ranks are well
# Where a link between hosts is down the process ends a second after the watchdog has found so
# (parallel/ending.py): clients have to be told by then.
LOOK_SECONDS = 0.25
NOTICE_SECONDS = 0.4  # that a step may take to notice a rank's death by itself
CLOSE_SECONDS = 5.0  # that it may take to end when its ranks have ended
ADDED_AT_ONCE = 32  # prompts, between two steps


class Sink(Protocol):
    """Where the outputs of a submission go, on the event loop."""

    def take(self, prompt: int, delta: Delta) -> None:
        """What a step gave for a sample of the prompt with this place in the submission."""

    def flush(self) -> None:
        """All of this step has been taken."""

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""


@dataclass(eq=False, slots=True)
class Submission:
    """The prompts of one HTTP request, as token ids, with parameters for each."""

    prompts: Sequence[tuple[Sequence[int], SamplingParams]]
    sink: Sink
    accepted: asyncio.Future[None]  # by the engine, its first prompts; fails with why it did not
    reservation: Reservation  # of room in the queue
    priority: int = 0  # the lowest runs first
    cache_salt: str | None = None
    number: str = ""  # of the HTTP request in the log
    submitted: float = field(default_factory=time.monotonic)
    last_deltas: dict[tuple[int, int], float] = field(default_factory=dict)  # when, by sample
    num_unfinished: int = field(init=False)  # samples
    # The engine thread's own, as is what follows.
    engine_ids: list[int] = field(default_factory=list)
    is_aborted: bool = False

    def __post_init__(self) -> None:
        self.num_unfinished = sum(params.n for _, params in self.prompts)


@dataclass(slots=True)
class _Route:
    """Where the outputs of one engine request go."""

    submission: Submission
    place: int  # of its prompt in the submission
    num_unfinished: int


Routed = tuple[Submission, int, Delta]
Watch = Callable[[Submission, int, Delta], None]


class EngineThread:
    """All methods are the event loop's; `make_engine` and the engine run on the thread alone."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        on_ready: Callable[[Engine], None],
        on_failure: Callable[[BaseException], None],
        watch: Watch,
        on_loss: Callable[[Submission], None],
    ) -> None:
        """All are called on the loop, which is the running one, but make_engine: `watch` with every delta
        before its sink, `on_loss` with a submission that had to be given up.
        """
        self._make_engine, self._on_ready, self._on_failure = make_engine, on_ready, on_failure
        self._watch, self._on_loss = watch, on_loss
        self._loop = asyncio.get_running_loop()
        self._live: set[Submission] = set()
        self._failure: BaseException | None = None
        self._inbox: list[Callable[[Engine], None]] = []
        self._arrived: list[Submission] = []  # that the engine has not taken in all of
        self._stopping = False
        self.num_steps = self.num_tokens = 0  # steps that gave tokens, and these
        self._called = threading.Condition()
        self._engine: Engine | None = None
        self._routes: dict[int, _Route] = {}  # by the engine's numbers
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to load the engine."""
        self._thread.start()
        self._looking = self._loop.create_task(self._look_at_ranks())

    @property
    def num_live(self) -> int:
        """Submissions that are not answered yet."""
        return len(self._live)

    def submit(
        self,
        prompts: Sequence[tuple[Sequence[int], SamplingParams]],
        sink: Sink,
        reservation: Reservation,
        priority: int = 0,
        cache_salt: str | None = None,
        number: str = "",
    ) -> Submission:
        """Hands prompts to the engine before its next step. The outcome is in `accepted`, then in the
        sink. Raises what ended the engine.
        """
        if self._failure is not None:
            raise self._failure
        accepted = self._loop.create_future()
        submission = Submission(prompts, sink, accepted, reservation, priority, cache_salt, number)
        self._live.add(submission)
        with self._called:
            self._arrived.append(submission)
            self._called.notify()
        return submission

    def cancel(self, submission: Submission) -> bool:
        """Frees what a submission holds before the next step; its sink hears no more. False where it is
        over.
        """
        if submission not in self._live:
            return False
        self._live.discard(submission)
        self._call(lambda engine: self._abort(engine, submission))
        return True

    def prompt_progress(self, number: str) -> list[tuple[int, int]]:
        """Of each prompt of an HTTP request that is being prefilled, by the request's number: its tokens
        in the cache, and all of them.
        """
        found = self._engine.prompt_progress() if self._engine is not None else ()
        return [(done, total) for one, done, total in found if self._number_of(one) == number]

    def _number_of(self, engine_id: int) -> str | None:
        route = self._routes.get(engine_id)  # in one go: the engine's thread may change them
        return None if route is None else route.submission.number

    def between_steps(self, work: Callable[[Engine], None]) -> None:
        """Has the engine's thread do something before its next step."""
        self._call(work)

    async def stop(self) -> bool:
        """Answers every submission and ends the engine. False where a step or the loading of the model goes
        on regardless, as a step that waits for an accelerator may for ever: nothing but the process's end
        ends that.
        """
        with self._called:
            self._stopping = True
            self._called.notify()
        if self._looking is not None:
            self._looking.cancel()
        self._fail(EngineClosed("an answer", "a server that was shut down", "ask again later"))
        ending = threading.Thread(target=self._end, name="end", daemon=True)
        ending.start()
        deadline = self._loop.time() + CLOSE_SECONDS
        while ending.is_alive() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        return not ending.is_alive()

    @property
    def computes_here(self) -> bool:
        """Whether what goes on is a step on the host or loading, which comes to an end by itself."""
        return self._engine is None or self._engine.hardware.on_host

    def _end(self) -> None:
        if self._engine is not None:
            self._engine.close()  # a step that runs ends now
        self._thread.join()

    async def _look_at_ranks(self) -> None:
        """Tells everybody of a rank that has died or stands still where the engine's thread does not
        notice, because it waits for an accelerator that waits for that rank.
        """
        while self._failure is None:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._engine is not None:
                    self._engine.check_ranks()
            except GyrfalconError as error:
                await asyncio.sleep(NOTICE_SECONDS)  # and tell more
                if self._failure is None:
                    log.error("the engine waits for a rank: %s", error)
                    self._on_failure(error)
                    self._fail(error)
            except RuntimeError as error:  # of the store where ranks say what ended them
                log.debug("a look at the ranks failed: %s", error)

    def _call(self, work: Callable[[Engine], None]) -> None:
        with self._called:
            self._inbox.append(work)
            self._called.notify()

    # What follows is the engine's thread.

    def _run(self) -> None:
        try:
            self._engine = engine = self._make_engine()
            self._tell(self._on_ready, engine)
            while self._carry_out(engine):
                if engine.has_work:
                    self._hand_over(engine.step())
        except BaseException as error:
            if not self._stopping:
                self._log_end(error)
                self._tell(self._on_failure, error)  # red before anybody is answered
                self._tell(self._fail, error)
        finally:
            if self._engine is not None:
                self._engine.close()  # which may take long on an accelerator

    def _log_end(self, error: BaseException) -> None:
        """A trace for a fault of ours alone. Why a model cannot be loaded is left to whoever started this."""
        if not isinstance(error, GyrfalconError):
            log.error("the engine ended", exc_info=error)
        elif self._engine is not None:
            log.error("the engine ended: %s", error)

    def _carry_out(self, engine: Engine) -> bool:
        """Does what is in the inbox; sleeps while there is nothing to do, but for a look at the ranks. False
        when it is over.
        """
        with self._called:
            while not (self._inbox or self._arrived or self._stopping or engine.has_work):
                self._called.wait(IDLE_SECONDS)
                engine.check_ranks()
            work, self._inbox = self._inbox, []
        for one in work:
            one(engine)
        self._add_some(engine)
        return not self._stopping

    def _add_some(self, engine: Engine) -> None:
        """Adds a few prompts of those who have arrived, the most urgent first, of each in turn; the rest
        after the next step, so that many delay nobody's token.
        """
        with self._called:
            arrived, self._arrived = sorted(self._arrived, key=lambda one: one.priority), []
        left, others, begun = ADDED_AT_ONCE, list[Submission](), list[Submission]()
        for submission in arrived:
            if not left:
                others.append(submission)
                continue
            num_added = self._add(engine, submission, left)
            left -= num_added
            if num_added and len(submission.engine_ids) < len(submission.prompts):
                begun.append(submission)
        with self._called:
            self._arrived = [*others, *begun, *self._arrived]

    def _add(self, engine: Engine, submission: Submission, most: int) -> int:
        """Adds `most` of its prompts at most; returns how many, 0 where it is over."""
        if submission.is_aborted:
            return 0
        begin = len(submission.engine_ids)
        stop = begin + most
        try:
            for place, (ids, params) in enumerate(submission.prompts[begin:stop], begin):
                number = engine.add(
                    ids,
                    params,
                    priority=submission.priority,
                    cache_salt=submission.cache_salt,
                )
                submission.engine_ids.append(number)
                self._routes[number] = _Route(submission, place, params.n)
        except (RequestError, QueueFull) as error:  # anything else ends the engine
            self._abort(engine, submission)
            self._tell(self._refuse, submission, error)
            return 0
        if begin == 0:
            self._tell(_accept, submission)
        return len(submission.engine_ids) - begin

    def _abort(self, engine: Engine, submission: Submission) -> None:
        submission.is_aborted = True
        for number in submission.engine_ids:
            if self._routes.pop(number, None) is not None:
                engine.abort(number)

    def _hand_over(self, deltas: Sequence[Delta]) -> None:
        routed: list[Routed] = []
        for delta in deltas:
            route = self._routes[delta.request_id]
            routed.append((route.submission, route.place, delta))
            route.num_unfinished -= delta.finish_reason is not None
            if not route.num_unfinished:
                del self._routes[delta.request_id]
        if routed:
            self._tell(self._deliver, routed)

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # the loop has ended: nobody is left to hear it
            assert self._loop.is_closed()

    # What follows is the loop again, called by the thread.

    def _deliver(self, routed: Sequence[Routed]) -> None:
        num_tokens = sum(delta.token is not None for _, _, delta in routed)
        self.num_tokens += num_tokens
        self.num_steps += num_tokens > 0
        sinks: dict[Sink, None] = {}
        for submission, place, delta in routed:
            if submission not in self._live:
                continue
            self._watch(submission, place, delta)
            submission.num_unfinished -= delta.finish_reason is not None
            try:
                submission.sink.take(place, delta)
            except Exception as error:  # ends this answer, not the others
                log.exception("an answer failed")
                submission.sink.fail(error)
                self.cancel(submission)
                self._on_loss(submission)
            if not submission.num_unfinished:
                self._live.discard(submission)
            sinks[submission.sink] = None
        for sink in sinks:
            sink.flush()

    def _refuse(self, submission: Submission, error: Exception) -> None:
        if submission not in self._live:
            return
        self._live.discard(submission)
        was_accepted = submission.accepted.done()
        _tell_failure(submission, error)
        if was_accepted:
            self._on_loss(submission)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        live, self._live = self._live, set()
        for submission in live:
            _tell_failure(submission, error)
            self._on_loss(submission)


def _accept(submission: Submission) -> None:
    if not submission.accepted.done():
        submission.accepted.set_result(None)


def _tell_failure(submission: Submission, error: BaseException) -> None:
    """Once: until it is accepted nobody listens to its sink."""
    if not submission.accepted.done():
        submission.accepted.set_exception(error)
    else:
        submission.sink.fail(error)
