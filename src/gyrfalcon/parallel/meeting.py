"""The store at which torchrun's ranks meet, and what rank 0 announces there while it runs a command."""

import contextlib
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store as Store  # for those who pass one on

from gyrfalcon.errors import UsageError
from gyrfalcon.parallel.backend import TIMEOUT
from gyrfalcon.parallel.torchrun import DO, Torchrun

CONNECT_SECONDS = 30.0  # torchrun's store is there before its processes are
MEET_SECONDS = 300.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.05
LEAVE_SECONDS = 10.0
LED = "command/led"  # is there while rank 0 runs a command that the others follow
COUNT = "command/announcements"


def meet(
    torchrun: Torchrun, connect: float = CONNECT_SECONDS, meeting: float = MEET_SECONDS
) -> Store:
    """Where the ranks of this attempt meet, once all are there. UsageError when nothing answers within
    `connect` seconds, or a rank does not come within `meeting` seconds.
    """
    hosts = torchrun.rank == 0 and not torchrun.has_store
    if not hosts:
        _probe(torchrun, time.monotonic() + connect)
    try:
        timeout = timedelta(seconds=connect)
        all_attempts = dist.TCPStore(
            torchrun.address,
            torchrun.port,
            is_master=hosts,
            timeout=timeout,
            multi_tenant=True,  # a command meets, and so does each engine that it makes
        )
    except RuntimeError as error:
        raise UsageError(_where(torchrun), str(error).splitlines()[0], DO) from None
    store = dist.PrefixStore(f"gyrfalcon/{torchrun.attempt}", all_attempts)
    store.set(f"here/{torchrun.rank}", "")
    deadline = time.monotonic() + meeting
    for rank in range(torchrun.world_size):
        while not store.check([f"here/{rank}"]):
            if time.monotonic() > deadline:
                wanted = f"all {torchrun.world_size} ranks of torchrun"
                raise UsageError(wanted, f"no rank {rank} for {meeting:g} s", DO)
            time.sleep(POLL_SECONDS)
    return store


def lead(store: Store) -> None:
    """From here on rank 0 announces each engine that it makes, and the others listen."""
    store.set(LED, "")


def is_led(store: Store) -> bool:
    """Whether the other ranks listen to rank 0; else each runs the same program."""
    return store.check([LED])


def announce(store: Store, content: bytes) -> Store:
    """Tells the listening ranks of something; returns the store at which they meet for it."""
    number = store.add(COUNT, 1) - 1
    store.set(_announcement(number), content.decode())
    return _place(store, number)


def listen(store: Store, number: int) -> tuple[bytes, Store]:
    """What rank 0 announces as its `number`th, and the store at which to meet for it; waits."""
    store.wait([_announcement(number)], TIMEOUT)
    return store.get(_announcement(number)), _place(store, number)


def leave(store: Store, rank: int) -> None:
    """Says that a listening rank needs the store no longer."""
    store.set(_left(rank), "")


def wait_until_left(store: Store, world_size: int) -> None:
    """Waits for the listening ranks to leave the store, which ends with rank 0 if that holds it; for a
    while, since one that failed does not.
    """
    if world_size > 1:
        with contextlib.suppress(RuntimeError):
            others = [_left(rank) for rank in range(1, world_size)]
            store.wait(others, timedelta(seconds=LEAVE_SECONDS))


def _left(rank: int) -> str:
    return f"command/left/{rank}"


def _announcement(number: int) -> str:
    return f"command/{number}"


def _place(store: Store, number: int) -> Store:
    return dist.PrefixStore(f"command/{number}/ranks", store)


def _probe(torchrun: Torchrun, deadline: float) -> None:
    """Waits for the store in our words: torch retries for minutes and prints pages."""
    while True:
        try:
            address = torchrun.address, torchrun.port
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(_where(torchrun), error.strerror or str(error), DO) from None
        time.sleep(POLL_SECONDS)


def _where(torchrun: Torchrun) -> str:
    return f"torchrun's store at {torchrun.address}:{torchrun.port} (MASTER_ADDR, MASTER_PORT)"
