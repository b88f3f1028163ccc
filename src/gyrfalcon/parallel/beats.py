"""The connection of each rank to rank 0, over which both say once a second that they live, and what ends one
ends all. A thread at each end does nothing else.

The address of rank 0's end stands in the store at which the ranks meet, beside a word that strangers do not
know.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from functools import partial

from torch.distributed import Store

from gyrfalcon.errors import GyrfalconError, RankDied
from gyrfalcon.parallel.error_message import decode_error, encode_error
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.movement import Beat, Movement
from gyrfalcon.parallel.watchdog import Watchdog
from gyrfalcon.parallel.wire import Message, Wire, WireClosed

LONGEST_BEAT = 1.0  # seconds between two
BEATS = 10  # in the time that a rank may stand still
LOOKS = 4  # from beat to beat
CONNECT_SECONDS = 30.0
MOST_STRANGERS = 64  # connections of which nothing is known yet
POLL_SECONDS = 0.02
ADDRESS = "beats"


def _interval(timeout: float) -> float:
    return min(timeout / BEATS, LONGEST_BEAT)


def machine() -> str:
    """What processes that see each other's numbers have in common; nothing where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@dataclass(slots=True)
class _Pace:
    """When to beat and when to look. This process may have been stopped, by Ctrl-Z, which is no fault of the
    other ranks: of the time between two looks no more than two beats' counts.
    """

    interval: float
    _looked_at: float = field(default_factory=time.monotonic)
    _beat_at: float = 0.0

    def beat_is_due(self) -> bool:
        """Whether it is time for one; asked once."""
        due = time.monotonic() >= self._beat_at
        if due:
            self._beat_at = time.monotonic() + self.interval
        return due

    def passed(self) -> float | None:
        """Seconds since the last look, if it is time for one."""
        now = time.monotonic()
        seconds = now - self._looked_at
        if seconds < self.interval / LOOKS:
            return None
        self._looked_at = now
        return min(seconds, 2 * self.interval)


class Listener:
    """Rank 0's end of all connections, with the watchdog. A single rank has none, and is seen but not
    ended.
    """

    def __init__(self, watchdog: Watchdog, movement: Movement, size: int) -> None:
        self.error: GyrfalconError | None = None  # what has ended the ranks
        self.watchdog, self._movement, self._size = watchdog, movement, size
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._token = secrets.token_hex(16)
        self._strangers: list[Wire] = []
        self._wires: dict[int, Wire] = {}  # by rank
        self._processes: dict[int, int] = {}  # those of this machine, by rank
        self._over = threading.Event()

    @property
    def stalled_seconds(self) -> float:
        """For how long no rank has moved though there is work."""
        return self.watchdog.stalled_seconds

    @property
    def stand_still(self) -> bool:
        """Whether that is as long as they may."""
        return self.stalled_seconds >= self.watchdog.timeout

    @property
    def num_working(self) -> int:
        """Operations of all ranks under way."""
        return self._movement.num_working

    @property
    def missing(self) -> list[int]:
        """The ranks that have not come yet."""
        return [rank for rank in range(1, self._size) if not self.watchdog.has_come(rank)]

    def listen(self, store: Store, host: str, known_as: str) -> None:
        """Takes connections at the address `host`, all if it is empty; others reach it as `known_as`."""
        self._server = _server(host)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        port = self._server.getsockname()[1]
        store.set(ADDRESS, json.dumps([known_as, port, self._token]))

    def start(self, end: Callable[[GyrfalconError], object]) -> None:
        """Goes on in a thread of its own; calls `end` there with what has ended the ranks."""
        threading.Thread(target=self._run, args=(end,), name="watchdog", daemon=True).start()

    def await_all(self, seconds: float) -> None:
        """Until every rank has come; RankDied when one does not within some seconds."""
        deadline = time.monotonic() + seconds
        while self.missing:
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                assert self._server is not None
                port = self._server.getsockname()[1]
                wanted = (
                    f"a connection of rank {self.missing[0]} to rank 0 on {socket.gethostname()}"
                )
                got = f"none at port {port} within {seconds:g} s"
                raise RankDied(wanted, got, "let the hosts reach each other on all ports")
            time.sleep(POLL_SECONDS)

    def describe(self, rank: int) -> str:
        """As the watchdog."""
        return self.watchdog.describe(rank)

    def add(self, heartbeat: Heartbeat, timeout: float) -> None:
        """Watches one more engine, whose ranks may stand still for `timeout` seconds."""
        self.watchdog.timeout = timeout
        self._movement.add(heartbeat)

    def drop(self, heartbeat: Heartbeat) -> None:
        """Watches that engine no more."""
        self._movement.drop(heartbeat)

    def tell_end(self, error: GyrfalconError, seconds: float) -> None:
        """Has the other ranks end; those of this machine that have not done so after some seconds are
        killed. On the watchdog's thread.
        """
        self._send("end", encode_error(error).decode())
        deadline = time.monotonic() + seconds
        while self._wires and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        for rank in self._wires.keys() & self._processes.keys():
            with suppress(OSError):
                os.kill(self._processes[rank], signal.SIGKILL)

    def stop(self) -> None:
        """Says good-bye and ends the connections."""
        self._over.set()
        self._send("bye")
        for wire in (*self._wires.values(), *self._strangers):
            wire.close()
        if self._server is not None:
            self._server.close()

    def _send(self, *message: object) -> None:
        for wire in list(self._wires.values()):
            wire.send(*message)

    def _run(self, end: Callable[[GyrfalconError], object]) -> None:
        pace = _Pace(_interval(self.watchdog.timeout))
        while not self._over.is_set() and self.error is None:
            pace.interval = _interval(self.watchdog.timeout)
            self._read(pace.interval / LOOKS)
            if pace.beat_is_due():
                self._send("beat", *astuple(self._movement.beat()))
            if (seconds := pace.passed()) is not None:
                self.error = self.watchdog.look(seconds)
        if self.error is not None and not self._over.is_set():
            end(self.error)
        self._selector.close()

    def _read(self, seconds: float) -> None:
        """Waits for news, for some seconds."""
        for key, _ in self._selector.select(seconds):
            if not self._over.is_set():
                key.data(key.fileobj)

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        wire = Wire(connection)
        self._selector.register(wire, selectors.EVENT_READ, self._greet)
        self._strangers.append(wire)
        if len(self._strangers) > MOST_STRANGERS:
            self._part(self._strangers[0])

    def _greet(self, wire: Wire) -> None:
        """A stranger says who it is."""
        try:
            said = wire.receive()
            if not said:  # the rest of it is to come
                return
            rank = self._known(said[0])
        except WireClosed:
            self._part(wire)
            return
        self._strangers.remove(wire)
        self._wires[rank] = wire
        hear = partial(self._hear, rank)
        self._selector.modify(wire, selectors.EVENT_READ, hear)
        hear(wire, said[1:])

    def _known(self, message: Message) -> int:
        """The rank that a stranger is; WireClosed if it is none."""
        match message:
            case ["hello", str(token), int(rank), str(host), int(process), str(where)]:
                if secrets.compare_digest(token, self._token) and rank in self.missing:
                    self.watchdog.come(rank, host)
                    if where and where == machine() and process != os.getpid():
                        self._processes[rank] = process
                    return rank
        raise WireClosed

    def _hear(self, rank: int, wire: Wire, before: Sequence[Message] = ()) -> None:
        """What a rank says, `before` what it has said already."""
        try:
            for message in before or wire.receive():
                self._take(rank, message)
        except WireClosed:
            if self._over.is_set():  # by this end
                return
            del self._wires[rank]
            self._part(wire)
            self.watchdog.end(rank)

    def _take(self, rank: int, message: Message) -> None:
        match message:
            case ["beat", int(moves), int(step), str(where), bool(slow)]:
                self.watchdog.hear(rank, Beat(moves, step, where, slow))
            case ["end", str(error)]:
                self.watchdog.end(rank, decode_error(error.encode()))
            case ["bye"]:
                self.watchdog.leave(rank)
            case _:
                raise WireClosed

    def _part(self, wire: Wire) -> None:
        if wire in self._strangers:
            self._strangers.remove(wire)
        with suppress(KeyError, ValueError):  # closed by another thread
            self._selector.unregister(wire)
        wire.close()


class Caller:
    """The end of another rank."""

    def __init__(self, wire: Wire, rank: int, movement: Movement, timeout: float) -> None:
        self.error: GyrfalconError | None = None
        self._wire, self._rank, self._movement, self._timeout = wire, rank, movement, timeout
        self._where, self._silent_seconds = "starting", 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(wire, selectors.EVENT_READ)
        self._over = threading.Event()

    @property
    def stalled_seconds(self) -> float:
        """Rank 0 alone knows."""
        return 0.0

    @property
    def num_working(self) -> int:
        """Operations of this rank under way."""
        return self._movement.num_working

    def start(self, end: Callable[[GyrfalconError], object]) -> None:
        """Goes on in a thread of its own; calls `end` there with what has ended the ranks."""
        threading.Thread(target=self._run, args=(end,), name="heartbeat", daemon=True).start()

    def add(self, heartbeat: Heartbeat, timeout: float) -> None:
        """As Listener.add()."""
        self._timeout = timeout
        self._movement.add(heartbeat)

    def drop(self, heartbeat: Heartbeat) -> None:
        """Watches that engine no more."""
        self._movement.drop(heartbeat)

    def tell(self, error: GyrfalconError) -> None:
        """Tells rank 0 what ends this rank."""
        self._wire.send("end", encode_error(error).decode())

    def hears_good_bye(self, seconds: float) -> bool:
        """Whether rank 0 says good-bye within some seconds, or has done so."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Says good-bye and ends the connection."""
        self._over.set()
        self._wire.send("bye")
        self._wire.close()

    def _run(self, end: Callable[[GyrfalconError], object]) -> None:
        pace = _Pace(_interval(self._timeout))
        while not self._over.is_set():
            pace.interval = _interval(self._timeout)
            if pace.beat_is_due():
                self._wire.send("beat", *astuple(self._movement.beat()))
            self._read(pace.interval / LOOKS)
            self._silent_seconds += pace.passed() or 0.0
            if self.error is None and self._silent_seconds >= self._timeout:
                got = f"nothing since it was {self._where}"
                self.error = _without_rank_0(f"answer within {self._timeout:g} s", got)
            if self.error is not None and not self._over.is_set():
                end(self.error)
                break
        self._selector.close()

    def _read(self, seconds: float) -> None:
        try:
            for _ in self._selector.select(seconds):
                for message in self._wire.receive():
                    self._take(message)
        except WireClosed:
            if not self._over.is_set():
                self.error = self.error or _without_rank_0("live", f"its end while {self._where}")

    def _take(self, message: Message) -> None:
        match message:
            case ["beat", int(), int(), str(where), bool()]:
                self._where, self._silent_seconds = where, 0.0
            case ["end", str(error)]:
                self.error = decode_error(error.encode())
            case ["bye"]:
                self._over.set()
            case _:
                raise WireClosed


def _without_rank_0(wanted: str, got: str) -> RankDied:
    return RankDied(f"rank 0 to {wanted}", got, "look at its output and start again")


def call(store: Store, rank: int, movement: Movement, timeout: float, patience: float) -> Caller:
    """A rank's connection to rank 0, whose address comes to the store within `patience` seconds; RankDied
    where there is none.
    """
    try:
        store.wait([ADDRESS], timedelta(seconds=patience))
        host, port, token = json.loads(store.get(ADDRESS))
        wire = Wire(socket.create_connection((host, port), CONNECT_SECONDS))
    except (RuntimeError, OSError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise _without_rank_0("take a connection", got) from None
    wire.send("hello", token, rank, socket.gethostname(), os.getpid(), machine())
    return Caller(wire, rank, movement, timeout)


def _server(host: str) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        with suppress(OSError):  # a kernel without IPv6
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, 0))
