"""Turns: any thread may call an engine; one at a time has its ranks, in the order in which they asked."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from gyrfalcon.engine.rank_messages import Stop, encode
from gyrfalcon.errors import EngineClosed, GyrfalconError, RankDied, UsageError
from gyrfalcon.parallel.children import DEATH_SECONDS
from gyrfalcon.parallel.interrupts import held_interrupts
from gyrfalcon.parallel.ranks import Ranks


class FairLock:
    """A lock with a queue of threads, the first of which holds it.

    Every change of the queue is one atomic operation and waits for nothing, so that a finalizer, which
    may run between any two of them, can use it, too.
    """

    def __init__(self) -> None:
        self._queue: deque[threading.Lock] = deque()  # each thread's gate, locked while it waits
        self.holder: int | None = None  # the thread that holds it

    @property
    def busy(self) -> bool:
        """Whether a thread holds it or is about to."""
        return bool(self._queue)

    def acquire(self, seconds: float = -1) -> bool:
        """Waits in the queue, for ever or for this long; returns whether this thread holds it now."""
        gate, thread = threading.Lock(), threading.get_ident()
        gate.acquire()
        try:
            self._queue.append(gate)
            if self._queue[0] is not gate and not gate.acquire(timeout=seconds):
                self._leave(gate)
                return False
            self.holder = thread
        except BaseException:  # Ctrl-C
            self._leave(gate)
            raise
        return True

    def release(self) -> None:
        """Hands it to the thread that has waited longest."""
        self.holder = None
        self._queue.popleft()
        self._call_first()

    def _leave(self, gate: threading.Lock) -> None:
        with contextlib.suppress(ValueError):  # interrupted before it was in the queue
            self._queue.remove(gate)
        self._call_first()

    def _call_first(self) -> None:
        """Opens the gate of the first in the queue, who may be through already."""
        if self._queue:
            with contextlib.suppress(IndexError, RuntimeError):
                self._queue[0].release()


class Turns:
    """The turns of one engine's callers, until it is closed or fails."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._lock = FairLock()
        self._later: deque[Callable[[], object]] = deque()
        self._gone: tuple[type[GyrfalconError], str] | None = None  # what a call is told, and why

    @property
    def are_over(self) -> bool:
        """Whether no call gets a turn any more: the engine was closed, or it failed."""
        return self._gone is not None

    def taken(self) -> contextlib.AbstractContextManager[object]:
        """This thread's turn, in which a Ctrl-C is held: interrupted half-way, the ranks would be
        lost. Raises EngineClosed, RankDied or UsageError where there is none to have.
        """
        if self._ranks.forked:
            wanted = "a call from the process that made the engine"
            raise UsageError(wanted, "one from a fork of it", "make an engine in that process")
        if self._lock.holder == threading.get_ident():
            got = "one from within, by a signal handler or a finalizer"
            raise UsageError("a call between an engine's steps", got, "call it from elsewhere")
        return self._locked(working=True)

    @contextlib.contextmanager
    def all_ranks(self) -> Iterator[None]:
        """What the ranks do together in a turn. A failure half-way leaves them out of step: it ends
        them.
        """
        try:
            with self._ranks.watched():
                yield
        except BaseException as error:
            if isinstance(error, Exception):
                self.refuse_if_gone()  # closed by another thread, which is why it failed
            got = error.got if isinstance(error, GyrfalconError) else type(error).__name__
            self._end(RankDied, f"one that failed: {got}")
            raise

    def refuse_if_gone(self) -> None:
        """Raises the one error that every call after the engine's end gets."""
        if self._gone is not None:
            kind, got = self._gone
            raise kind("a working engine", got, "make a new one") from None

    def later(self, work: Callable[[], object]) -> None:
        """Has `work` done in a turn, now if nobody has one, else when that ends. Never waits, never
        raises: finalizers may run on any thread and in the middle of a turn.
        """
        if not self._ranks.forked:
            self._later.append(work)
            self._catch_up()

    def close(self) -> None:
        """Ends the ranks; waits until the thread whose turn it is has noticed, where other ranks were killed
        no longer than that takes, and for a single rank no longer than it moves: on an accelerator it never
        may. Others find them gone.
        """
        if self._ranks.forked:
            return
        if self._gone is None and self._ranks.led and not self._ranks.on_host:
            self._drain()
        self._end(EngineClosed, "one that was closed")
        if self._lock.holder == threading.get_ident():
            return
        while True:
            with self._locked(DEATH_SECONDS) as held:
                pass  # and leaves the ranks
            if held or self._ranks.size > 1 or self._ranks.stand_still:
                return

    def _drain(self) -> None:
        """Lets the ranks' devices finish the step that follows the last one read: a collective in it waits
        for ever for a rank that was killed. Not in the middle of a turn, where they are out of step.
        """
        if self._lock.holder == threading.get_ident():
            return
        with self._locked(DEATH_SECONDS) as held, contextlib.suppress(RuntimeError):
            if held:
                self._ranks.stop(encode(Stop()))

    def close_for_good(self) -> None:
        """The same where nobody is left who could call, or Python ends: nobody gets a turn again."""
        if not self._ranks.forked:
            self._ranks.kill()
            self._lock.acquire(DEATH_SECONDS)
            self._ranks.leave()

    @contextlib.contextmanager
    def _locked(self, seconds: float = -1, working: bool = False) -> Iterator[bool]:
        with held_interrupts(self._ranks.watch) as hold:
            held = self._lock.acquire(seconds)
            try:
                if working:
                    self.refuse_if_gone()
                yield held
            finally:
                hold.firm = True
                if held:
                    self._release()

    def _release(self) -> None:
        if self._gone is not None:
            self._ranks.leave()
        self._lock.release()
        if self._later:
            self._catch_up()

    def _end(self, kind: type[GyrfalconError], got: str) -> None:
        if self._gone is None:
            self._gone = kind, got
        self._ranks.kill()

    def _catch_up(self) -> None:
        """Does what was left for later. Whoever holds the lock comes here when its turn has ended."""
        while self._later and not self._lock.busy:
            with self._locked(seconds=0) as held, contextlib.suppress(Exception):
                while held and self._later:
                    self._later.popleft()()
