"""Cores and NUMA nodes as Linux tells them, and which of them a rank keeps to."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from gyrfalcon.device import threads
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.threads import (
    home_processors,
    kept_to,
    node_processors,
    own_processors,
    unbound,
)
from gyrfalcon.device.topology import Core, node_of_pci, processor_list, usable_cores


@pytest.fixture(autouse=True)
def nothing_bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (threads.BIND, *threads.OPENMP):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def system(
    root: Path, nodes: Sequence[Sequence[int]], siblings: Sequence[Sequence[int]] | None = None
) -> Path:
    """A /sys/devices/system with these processors in each node; each a core of its own unless told."""
    cores = siblings or [[each] for node in nodes for each in node]
    for core in cores:
        for processor in core:
            topology = root / f"cpu/cpu{processor}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
    for number, node in enumerate(nodes):
        folder = root / f"node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(map(str, node)) + "\n")
    return root


def cores(count: int, nodes: int, start: int = 0) -> list[Core]:
    """So many cores, of one processor each, on nodes of the same size."""
    return [Core((each - start) * nodes // count, (each,)) for each in range(start, start + count)]


def own(ranks: int, num_threads: int, found: Sequence[Core]) -> list[list[int]]:
    torch.set_num_threads(num_threads)
    return [own_processors(rank, ranks, found) for rank in range(ranks)]


def homes(ranks: int, num_threads: int, found: Sequence[Core]) -> list[list[int]]:
    torch.set_num_threads(num_threads)
    return [node_processors(rank, ranks, found) for rank in range(ranks)]


def test_lists_of_processors_are_read() -> None:
    assert processor_list("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]
    assert processor_list("\n") == []
    with pytest.raises(ValueError, match="some"):
        processor_list("some")


def test_one_node_with_two_processors_a_core(tmp_path: Path) -> None:
    folder = system(tmp_path, [range(8)], [[0, 4], [1, 5], [2, 6], [3, 7]])
    assert usable_cores(range(8), folder) == [Core(0, (each, each + 4)) for each in range(4)]


def test_nodes_whose_processors_alternate_are_put_in_order(tmp_path: Path) -> None:
    found = usable_cores(range(8), system(tmp_path, [[0, 2, 4, 6], [1, 3, 5, 7]]))
    assert [core.node for core in found] == [0] * 4 + [1] * 4
    assert own(2, 4, found) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert homes(2, 4, found) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_processors_that_are_offline_or_not_allowed_are_left_out(tmp_path: Path) -> None:
    folder = system(tmp_path, [range(4), range(4, 8)])
    assert [core.processors for core in usable_cores([2, 3, 6, 7], folder)] == [
        (2,),
        (3,),
        (6,),
        (7,),
    ]
    (tmp_path / "node/node1/cpulist").write_text("4-6\n")  # 7 is offline, and not allowed either
    found = usable_cores([2, 3, 4, 6], folder)
    assert [(core.node, *core.processors) for core in found] == [(0, 2), (0, 3), (1, 4), (1, 6)]
    assert own(2, 2, found) == [[2, 3], [4, 6]]


def test_one_of_two_processors_of_a_core_is_a_core(tmp_path: Path) -> None:
    folder = system(tmp_path, [range(4)], [[0, 2], [1, 3]])
    assert usable_cores([2, 3], folder) == [Core(0, (2,)), Core(0, (3,))]
    assert usable_cores([0, 2], folder) == [Core(0, (0, 2))]


def test_memory_without_processors_is_no_node(tmp_path: Path) -> None:
    folder = system(tmp_path, [range(4), []])
    assert {core.node for core in usable_cores(range(4), folder)} == {0}
    (folder / "node/node1/cpulist").write_text("what\n")
    assert len(usable_cores(range(4), folder)) == 4


def test_a_system_that_does_not_tell_has_no_cores_and_binds_nothing(tmp_path: Path) -> None:
    assert usable_cores(range(4), tmp_path) == []
    assert own(2, 2, []) == homes(2, 2, []) == [[], []]


def test_without_nodes_all_cores_are_of_one(tmp_path: Path) -> None:
    folder = system(tmp_path, [])
    topology = folder / "cpu/cpu0/topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text("0\n")
    assert usable_cores([0], folder) == [Core(0, (0,))]


def test_a_rank_on_each_of_two_nodes_keeps_to_its_own() -> None:
    found = cores(8, nodes=2)
    assert own(2, 4, found) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert own(4, 2, found) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert homes(4, 2, found) == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2


def test_a_rank_of_several_nodes_has_all_of_them() -> None:
    found = cores(16, nodes=4)
    assert homes(2, 8, found) == [[*range(8)], [*range(8, 16)]]
    assert homes(2, 6, found) == [[*range(8)], [*range(8, 16)]]  # cores are left over
    assert own(2, 6, found) == [[], []]


def test_one_rank_or_one_node_is_not_bound_to_nodes() -> None:
    assert homes(1, 8, cores(8, nodes=2)) == [[]]
    assert homes(2, 4, cores(8, nodes=1)) == [[], []]


def test_more_ranks_than_nodes_share_them_as_evenly_as_can_be() -> None:
    found = cores(16, nodes=2)
    assert homes(6, 2, found) == [[*range(8)]] * 3 + [[*range(8, 16)]] * 3
    assert own(6, 2, found) == [[]] * 6


def test_threads_that_do_not_fit_into_the_nodes_are_left_to_the_system() -> None:
    assert homes(3, 5, cores(16, nodes=2)) == [[]] * 3  # two of the three on a node of eight
    assert homes(20, 1, cores(16, nodes=2)) == [[]] * 20


def test_ranks_that_fill_cores_across_nodes_have_both() -> None:
    found = cores(6, nodes=2)
    assert own(3, 2, found) == [[0, 1], [2, 3], [4, 5]]
    assert homes(3, 2, found) == [[0, 1, 2], [*range(6)], [3, 4, 5]]


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("GYRFALCON_BIND", "0", False),
        ("GYRFALCON_BIND", "1", True),
        ("OMP_PROC_BIND", "close", False),
        ("GOMP_CPU_AFFINITY", "0-7", False),
        ("KMP_AFFINITY", "compact", False),
    ],
)
def test_a_user_who_binds_threads_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, bound: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert (unbound() == "") == bound
    assert bool(own(2, 4, cores(8, nodes=2))[0]) == bound
    assert bool(homes(2, 4, cores(8, nodes=2))[0]) == bound


def test_a_thread_is_kept_and_let_go_again() -> None:
    before = os.sched_getaffinity(0)
    with kept_to([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with kept_to([]):
        assert os.sched_getaffinity(0) == before


def test_processors_that_are_gone_bind_nothing_and_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = os.sched_getaffinity(0)
    with kept_to([4095]):
        assert os.sched_getaffinity(0) == before
    assert "not bound to processors [4095]" in caplog.text


def test_a_card_s_node_is_read_from_its_address_on_the_bus(tmp_path: Path) -> None:
    for address, text in (("0000:3b:00.0", "1\n"), ("0000:5e:00.0", "-1\n")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(text)
    assert node_of_pci("0000:3B:00.0", tmp_path) == 1
    assert node_of_pci("0000:5e:00.0", tmp_path) is None
    assert node_of_pci("0000:99:00.0", tmp_path) is None


class Card(Cpu):
    """A card at node 1."""

    on_host = False

    def numa_node(self) -> int | None:
        return 1


def test_a_rank_with_a_card_keeps_to_the_card_s_node(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(torch.device("cpu"))
    monkeypatch.setattr(threads, "usable_cores", lambda: cores(8, nodes=2))
    assert home_processors(card, 0, 1) == [4, 5, 6, 7]
    monkeypatch.setattr(threads, "usable_cores", lambda: cores(8, nodes=1))
    assert home_processors(card, 0, 1) == []
    monkeypatch.setattr(threads, "usable_cores", lambda: cores(8, nodes=2))
    monkeypatch.setenv("GYRFALCON_BIND", "0")
    assert home_processors(card, 0, 1) == []
