"""The store at which torchrun's ranks meet, and what rank 0 announces there while it runs a command.

The store may be older than they are: torchrun's own stays when it starts them anew. Each start of rank 0 has
keys of its own, and the others make sure that it is alive.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store as Store  # for those who pass one on

from gyrfalcon.errors import UsageError
from gyrfalcon.parallel.backend import INTERFACES, TIMEOUT
from gyrfalcon.parallel.torchrun import DO, Torchrun

CONNECT_SECONDS = 30.0  # torchrun's store is there before its processes are
MEET_SECONDS = 300.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.05
ANSWER_SECONDS = 2.0  # that rank 0 takes to answer; one that does not was of an earlier start
LEAVE_SECONDS = 10.0
START = "gyrfalcon/start"  # what the keys of rank 0's last start begin with
COUNT = "command/announcements"


def open_store(torchrun: Torchrun, connect: float = CONNECT_SECONDS) -> Store:
    """The store of torchrun; UsageError when nothing answers within `connect` seconds."""
    hosts = torchrun.rank == 0 and not torchrun.has_store
    if not hosts:
        _probe(torchrun, time.monotonic() + connect)
    try:
        return dist.TCPStore(
            torchrun.address,
            torchrun.port,
            is_master=hosts,
            timeout=timedelta(seconds=connect),
            multi_tenant=True,  # several programs may meet there
        )
    except RuntimeError as error:
        raise UsageError(_where(torchrun), str(error).splitlines()[0], DO) from None


@dataclass(frozen=True, slots=True)
class _Patience:
    """Waits for other ranks, but not for ever."""

    num_ranks: int
    seconds: float
    deadline: float

    @classmethod
    def of(cls, torchrun: Torchrun, seconds: float) -> "_Patience":
        return cls(torchrun.world_size, seconds, time.monotonic() + seconds)

    def pause(self, rank: int) -> None:
        """Waits a moment for a rank; UsageError when there is no time left."""
        if time.monotonic() > self.deadline:
            wanted = f"all {self.num_ranks} ranks of torchrun"
            raise UsageError(wanted, f"no rank {rank} for {self.seconds:g} s", DO)
        time.sleep(POLL_SECONDS)


def meet(torchrun: Torchrun, store: Store, seconds: float = MEET_SECONDS) -> Store:
    """The keys of this start, once rank 0 and this rank have met, on rank 0 once all have come; UsageError
    when one does not come in time.
    """
    patience = _Patience.of(torchrun, seconds)
    return _join(torchrun, store, patience) if torchrun.rank else _gather(torchrun, store, patience)


def _gather(torchrun: Torchrun, store: Store, patience: _Patience) -> Store:
    start = secrets.token_hex(8)
    place = dist.PrefixStore(f"gyrfalcon/{start}", store)
    store.set(START, start)
    for rank in range(1, torchrun.world_size):
        while not place.check([_question(rank)]):
            patience.pause(rank)
        place.set(_answer(rank), place.get(_question(rank)).decode())
    return place


def _join(torchrun: Torchrun, store: Store, patience: _Patience) -> Store:
    """Asks whatever rank 0 the store knows, until one answers."""
    question = secrets.token_hex(8)
    while True:
        if store.check([START]):
            place = dist.PrefixStore(f"gyrfalcon/{store.get(START).decode()}", store)
            place.set(_question(torchrun.rank), question)
            if _is_answered(place, torchrun.rank, question):
                return place
        patience.pause(0)


def _is_answered(place: Store, rank: int, question: str) -> bool:
    deadline = time.monotonic() + ANSWER_SECONDS
    while not place.check([_answer(rank)]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return place.get(_answer(rank)) == question.encode()


def _question(rank: int) -> str:
    return f"here/{rank}"


def _answer(rank: int) -> str:
    return f"met/{rank}"


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


def own_address(torchrun: Torchrun) -> str:
    """What the other ranks call this machine, as the way to torchrun's store tells."""
    own, its = _ends(torchrun)
    return torchrun.address if own == its else own


def listening_address(torchrun: Torchrun) -> str | None:
    """The address of this machine that faces torchrun's store; None where the user has named an interface,
    or the store is known here by an address that no other machine reaches.
    """
    own, _ = _ends(torchrun)
    named = os.environ.get(INTERFACES) or ipaddress.ip_address(own).is_loopback
    return None if named else own


def _ends(torchrun: Torchrun) -> tuple[str, str]:
    address = torchrun.address, torchrun.port
    with socket.create_connection(address, timeout=PROBE_SECONDS) as connection:
        return str(connection.getsockname()[0]), str(connection.getpeername()[0])


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
