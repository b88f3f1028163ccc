"""All ranks of an engine as one of them sees them: what became of the others, and their end."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import get_native_id

import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.errors import RankDied
from gyrfalcon.native.library import RankGone
from gyrfalcon.parallel.children import DEATH_SECONDS, POLL_SECONDS, join, kill, raise_if_dead
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.heartbeats import HeartbeatClient, HeartbeatServer
from gyrfalcon.parallel.interrupts import Watch


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where a rank runs: its end of the group, and its number among the ranks of this machine."""

    group: Group
    local_rank: int
    ranks_here: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Ranks:
    """All ranks of an engine as its first one sees them; under torchrun, as each sees them."""

    rank_info: RankInfo
    children: ProcessContext | None = None
    store: dist.Store | None = None
    watch: Watch | None = None  # ends the workers at Ctrl-C, see interrupts.py
    followed: bool = False  # by the other ranks of a torchrun, see cli/torchrun_rank.py
    heartbeats: HeartbeatServer | HeartbeatClient | None = None
    shares_heartbeats: bool = False  # with other engines of this process, as under torchrun
    process_id: int = field(default_factory=os.getpid)

    @property
    def size(self) -> int:
        """How many there are."""
        return self.rank_info.group.size

    @property
    def led(self) -> bool:
        """Whether this process leads the others: else there are none, or every rank runs the same
        program.
        """
        return self.children is not None or self.followed

    @property
    def run_one_program(self) -> bool:
        """Whether there are others, and each runs the same program."""
        return self.size > 1 and not self.led

    def tell(self, message: bytes) -> None:
        """Sends a message to the ranks that this process leads, if there are any."""
        if self.led:
            self.rank_info.group.broadcast(message)

    def agree(self, message: bytes) -> bytes:
        """Rank 0's message where every rank runs the same program, else this process's own."""
        return message if self.led else self.rank_info.group.broadcast(message)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raises what became of a rank for its broken connection; the ranks are to move meanwhile."""
        heartbeat, heartbeats = self.rank_info.group.heartbeat, self.heartbeats
        heartbeat.thread, heartbeat.num_working = get_native_id(), heartbeat.num_working + 1
        try:
            yield
            if heartbeats is not None and heartbeats.error is not None:
                raise heartbeats.error  # of aborted collectives nothing else may tell
        except RuntimeError as error:
            self._explain(error)
            raise
        finally:
            heartbeat.num_working -= 1

    def check(self) -> None:
        """Raises what the watchdog found, who then ends the ranks, or what became of one that has ended."""
        self._raise_found()
        if self.children is not None:
            where = (
                self.heartbeats.describe if isinstance(self.heartbeats, HeartbeatServer) else str
            )
            raise_if_dead(self.children, self.store, where)

    def _raise_found(self) -> None:
        if self.heartbeats is not None and self.heartbeats.error is not None:
            raise self.heartbeats.error from None

    def _explain(self, error: RuntimeError) -> None:
        """Raises what became of a rank, if that is what an error comes from."""
        self.check()
        if self.children is not None or (
            self.heartbeats is not None and isinstance(error, RankGone)
        ):
            deadline = time.monotonic() + DEATH_SECONDS
            while time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                self.check()
        if isinstance(error, RankGone):
            raise RankDied(
                "every rank to answer", "a closed connection", "look at the other ranks' output"
            ) from None

    @property
    def stalled_seconds(self) -> float:
        """For how long no rank has moved though there is work, as far as this one knows."""
        return 0.0 if self.heartbeats is None else self.heartbeats.stalled_seconds

    @property
    def stand_still(self) -> bool:
        """Whether none has moved for as long as they may, as far as this one knows."""
        return isinstance(self.heartbeats, HeartbeatServer) and self.heartbeats.stand_still

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a forked process, which must leave the ranks alone."""
        return os.getpid() != self.process_id

    @property
    def on_host(self) -> bool:
        """Whether they compute on the host: then nothing is under way between two calls."""
        return self.rank_info.group.heartbeat.on_host

    def stop(self, message: bytes) -> None:
        """Tells the ranks to end when they have done what is under way, and waits for those that this process
        started, a while.
        """
        if self.heartbeats is not None and not self.shares_heartbeats:
            self.heartbeats.stop()
        self.tell(message)
        if self.children is not None:
            join(self.children)

    def kill(self) -> None:
        """Ends the workers, which hold nothing worth keeping, whatever any process is waiting for."""
        if self.children is not None and not self.forked:
            if self.heartbeats is not None:
                self.heartbeats.stop()
            kill(self.children)

    def leave(self) -> None:
        """Ends the connections to the ranks, through which no other thread may be computing."""
        if self.forked:
            return
        if self.heartbeats is not None and self.shares_heartbeats:
            self.heartbeats.drop(self.rank_info.group.heartbeat)
        elif self.heartbeats is not None:
            self.heartbeats.stop()
        self.rank_info.group.close()

    def close(self) -> None:
        """Both."""
        self.kill()
        self.leave()


@contextlib.contextmanager
def working(heartbeat: Heartbeat) -> Iterator[None]:
    """This thread does something for which every rank is needed."""
    heartbeat.thread, heartbeat.num_working = get_native_id(), heartbeat.num_working + 1
    try:
        yield
    finally:
        heartbeat.counter.value += 1
        heartbeat.num_working -= 1
