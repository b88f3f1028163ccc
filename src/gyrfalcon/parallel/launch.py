"""Starts the rank processes of one machine, or joins those that torchrun started."""

import contextlib
import ctypes
import functools
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
from gyrfalcon.errors import GyrfalconError, RankDied, TooManyOpenFiles
from gyrfalcon.parallel.children import (
    POLL_SECONDS,
    await_arrival,
    came_late,
    kill,
    raise_if_dead,
)
from gyrfalcon.parallel.ending import end_spawned, end_this_process
from gyrfalcon.parallel.error_message import encode_error
from gyrfalcon.parallel.group import Group, connect, solo
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.heartbeats import HeartbeatServer, connect_to_rank_0
from gyrfalcon.parallel.interrupts import Watch, held_interrupts, watched_interrupts
from gyrfalcon.parallel.meeting import MEET_SECONDS
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.ranks import RankInfo, Ranks, working
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.torchrun_ranks import HERE, join_torchrun
from gyrfalcon.parallel.watchdog import RANK_TIMEOUT, Watchdog

# The libuv store of torch 2.7.1 takes no socket that listens already; its older store does.
LIBUV_TAKES_SOCKETS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
FILES, FILES_OF_RANK = 26, 5  # that rank 0 opens: 26 with two ranks, 33 with four
DEATH_SEEN_SECONDS = 2.0  # after the end of its connection, for that of rank 0 to be seen
MEETING = "meeting the other ranks"

_hiding = threading.Lock()


Work = Callable[[RankInfo], None]


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
        return _looked_after(join_torchrun(world_size, torchrun, kind, announcement, rank_timeout))
    monitor = ProgressMonitor()
    if world_size == 1:
        group, watchdog = solo(), Watchdog(monitor, 1, rank_timeout)
        heartbeats = HeartbeatServer(watchdog, monitor, 1)
        heartbeats.add(group.heartbeat, rank_timeout)
        heartbeats.start(lambda error: None)
        return Ranks(RankInfo(group, local_rank=0, ranks_here=1), heartbeats=heartbeats)
    return _looked_after(_start_local(world_size, kind, work, rank_timeout))


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
            group, heartbeats = _meet_workers(children, store, kind, rank_timeout)
    except BaseException:
        if children is not None:
            kill(children)
        raise
    rank_info = RankInfo(group, local_rank=0, ranks_here=world_size)
    return Ranks(rank_info, children, store, watch, heartbeats=heartbeats)


def _meet_workers(
    children: ProcessContext, store: dist.Store, kind: type[Device], rank_timeout: float
) -> tuple[Group, HeartbeatServer]:
    """Rank 0's end of the group, and of the heartbeats; RankDied for a rank that ends first or does not come
    in time.
    """
    size, monitor, heartbeat = (
        len(children.processes) + 1,
        ProgressMonitor(),
        Heartbeat(doing=MEETING),
    )
    watchdog = Watchdog(
        monitor, size, rank_timeout, check=lambda: raise_if_dead(children, store, where)
    )
    where = watchdog.describe
    heartbeats = HeartbeatServer(watchdog, monitor, size)
    heartbeats.listen(store, HERE, HERE)
    heartbeats.add(heartbeat, rank_timeout)
    connected: list[Group] = []
    heartbeats.start(lambda error: end_spawned(children, connected, heartbeats))
    try:
        await_arrival(children, store, MEET_SECONDS, rank_timeout)
        with working(heartbeat):
            connected.append(_connect_here(store, 0, size, kind, heartbeat))
        return connected[0], heartbeats
    except RuntimeError as error:
        raise_if_dead(children, store)
        got = f"no connection: {str(error).splitlines()[0]}"
        raise came_late(children, got, MEET_SECONDS) from None
    finally:
        if not connected:
            heartbeats.stop()


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


def _connect_here(
    store: dist.Store, rank: int, world_size: int, kind: type[Device], heartbeat: Heartbeat
) -> Group:
    meeting = timedelta(seconds=MEET_SECONDS)
    kind.of_rank(rank)  # before a library opens a context on the first device
    group = connect(
        store, rank, world_size, kind=kind, one_machine=True, host=HERE, meeting=meeting
    )
    group.heartbeat = heartbeat
    return group


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
        heartbeat, monitor = Heartbeat(doing=MEETING), ProgressMonitor()
        monitor.add(heartbeat)
        heartbeats = connect_to_rank_0(store, rank, monitor, rank_timeout, MEET_SECONDS)
        heartbeats.start(_end_worker)
        group = _connect_here(store, rank, world_size, kind, heartbeat)
        work(RankInfo(group, rank, world_size))
    except Exception as error:
        time.sleep(POLL_SECONDS)  # rank 0 may be gone, which is why we failed: then we end here
        with contextlib.suppress(Exception):
            store.compare_set("error", "", encode_error(_tellable(error, rank)).decode())
        os._exit(1)


def _end_with_rank_0() -> None:
    """Ends this process when the one that started it is gone, whatever it is in the middle of."""
    _rank_0().join()
    os._exit(1)


def _end_worker(error: GyrfalconError) -> None:
    """Says why, unless rank 0 is gone, as whoever ended it knows."""
    rank_0 = _rank_0()
    rank_0.join(DEATH_SEEN_SECONDS)
    if rank_0.is_alive():
        end_this_process(error)
    os._exit(1)


def _rank_0() -> multiprocessing.process.BaseProcess:
    process = multiprocessing.parent_process()
    assert process is not None
    return process


def _tellable(error: Exception, rank: int) -> GyrfalconError:
    if isinstance(error, GyrfalconError):
        return error
    return RankDied(
        f"rank {rank} to go on", f"{type(error).__name__}: {error}".splitlines()[0], "start again"
    )
