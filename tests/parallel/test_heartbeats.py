"""Heartbeats over connections of their own: who comes, who ends, who falls silent, and who is no rank."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch.distributed as dist

from gyrfalcon.errors import CheckpointError, GyrfalconError, RankDied
from gyrfalcon.parallel.connection import MOST_BYTES, Connection, ConnectionClosed
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.heartbeats import (
    ADDRESS,
    HeartbeatClient,
    HeartbeatServer,
    connect_to_rank_0,
)
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.torchrun_ranks import HERE
from gyrfalcon.parallel.watchdog import Watchdog

PATIENCE = 60.0


@dataclass
class Ends:
    """Both ends of the connections of some ranks, and what ended them."""

    timeout: float = PATIENCE
    size: int = 2
    store: dist.HashStore = field(default_factory=dist.HashStore)
    ended: dict[int, GyrfalconError] = field(default_factory=dict)  # by rank

    def __post_init__(self) -> None:
        self.heart = Heartbeat(on_host=False)
        monitor = ProgressMonitor()
        monitor.add(self.heart)
        self.listener = HeartbeatServer(
            Watchdog(monitor, self.size, self.timeout), monitor, self.size
        )
        self.listener.listen(self.store, HERE, HERE)

    def start(self) -> list[HeartbeatClient]:
        """All ranks' connections, each with its thread."""
        self.listener.start(lambda error: self.ended.update({0: error}))
        callers = [
            connect_to_rank_0(self.store, rank, ProgressMonitor(), self.timeout, PATIENCE)
            for rank in range(1, self.size)
        ]
        for rank, caller in enumerate(callers, 1):
            caller.start(lambda error, rank=rank: self.ended.update({rank: error}))  # type: ignore[misc]
        self.listener.await_all(PATIENCE)
        return callers

    def error_of(self, rank: int) -> str:
        """What ended a rank, once something has."""
        wait_until(lambda: rank in self.ended)
        return str(self.ended[rank])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def ends(**settings: float) -> Iterator[Ends]:
    made = Ends(**settings)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.listener.stop()


def test_heartbeats_keep_ranks_alive_for_many_times_the_timeout() -> None:
    with ends(timeout=0.5, size=3) as both:
        callers = both.start()
        time.sleep(2.0)
        assert both.ended == {}
        for caller in callers:
            caller.stop()


def test_an_end_without_a_word_is_told_on_both_sides() -> None:
    with ends() as both:
        [caller] = both.start()
        caller._connection._connection.shutdown(socket.SHUT_RDWR)
        told = (
            f"wanted all 2 ranks to live, got rank 1 on {socket.gethostname()}, which ended while"
        )
        assert told in both.error_of(0)
        assert "wanted rank 0 to live, got its end while" in both.error_of(1)


def test_a_rank_s_error_is_told_in_its_words() -> None:
    with ends() as both:
        [caller] = both.start()
        caller.tell(CheckpointError("a part", "none", "copy it"))
        assert both.error_of(0) == "wanted a part, got none; copy it"
        assert isinstance(both.ended[0], CheckpointError)


def test_what_ended_one_rank_is_told_to_all_others() -> None:
    with ends(size=3) as both:
        _, other = both.start()
        both.listener.tell_end(RankDied("all", "rank 1 dead", "start again"), 0.0)
        assert both.error_of(2) == "wanted all, got rank 1 dead; start again"
        other.stop()


def test_a_silent_rank_0_ends_the_others() -> None:
    """As behind a link that is down."""
    with ends() as both:
        caller = connect_to_rank_0(
            both.store, 1, ProgressMonitor(), 0.5, PATIENCE
        )  # nobody accepts it
        caller.start(lambda error: both.ended.update({1: error}))
        assert "wanted rank 0 to answer within 0.5 s, got nothing since" in both.error_of(1)


def test_good_byes_end_nothing() -> None:
    with ends(timeout=0.5, size=3) as both:
        first, second = both.start()
        first.stop()
        time.sleep(1.0)
        both.listener.stop()
        wait_until(second._over.is_set)
        assert both.ended == {}


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'["hello", "wrong", 1, "here", 1, ""]\n',
        b'["hello", "%token", 0, "here", 1, ""]\n',
        b'["hello", "%token", 2, "here", 1, ""]\n',
        b'["hello", "%token", 1, 5, 1, ""]\n',
        b'["heartbeat", 1, 1, "x", false]\n',
        b"[" * 100_000 + b"\n",
        b'{"hello": 1}\n',
        b"x" * (2 * MOST_BYTES),
    ],
)
def test_strangers_are_shown_out(said: bytes) -> None:
    with ends() as both:
        both.listener.start(lambda error: both.ended.update({0: error}))
        port = both.listener._server.getsockname()[1]  # type: ignore[union-attr]
        said = said.replace(b"%token", both.listener._token.encode())
        with socket.create_connection((HERE, port)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(said)
            assert stranger.recv(1) == b""
        caller = connect_to_rank_0(both.store, 1, ProgressMonitor(), PATIENCE, PATIENCE)
        both.listener.await_all(PATIENCE)
        caller.stop()
        assert both.ended == {}


def test_many_silent_strangers_keep_no_rank_out() -> None:
    with ends() as both:
        both.listener.start(lambda error: None)
        port = both.listener._server.getsockname()[1]  # type: ignore[union-attr]
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection((HERE, port)))
            [caller] = [connect_to_rank_0(both.store, 1, ProgressMonitor(), PATIENCE, PATIENCE)]
            both.listener.await_all(PATIENCE)
            caller.stop()


def test_a_rank_that_cannot_connect_is_told_with_the_port() -> None:
    with (
        ends() as both,
        pytest.raises(RankDied, match=r"connection of rank 1 to rank 0 on .* port"),
    ):
        both.listener.await_all(0.1)


@pytest.mark.parametrize("address", [None, "[1]", "x", '["127.0.0.1", 1, "token"]'])
def test_a_rank_0_that_cannot_be_reached_is_told(address: str | None) -> None:
    store = dist.HashStore()
    if address is not None:
        store.set(ADDRESS, address)
    with pytest.raises(RankDied, match="wanted rank 0 to take a connection, got"):
        connect_to_rank_0(store, 1, ProgressMonitor(), PATIENCE, 0.1)


def test_sending_to_an_end_that_reads_nothing_never_waits() -> None:
    one, other = socket.socketpair()
    connection = Connection(one)
    for _ in range(10_000):
        connection.send("heartbeat", "x" * 1000)
    other.close()
    connection.send("heartbeat")
    with pytest.raises(ConnectionClosed):
        connection.receive()
    connection.close()


def test_what_the_connection_does_not_take_at_once_is_sent_before_the_next_message() -> None:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the system allows
    sender, receiver = Connection(one), Connection(other)
    long = "x" * 100_000
    sender.send("end", long)
    got, deadline = list[object](), time.monotonic() + PATIENCE
    while len(got) < 3 and time.monotonic() < deadline:
        got += receiver.receive()
        sender.send("heartbeat")
    assert got[:3] == [["end", long], ["heartbeat"], ["heartbeat"]]
    sender.close()
    receiver.close()


def test_a_message_in_pieces_is_put_together() -> None:
    one, other = socket.socketpair()
    connection, text = Connection(one), b'["heartbeat", 1]\n["bye"]\n["be'
    got = []
    for byte in text:
        other.sendall(bytes([byte]))
        got += connection.receive()
    assert got == [["heartbeat", 1], ["bye"]]
    other.close()
    connection.close()


def test_the_watchdog_runs_until_it_is_stopped() -> None:
    monitor, heart = ProgressMonitor(), Heartbeat(num_working=1, on_host=False)
    listener = HeartbeatServer(Watchdog(monitor, 1, 0.05), monitor, 1)
    listener.add(heart, 0.05)
    listener.start(lambda error: None)
    wait_until(lambda: listener.stalled_seconds > 0.1)
    assert listener.error is None
    threads = [one for one in threading.enumerate() if one.name == "watchdog"]
    listener.stop()
    for one in threads:
        one.join(PATIENCE)
