"""Starts the rank processes of one machine, or joins those that torchrun started, and notices when
one dies.
"""

import contextlib
import ctypes
import functools
import itertools
import multiprocessing.process
import multiprocessing.util
import os
import resource
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import ModuleType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.device.environment import set_up_process, set_up_ranks, settings_of
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.setup import setup_of
from gyrfalcon.device.threads import threads_of
from gyrfalcon.errors import GyrfalconError, RankDied, TooManyOpenFiles, UsageError
from gyrfalcon.native.library import RankGone
from gyrfalcon.parallel.children import (
    POLL_SECONDS,
    await_arrival,
    came_late,
    join,
    kill,
    raise_if_dead,
    wait_for_death,
)
from gyrfalcon.parallel.error_message import encode_error
from gyrfalcon.parallel.group import Group, connect, solo
from gyrfalcon.parallel.interrupts import Watch, held_interrupts, watched_interrupts
from gyrfalcon.parallel.meeting import MEET_SECONDS, announce, is_led, meet
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.watchdog import Sender, Watchdog

HERE = "127.0.0.1"
FILES, FILES_OF_RANK = 24, 4  # that rank 0 opens: 23 with two ranks, 28 with four
RANK_TIMEOUT = 10.0  # seconds that a rank may stand still
# The libuv store of torch 2.7.1 takes no socket that listens already; its older store does.
LIBUV_TAKES_SOCKETS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)

_engines = (
    itertools.count()
)  # engines made by this process: torchrun's ranks make them in the same order
_hiding = threading.Lock()


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where a rank runs: its end of the group, and its number among the ranks of this machine."""

    group: Group
    local_rank: int
    ranks_here: int


Work = Callable[[RankInfo], None]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Ranks:
    """All ranks of an engine as its first one sees them; under torchrun, as each sees them."""

    rank_info: RankInfo
    children: ProcessContext | None = None
    store: dist.Store | None = None
    watch: Watch | None = None  # ends the workers at Ctrl-C, see interrupts.py
    followed: bool = False  # by the other ranks of a torchrun, see cli/torchrun_rank.py
    watchdog: Watchdog | None = None  # on rank 0
    sender: Sender | None = None  # on one of torchrun's other ranks
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
        """Turns the broken connection that a dead rank leaves behind into RankDied, or into what
        the rank said. Meanwhile the watchdog wants the ranks to move.
        """
        heartbeat, thread = self.rank_info.group.heartbeat, threading.get_native_id()
        heartbeat.thread, heartbeat.num_working = thread, heartbeat.num_working + 1
        try:
            yield
        except RuntimeError as error:
            self._explain(error)
            raise
        finally:
            heartbeat.counter.value += 1
            heartbeat.num_working -= 1

    def check(self) -> None:
        """Raises what the watchdog found, who then kills the ranks, or what became of one that has ended."""
        if self.watchdog is not None and self.watchdog.error is not None:
            raise self.watchdog.error from None
        if self.children is not None:
            raise_if_dead(self.children, self.store)

    def _explain(self, error: RuntimeError) -> None:
        """Raises what became of a rank, if that is what an error comes from."""
        self.check()
        if self.children is not None:
            wait_for_death(self.children, self.store)
        if isinstance(error, RankGone):
            raise RankDied(
                "every rank to answer", "a closed connection", "look at the other ranks' output"
            ) from None

    @property
    def stalled_seconds(self) -> float:
        """For how long no rank has moved though there is work, as far as this one knows."""
        return 0.0 if self.watchdog is None else self.watchdog.stalled_seconds

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
        if self.watchdog is not None:
            self.watchdog.stop()
        self.tell(message)
        if self.children is not None:
            join(self.children)

    def kill(self) -> None:
        """Ends the workers, which hold nothing worth keeping, whatever any process is waiting for."""
        if self.children is not None and not self.forked:
            kill(self.children)

    def leave(self) -> None:
        """Ends the connections to the ranks, through which no other thread may be computing."""
        if not self.forked:
            for looking in (self.watchdog, self.sender):
                if looking is not None:
                    looking.stop()
            self.rank_info.group.close()

    def close(self) -> None:
        """Both."""
        self.kill()
        self.leave()


def start(
    world_size: int,
    kind: type[Device],
    work: Work,
    announcement: bytes = b"",
    rank_timeout: float = RANK_TIMEOUT,
) -> Ranks:
    """Ranks of a new engine: this process is the first, `work` runs in each of the others,
    whose devices are of `kind`. One that stands still for `rank_timeout` seconds ends them all.

    Under torchrun nothing is started: its processes meet, and each is a rank that runs the same
    program, or while rank 0 runs a command, does as the `announcement` says.
    """
    set_up_process(setup_of(kind.name))
    torchrun = Torchrun.found()
    if torchrun is not None:
        return _looked_after(_join_torchrun(world_size, torchrun, kind, announcement, rank_timeout))
    if world_size == 1:
        group = solo()
        watchdog = Watchdog(group.heartbeat, None, 1, rank_timeout, end=_let_be).start()
        return Ranks(RankInfo(group, local_rank=0, ranks_here=1), watchdog=watchdog)
    return _looked_after(_start_local(world_size, kind, work, rank_timeout))


def _let_be(error: GyrfalconError) -> None:
    """The one rank of an engine is this process."""


def _join_torchrun(
    world_size: int,
    torchrun: Torchrun,
    kind: type[Device],
    announcement: bytes,
    rank_timeout: float,
) -> Ranks:
    size = torchrun.world_size
    if world_size != size:
        wanted = f"world size {size}, as torchrun started"
        raise UsageError(wanted, str(world_size), f"use `world_size={size}`")
    store = meet(torchrun)
    if is_led(store):
        place = announce(store, announcement)
        return _watched(connect_torchrun(torchrun, place, kind), place, rank_timeout, followed=True)
    place = dist.PrefixStore(str(next(_engines)), store)
    return _watched(connect_torchrun(torchrun, place, kind), place, rank_timeout, followed=False)


def _watched(
    rank_info: RankInfo, store: dist.Store, rank_timeout: float, *, followed: bool
) -> Ranks:
    """One of torchrun's ranks as it sees all."""
    group = rank_info.group
    if group.rank > 0:
        sender = Sender(
            group.heartbeat, store, group.rank, rank_timeout, own_program=not followed
        ).start()
        return Ranks(rank_info, store=store, sender=sender)
    watchdog = Watchdog(
        group.heartbeat,
        store,
        group.size,
        rank_timeout,
        end=_end_this_process,
        when_idle=followed,
    )
    return Ranks(rank_info, store=store, followed=followed, watchdog=watchdog.start())


def _end_this_process(error: GyrfalconError) -> None:
    """Whatever it waits for: torchrun then ends the others."""
    print(f"gyrfalcon: error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def connect_torchrun(torchrun: Torchrun, store: dist.Store, kind: type[Device]) -> RankInfo:
    """Meets torchrun's other ranks at `store`, as one rank of a new engine."""
    size, here = torchrun.world_size, torchrun.ranks_here
    kind.of_rank(torchrun.local_rank)  # before a library opens a context on the first device
    group = connect(store, torchrun.rank, size, kind=kind, one_machine=here == size)
    return RankInfo(group, torchrun.local_rank, here)


@contextlib.contextmanager
def joined(
    torchrun: Torchrun,
    store: dist.Store,
    kind: type[Device],
    rank_timeout: float = RANK_TIMEOUT,
) -> Iterator[RankInfo]:
    """The same for a block that ends where rank 0 closes the engine."""
    set_up_process(setup_of(kind.name))
    rank_info = connect_torchrun(torchrun, store, kind)
    group = rank_info.group
    sender = Sender(group.heartbeat, store, group.rank, rank_timeout).start()
    with contextlib.suppress(RankGone), contextlib.closing(group):
        try:
            yield rank_info
        finally:
            sender.stop()


def files_needed(world_size: int) -> int:
    """How many open files rank 0 needs, those that it has now included."""
    return FILES + FILES_OF_RANK * world_size + len(os.listdir("/proc/self/fd"))


def _check_open_files(world_size: int) -> None:
    """Connections that run out of them end the process without a word that Python could catch."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < files_needed(world_size):
        wanted = f"{files_needed(world_size)} open files for {world_size} ranks"
        raise TooManyOpenFiles(wanted, f"a limit of {limit}", "raise it, as with ulimit -n 4096")


def _start_local(world_size: int, kind: type[Device], work: Work, rank_timeout: float) -> Ranks:
    _check_open_files(world_size)
    store = _local_store()
    children: ProcessContext | None = None
    try:
        settings = settings_of(setup_of(kind.name), world_size, threads_of(world_size))
        with held_interrupts() as hold, _main_module_hidden(), set_up_ranks(settings):
            hold.firm = True  # until it is known which processes have to be ended
            children = mp.start_processes(
                _worker,
                (store.port, world_size, kind, work, rank_timeout),
                world_size - 1,
                join=False,
                daemon=True,
                start_method="spawn",
            )
        assert children is not None
        watch = Watch(partial(kill, children))
        with watched_interrupts(watch):
            group = _meet_workers(children, store, kind)
    except BaseException:
        if children is not None:
            kill(children)
        raise
    workers = children
    watchdog = Watchdog(
        group.heartbeat,
        store,
        world_size,
        rank_timeout,
        end=lambda error: kill(workers),
        check=lambda: raise_if_dead(workers, store),
    )
    rank_info = RankInfo(group, local_rank=0, ranks_here=world_size)
    return Ranks(rank_info, children, store, watch, watchdog=watchdog.start())


def _meet_workers(children: ProcessContext, store: dist.Store, kind: type[Device]) -> Group:
    """Rank 0's end of the group; RankDied for a rank that ends first or does not come in time."""
    await_arrival(children, store, MEET_SECONDS)
    try:
        return _connect_here(store, 0, len(children.processes) + 1, kind)
    except RuntimeError as error:
        raise_if_dead(children, store)
        got = f"no connection: {str(error).splitlines()[0]}"
        raise came_late(children, got, MEET_SECONDS) from None


def _local_store() -> dist.TCPStore:
    """A store that other machines cannot reach: TCPStore on its own listens on every address."""
    with socket.create_server((HERE, 0)) as server:  # port 0: a free one
        return dist.TCPStore(
            HERE,
            server.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=server.detach(),  # the store closes it
            use_libuv=LIBUV_TAKES_SOCKETS,
        )


def _looked_after(ranks: Ranks) -> Ranks:
    """With care taken of forks of this process, and of its end."""
    _look_after_all().add(ranks)
    return ranks


@functools.cache
def _look_after_all() -> weakref.WeakSet[Ranks]:
    """multiprocessing asks each daemon that it knows to end when a process ends, and waits for it: in
    vain for one that is stopped, and even when it is a forked process that ends. In such a one a
    group's end would wait for threads that are not there.
    """
    alive: weakref.WeakSet[Ranks] = weakref.WeakSet()

    def kill() -> None:
        for ranks in alive:
            ranks.kill()

    def disown() -> None:
        for ranks in alive:
            for process in ranks.children.processes if ranks.children is not None else ():
                multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # private
            for ending in (ranks.store, ranks.rank_info.group.backend):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(ending))  # never to end

    multiprocessing.util.Finalize(None, kill, exitpriority=0)
    os.register_at_fork(after_in_child=disown)
    return alive


def _connect_here(store: dist.Store, rank: int, world_size: int, kind: type[Device]) -> Group:
    meeting = timedelta(seconds=MEET_SECONDS)
    kind.of_rank(rank)  # before a library opens a context on the first device
    return connect(store, rank, world_size, kind=kind, one_machine=True, host=HERE, meeting=meeting)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Spawned processes import the caller's main script; ours need nothing from it, and a script
    without the `if __name__ == "__main__"` guard would start engines for ever. One thread at a time."""
    with _hiding:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _worker(
    index: int,
    port: int,
    world_size: int,
    kind: type[Device],
    work: Work,
    rank_timeout: float,
) -> None:
    """The life of a started rank. What went wrong is left in the store for rank 0 to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; rank 0 answers it
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    rank = index + 1
    store = dist.TCPStore(HERE, port, is_master=False)
    try:
        store.set(f"here/{rank}", "")
        group = _connect_here(store, rank, world_size, kind)
        Sender(group.heartbeat, store, rank, rank_timeout).start()
        work(RankInfo(group, rank, world_size))
    except Exception as error:
        time.sleep(POLL_SECONDS)  # rank 0 may be gone, which is why we failed: then we end here
        with contextlib.suppress(Exception):
            store.compare_set("error", "", encode_error(_tellable(error, rank)).decode())
        os._exit(1)


def _end_with_rank_0() -> None:
    """Ends this process when the one that started it is gone, whatever it is in the middle of."""
    rank_0 = multiprocessing.parent_process()
    assert rank_0 is not None
    rank_0.join()
    os._exit(1)


def _tellable(error: Exception, rank: int) -> GyrfalconError:
    if isinstance(error, GyrfalconError):
        return error
    return RankDied(
        f"rank {rank} to go on", f"{type(error).__name__}: {error}".splitlines()[0], "start again"
    )
