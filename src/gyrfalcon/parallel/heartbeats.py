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
from gyrfalcon.parallel.connection import Connection, ConnectionClosed, Message
from gyrfalcon.parallel.error_message import decode_error, encode_error
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.progress_monitor import ProgressMonitor, RankStatus
from gyrfalcon.parallel.watchdog import Watchdog

LONGEST_INTERVAL = 1.0  # seconds between two
HEARTBEATS_PER_TIMEOUT = 10  # in the time that a rank may stand still
LOOKS = 4  # from one heartbeat to the next
CONNECT_SECONDS = 30.0
MOST_STRANGERS = 64  # connections of which nothing is known yet
POLL_SECONDS = 0.02
ADDRESS = "heartbeats"


def _interval(timeout: float) -> float:
    return min(timeout / HEARTBEATS_PER_TIMEOUT, LONGEST_INTERVAL)


def machine() -> str:
    """What processes that see each other's numbers have in common; nothing where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@dataclass(slots=True)
class _Pace:
    """When to send a heartbeat and when to look. This process may have been stopped, by Ctrl-Z, which is no
    fault of the other ranks: of the time between two looks no more than two heartbeats' counts.
    """

    interval: float
    _looked_at: float = field(default_factory=time.monotonic)
    _heartbeat_at: float = 0.0

    def heartbeat_is_due(self) -> bool:
        """Whether it is time for one; asked once."""
        due = time.monotonic() >= self._heartbeat_at
        if due:
            self._heartbeat_at = time.monotonic() + self.interval
        return due

    def passed(self) -> float | None:
        """Seconds since the last look, if it is time for one."""
        now = time.monotonic()
        seconds = now - self._looked_at
        if seconds < self.interval / LOOKS:
            return None
        self._looked_at = now
        return min(seconds, 2 * self.interval)


class HeartbeatServer:
    """Rank 0's end of all connections, with the watchdog. A single rank has none, and is seen but not
    ended.
    """

    def __init__(self, watchdog: Watchdog, monitor: ProgressMonitor, size: int) -> None:
        self.error: GyrfalconError | None = None  # what has ended the ranks
        self.watchdog, self._monitor, self._size = watchdog, monitor, size
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._token = secrets.token_hex(16)
        self._strangers: list[Connection] = []
        self._connections: dict[int, Connection] = {}  # by rank
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
        return self._monitor.num_working

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
        self._monitor.add(heartbeat)

    def drop(self, heartbeat: Heartbeat) -> None:
        """Watches that engine no more."""
        self._monitor.drop(heartbeat)

    def tell_end(self, error: GyrfalconError, seconds: float) -> None:
        """Has the other ranks end; those of this machine that have not done so after some seconds are
        killed. On the watchdog's thread.
        """
        self._send("end", encode_error(error).decode())
        deadline = time.monotonic() + seconds
        while self._connections and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        for rank in self._connections.keys() & self._processes.keys():
            with suppress(OSError):
                os.kill(self._processes[rank], signal.SIGKILL)

    def stop(self) -> None:
        """Says good-bye and ends the connections."""
        self._over.set()
        self._send("bye")
        for connection in (*self._connections.values(), *self._strangers):
            connection.close()
        if self._server is not None:
            self._server.close()

    def _send(self, *message: object) -> None:
        for connection in list(self._connections.values()):
            connection.send(*message)

    def _run(self, end: Callable[[GyrfalconError], object]) -> None:
        pace = _Pace(_interval(self.watchdog.timeout))
        while not self._over.is_set() and self.error is None:
            pace.interval = _interval(self.watchdog.timeout)
            self._read(pace.interval / LOOKS)
            if pace.heartbeat_is_due():
                self._send("heartbeat", *astuple(self._monitor.status()))
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
            accepted, _ = server.accept()
        except OSError:
            return
        connection = Connection(accepted)
        self._selector.register(connection, selectors.EVENT_READ, self._greet)
        self._strangers.append(connection)
        if len(self._strangers) > MOST_STRANGERS:
            self._part(self._strangers[0])

    def _greet(self, connection: Connection) -> None:
        """A stranger says who it is."""
        try:
            said = connection.receive()
            if not said:  # the rest of it is to come
                return
            rank = self._known(said[0])
        except ConnectionClosed:
            self._part(connection)
            return
        self._strangers.remove(connection)
        self._connections[rank] = connection
        hear = partial(self._hear, rank)
        self._selector.modify(connection, selectors.EVENT_READ, hear)
        hear(connection, said[1:])

    def _known(self, message: Message) -> int:
        """The rank that a stranger is; ConnectionClosed if it is none."""
        match message:
            case ["hello", str(token), int(rank), str(host), int(process), str(where)]:
                if secrets.compare_digest(token, self._token) and rank in self.missing:
                    self.watchdog.come(rank, host)
                    if where and where == machine() and process != os.getpid():
                        self._processes[rank] = process
                    return rank
        raise ConnectionClosed

    def _hear(self, rank: int, connection: Connection, before: Sequence[Message] = ()) -> None:
        """What a rank says, `before` what it has said already."""
        try:
            for message in before or connection.receive():
                self._take(rank, message)
        except ConnectionClosed:
            if self._over.is_set():  # by this end
                return
            del self._connections[rank]
            self._part(connection)
            self.watchdog.end(rank)

    def _take(self, rank: int, message: Message) -> None:
        match message:
            case ["heartbeat", int(progress), int(step), str(where), bool(slow)]:
                self.watchdog.hear(rank, RankStatus(progress, step, where, slow))
            case ["end", str(error)]:
                self.watchdog.end(rank, decode_error(error.encode()))
            case ["bye"]:
                self.watchdog.leave(rank)
            case _:
                raise ConnectionClosed

    def _part(self, connection: Connection) -> None:
        if connection in self._strangers:
            self._strangers.remove(connection)
        with suppress(KeyError, ValueError):  # closed by another thread
            self._selector.unregister(connection)
        connection.close()


class HeartbeatClient:
    """The end of another rank."""

    def __init__(
        self, connection: Connection, rank: int, monitor: ProgressMonitor, timeout: float
    ) -> None:
        self.error: GyrfalconError | None = None
        self._connection, self._rank, self._monitor, self._timeout = (
            connection,
            rank,
            monitor,
            timeout,
        )
        self._where, self._silent_seconds = "starting", 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._over = threading.Event()

    @property
    def stalled_seconds(self) -> float:
        """Rank 0 alone knows."""
        return 0.0

    @property
    def num_working(self) -> int:
        """Operations of this rank under way."""
        return self._monitor.num_working

    def start(self, end: Callable[[GyrfalconError], object]) -> None:
        """Goes on in a thread of its own; calls `end` there with what has ended the ranks."""
        threading.Thread(target=self._run, args=(end,), name="heartbeat", daemon=True).start()

    def add(self, heartbeat: Heartbeat, timeout: float) -> None:
        """As HeartbeatServer.add()."""
        self._timeout = timeout
        self._monitor.add(heartbeat)

    def drop(self, heartbeat: Heartbeat) -> None:
        """Watches that engine no more."""
        self._monitor.drop(heartbeat)

    def tell(self, error: GyrfalconError) -> None:
        """Tells rank 0 what ends this rank."""
        self._connection.send("end", encode_error(error).decode())

    def hears_good_bye(self, seconds: float) -> bool:
        """Whether rank 0 says good-bye within some seconds, or has done so."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Says good-bye and ends the connection."""
        self._over.set()
        self._connection.send("bye")
        self._connection.close()

    def _run(self, end: Callable[[GyrfalconError], object]) -> None:
        pace = _Pace(_interval(self._timeout))
        while not self._over.is_set():
            pace.interval = _interval(self._timeout)
            if pace.heartbeat_is_due():
                self._connection.send("heartbeat", *astuple(self._monitor.status()))
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
                for message in self._connection.receive():
                    self._take(message)
        except ConnectionClosed:
            if not self._over.is_set():
                self.error = self.error or _without_rank_0("live", f"its end while {self._where}")

    def _take(self, message: Message) -> None:
        match message:
            case ["heartbeat", int(), int(), str(where), bool()]:
                self._where, self._silent_seconds = where, 0.0
            case ["end", str(error)]:
                self.error = decode_error(error.encode())
            case ["bye"]:
                self._over.set()
            case _:
                raise ConnectionClosed


def _without_rank_0(wanted: str, got: str) -> RankDied:
    return RankDied(f"rank 0 to {wanted}", got, "look at its output and start again")


def connect_to_rank_0(
    store: Store, rank: int, monitor: ProgressMonitor, timeout: float, patience: float
) -> HeartbeatClient:
    """A rank's connection to rank 0, whose address comes to the store within `patience` seconds; RankDied
    where there is none.
    """
    try:
        store.wait([ADDRESS], timedelta(seconds=patience))
        host, port, token = json.loads(store.get(ADDRESS))
        connection = Connection(socket.create_connection((host, port), CONNECT_SECONDS))
    except (RuntimeError, OSError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise _without_rank_0("take a connection", got) from None
    connection.send("hello", token, rank, socket.gethostname(), os.getpid(), machine())
    return HeartbeatClient(connection, rank, monitor, timeout)


def _server(host: str) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        with suppress(OSError):  # a kernel without IPv6
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, 0))
