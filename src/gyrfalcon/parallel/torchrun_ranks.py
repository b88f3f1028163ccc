"""Joins the ranks that torchrun started: its processes meet once, and each engine that they make anew."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from weakref import WeakSet

import torch.distributed as dist

from gyrfalcon.device.environment import set_up_process
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.setup import setup_of
from gyrfalcon.errors import GyrfalconError, RankDied, UsageError
from gyrfalcon.native.library import RankGone
from gyrfalcon.parallel.ending import end_this_process, end_torchrun
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.group import connect as connect_group
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.heartbeats import HeartbeatClient, HeartbeatServer, connect_to_rank_0
from gyrfalcon.parallel.meeting import (
    CONNECT_SECONDS,
    MEET_SECONDS,
    Store,
    announce,
    listen,
    listening_address,
    meet,
    open_store,
    own_address,
)
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.ranks import RankInfo, Ranks, working
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.watchdog import RANK_TIMEOUT, Watchdog

HERE = "127.0.0.1"
GOOD_BYE_SECONDS = 5.0  # after the end of the store, which may come first
PROGRAM_SECONDS = 1800.0  # that a program's other ranks may take to make the next engine, too

_met: "dict[Torchrun, Meeting]" = {}  # a command meets, and so does each engine that it makes
_engines = itertools.count()  # made by this process: all ranks make them in the same order


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks have met. `led`: rank 0 runs a command, and the others follow it; else each runs the
    same program.
    """

    torchrun: Torchrun
    store: Store
    heartbeats: HeartbeatServer | HeartbeatClient
    led: bool
    groups: WeakSet[Group] = field(default_factory=WeakSet)

    def close(self) -> None:
        """The ranks part, as at the end of a command."""
        self.heartbeats.stop()

    def abort(self) -> None:
        """Ends collectives that will never finish, where that can be done."""
        for group in list(self.groups):
            group.abort()


def meeting_of(torchrun: Torchrun, *, led: bool = False) -> Meeting:
    """That of this process's ranks, who meet when it is first asked for."""
    if torchrun not in _met:
        _met[torchrun] = _meet(torchrun, led)
    return _met[torchrun]


def _meet(torchrun: Torchrun, led: bool) -> Meeting:
    store = meet(torchrun, open_store(torchrun))
    monitor = ProgressMonitor(own_program=not led)
    if torchrun.rank:
        heartbeats: HeartbeatServer | HeartbeatClient = connect_to_rank_0(
            store, torchrun.rank, monitor, RANK_TIMEOUT, MEET_SECONDS
        )
    else:
        watchdog = Watchdog(monitor, torchrun.world_size, RANK_TIMEOUT, when_idle=led)
        heartbeats = HeartbeatServer(watchdog, monitor, torchrun.world_size)
        if torchrun.world_size > 1:
            one_machine = torchrun.ranks_here == torchrun.world_size
            heartbeats.listen(
                store, *((HERE, HERE) if one_machine else ("", own_address(torchrun)))
            )
    meeting = Meeting(torchrun, store, heartbeats, led)
    heartbeats.start(partial(_end, meeting))
    if isinstance(heartbeats, HeartbeatServer):
        heartbeats.await_all(CONNECT_SECONDS)
    return meeting


def _end(meeting: Meeting, error: GyrfalconError) -> None:
    if meeting.led and meeting.torchrun.rank:
        end_this_process(error)
    end_torchrun(meeting.heartbeats, meeting.abort)


def join_torchrun(
    world_size: int,
    torchrun: Torchrun,
    kind: type[Device],
    announcement: bytes,
    rank_timeout: float,
) -> Ranks:
    """The ranks of a new engine, as this one sees them."""
    size = torchrun.world_size
    if world_size != size:
        wanted = f"world size {size}, as torchrun started"
        raise UsageError(wanted, str(world_size), f"use `world_size={size}`")
    meeting = meeting_of(torchrun)
    if meeting.led:
        place = announce(meeting.store, announcement)
    else:
        place = dist.PrefixStore(str(next(_engines)), meeting.store)
    rank_info = connect(meeting, place, kind, rank_timeout)
    return Ranks(
        rank_info, followed=meeting.led, heartbeats=meeting.heartbeats, shares_heartbeats=True
    )


def connect(
    meeting: Meeting, store: dist.Store, kind: type[Device], rank_timeout: float
) -> RankInfo:
    """Meets the other ranks at `store`, as one rank of a new engine, under the eyes of the watchdog. Raises
    what ended one, or RankDied when one does not come in time.
    """
    heartbeat = Heartbeat(doing="meeting the other ranks")
    meeting.heartbeats.add(heartbeat, rank_timeout)
    try:
        with working(heartbeat):
            group = _connect_group(meeting, store, kind)
    except RuntimeError as error:
        meeting.heartbeats.drop(heartbeat)
        if meeting.heartbeats.error is not None:
            raise meeting.heartbeats.error from None
        wanted = f"all {meeting.torchrun.world_size} ranks to connect"
        do = "look at the other ranks' output"
        raise RankDied(wanted, str(error).splitlines()[0], do) from None
    group.heartbeat = heartbeat
    meeting.groups.add(group)
    return RankInfo(group, meeting.torchrun.local_rank, meeting.torchrun.ranks_here)


def _connect_group(meeting: Meeting, store: dist.Store, kind: type[Device]) -> Group:
    torchrun = meeting.torchrun
    seconds = MEET_SECONDS if meeting.led else PROGRAM_SECONDS
    kind.of_rank(torchrun.local_rank)  # before a library opens a context on the first device
    one_machine = torchrun.ranks_here == torchrun.world_size
    return connect_group(
        store,
        torchrun.rank,
        torchrun.world_size,
        kind=kind,
        one_machine=one_machine,
        host=HERE if one_machine else listening_address(torchrun),
        meeting=timedelta(seconds=seconds),
    )


def next_engine(meeting: Meeting, number: int) -> tuple[bytes, Store] | None:
    """What rank 0 announces as its `number`th engine, and where to meet for it; waits. None where the store
    is gone and rank 0 has said good-bye; RankDied where it has not.
    """
    try:
        return listen(meeting.store, number)
    except RuntimeError as error:
        assert isinstance(meeting.heartbeats, HeartbeatClient)
        if meeting.heartbeats.hears_good_bye(GOOD_BYE_SECONDS):
            return None
        got, do = str(error).splitlines()[0], "find out what ended torchrun and start again"
        gone = RankDied("torchrun's store to answer", got, do)
        meeting.heartbeats.tell(gone)
        raise gone from None


@contextlib.contextmanager
def following(
    meeting: Meeting, store: dist.Store, kind: type[Device], rank_timeout: float = RANK_TIMEOUT
) -> Iterator[RankInfo]:
    """The same for a block that ends where rank 0 closes the engine. What else ends it is told to rank 0."""
    set_up_process(setup_of(kind.name))
    rank_info = connect(meeting, store, kind, rank_timeout)
    try:
        with contextlib.suppress(RankGone), contextlib.closing(rank_info.group):
            yield rank_info
    except GyrfalconError as error:
        if isinstance(meeting.heartbeats, HeartbeatClient):
            meeting.heartbeats.tell(error)
        raise
    finally:
        meeting.heartbeats.drop(rank_info.group.heartbeat)
