"""Messages of any length reach every rank as rank 0 sent them, over sockets and through memory."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from worlds import on_every_rank

from gyrfalcon.errors import RankDied
from gyrfalcon.parallel.backend import TIMEOUT_CAN_CHANGE
from gyrfalcon.parallel.group import FRAME, MOST_BYTES, SHORT_BYTES, Group, connect
from gyrfalcon.parallel.torchrun_ranks import HERE

LENGTHS = (0, 1, SHORT_BYTES - 1, SHORT_BYTES, SHORT_BYTES + 1, 100_003)
MESSAGES = [bytes(place * length % 251 for place in range(length)) for length in LENGTHS]


@pytest.mark.parametrize("one_machine", [False, True], ids=["sockets", "memory"])
def test_messages_of_any_length_reach_every_rank(one_machine: bool) -> None:
    def program(group: Group) -> list[bytes]:
        own = MESSAGES if group.rank == 0 else [b"ignored"] * len(MESSAGES)
        return [group.broadcast(message) for message in own]

    assert on_every_rank(3, program, one_machine=one_machine) == [MESSAGES] * 3


@pytest.mark.parametrize("length", [-1, MOST_BYTES + 1])
def test_a_message_of_an_impossible_length_is_told_before_its_memory_is_taken(length: int) -> None:
    def program(group: Group) -> str:
        if group.rank == 0:
            frame = torch.frombuffer(bytearray(FRAME.pack(length, b"")), dtype=torch.uint8)
            assert group.backend is not None
            group.backend.broadcast(frame)
            return ""
        with pytest.raises(RankDied) as caught:
            group.broadcast()
        return str(caught.value)

    wanted = (
        f"wanted a message of at most {MOST_BYTES:,} bytes between ranks, got one of {length:,}"
    )
    assert on_every_rank(2, program) == ["", f"{wanted}; start again"]


@pytest.mark.skipif(
    not TIMEOUT_CAN_CHANGE,
    reason="this torch's gloo keeps its first timeout, so ranks are waited for without a limit",
)
def test_a_rank_that_does_not_connect_is_waited_for_no_longer_than_was_asked() -> None:
    with pytest.raises(RuntimeError):
        connect(dist.HashStore(), 0, 2, host=HERE, meeting=timedelta(seconds=0.2))


@pytest.mark.parametrize("one_machine", [False, True], ids=["sockets", "memory"])
def test_ranks_that_have_met_wait_for_each_other_for_longer(one_machine: bool) -> None:
    store, meeting = dist.HashStore(), timedelta(seconds=1)

    def run(rank: int) -> bytes:
        group = connect(store, rank, 2, host=HERE, one_machine=one_machine, meeting=meeting)
        with contextlib.closing(group):
            if rank == 0:
                time.sleep(1.5)
            return group.broadcast(MESSAGES[-1])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [MESSAGES[-1]] * 2
