"""Attention beside the MLP's first linear in a captured graph, with streams that only keep count of what
waits for what. What a card must confirm is that the graph runs them at the same time.
"""

import contextlib
import inspect
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gpu_counts
import gpu_models
import pytest
import torch
from gpu_counts import META
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device.cuda import Cuda
from gyrfalcon.device.lookup import device_of
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.falcon import Falcon

triton_ops = pytest.importorskip("gyrfalcon.ops.triton.ops", reason="needs Triton")

WRITTEN = {"out", "q", "keys", "values", "parts", "logs", "total", "normed", "second_normed"}
READ = {("decode_kernel", name) for name in ("q", "keys", "values")} | {
    (kernel, name) for kernel in ("merge_kernel", "_sum_parts") for name in ("parts", "logs")
}


@dataclass(frozen=True)
class Launch:
    """A kernel in a stream's queue, behind the launches of each stream that its clock counts."""

    kernel: str
    stream: "Stream"
    clock: Counter["Stream"]
    tensors: dict[str, weakref.ref[Tensor]]
    storages: dict[str, Any]  # kept, so that no two are at one place

    def is_before(self, other: "Launch") -> bool:
        return other.clock[self.stream] >= self.clock[self.stream]

    def writes(self) -> set[int]:
        return {
            one._cdata
            for name, one in self.storages.items()
            if name in WRITTEN and (self.kernel, name) not in READ
        }

    def touches(self) -> set[int]:
        return {one._cdata for one in self.storages.values()}


class Stream:
    """As torch's, of a card that never runs."""

    def __init__(self, card: "FakeCard", priority: int = 0) -> None:
        self.card, self.priority = card, priority
        self.clock: Counter[Stream] = Counter()

    def wait_stream(self, other: "Stream") -> None:
        self.clock |= other.clock
        self.card.joined(self, other)


@dataclass
class FakeCard:
    """The streams, and what was launched on them."""

    capturing: bool = True
    launches: list[Launch] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    lost: list[str] = field(
        default_factory=list
    )  # memory that was free before its reader was joined

    def __post_init__(self) -> None:
        self.main = self.current = Stream(self)
        self.streams = [self.main]

    def stream(self, device: torch.device, priority: int = 0) -> Stream:
        self.streams.append(Stream(self, priority))
        return self.streams[-1]

    @contextlib.contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def joined(self, stream: Stream, other: Stream) -> None:
        self.waits.append("fork" if other is self.main else "join")
        if stream is not self.main:
            return
        of_main = {one for each in self._of(self.main) for one in each.writes()}
        for launch in self._of(other):
            self.lost += [
                f"{launch.kernel} {name}"
                for name, tensor in launch.tensors.items()
                if launch.storages[name]._cdata in of_main and tensor() is None
            ]
        for launch in self._of(other):
            launch.tensors.clear()  # read

    def _of(self, stream: Stream) -> list[Launch]:
        return [one for one in self.launches if one.stream is stream]

    def launch(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        given = dict(zip(inspect.signature(kernel.fn).parameters, arguments, strict=False)) | named
        tensors = {name: one for name, one in given.items() if isinstance(one, Tensor)}
        self.current.clock[self.current] += 1
        self.launches.append(
            Launch(
                kernel.fn.__name__,
                self.current,
                self.current.clock.copy(),
                {name: weakref.ref(one) for name, one in tensors.items()},
                {name: one.untyped_storage() for name, one in tensors.items()},
            )
        )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    """Torch's streams and Triton's launches are noted, and torch's meta device forks as a card."""
    from triton.runtime.interpreter import InterpretedFunction

    fake = FakeCard()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "stream", fake.use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda *each, **named: fake.launch(*each, **named)
    )
    monkeypatch.setattr(device_of(META), "side_by_side", Cuda.at(7).side_by_side, raising=False)
    return fake


def step(shape: str, precision: str = "bf16") -> tuple[Falcon, Batch, KVPool]:
    """A decoding step of two full-size layers without numbers."""
    config = gpu_models.config_of(shape, num_hidden_layers=2)
    quant = gpu_models.quant_word(precision)
    model = gpu_counts.model_of(config, torch.bfloat16, quant)
    pool = gpu_models.make_pool(config, gpu_models.BLOCK_SIZE, META, torch.bfloat16)
    return model, gpu_models.decode_batch(config, 1, 2048).on(META), pool


@pytest.mark.parametrize("precision", ["bf16", "int4"])
@pytest.mark.parametrize("shape", ["40b", "7b"])
def test_no_kernel_races_another_in_a_forked_step(
    shape: str, precision: str, card: FakeCard
) -> None:
    model, batch, pool = step(shape, precision)
    model(batch, pool)
    assert card.waits == ["fork", "join"] * 2
    [main, side] = card.streams
    assert side.priority < main.priority  # the lower, the more urgent
    of_side = [one.kernel for one in card.launches if one.stream is side]
    assert of_side == ["rotary_and_cache_kernel", "decode_kernel", "merge_kernel"] * 2
    unordered = [
        (one, other)
        for place, one in enumerate(card.launches)
        for other in card.launches[place + 1 :]
        if not one.is_before(other)
    ]
    assert {one.kernel for one, _ in unordered} == set(
        of_side
    )  # the others: the linear beside them
    for one, other in unordered:
        assert not one.writes() & other.touches(), (one.kernel, other.kernel)
        assert not one.touches() & other.writes(), (one.kernel, other.kernel)
    assert card.launches[-1].clock == Counter(one.stream for one in card.launches)  # all are joined


def test_what_a_branch_reads_is_kept_until_the_join(card: FakeCard) -> None:
    model, batch, pool = step("40b")
    model(batch, pool)
    assert card.lost == []


def test_memory_that_is_given_back_within_a_fork_is_noticed(card: FakeCard) -> None:
    """What the test above relies on: a branch that lets go of what it reads."""
    block, norm = step("40b")[0].blocks[0], torch.empty(1, 8192, device=META, dtype=torch.bfloat16)
    qkv = [triton_ops.linear(norm, block.attention.qkv.weight)]
    cache, slots = step("40b")[2].layers[0], torch.empty(1, dtype=torch.int64, device=META)
    device_of(META).side_by_side(
        lambda: triton_ops.rotary_and_cache(qkv.pop(), None, cache, slots),
        lambda: triton_ops.linear(norm, block.mlp.up.weight),
    )
    assert card.lost == ["rotary_and_cache_kernel qkv"]


def test_the_same_kernels_are_launched_with_and_without_a_fork(card: FakeCard) -> None:
    model, batch, pool = step("40b")
    model(batch, pool)
    forked = Counter(one.kernel for one in card.launches)
    card.launches.clear()
    card.waits.clear()
    card.capturing = False
    model(batch, pool)
    assert Counter(one.kernel for one in card.launches) == forked
    assert {one.stream for one in card.launches} == {card.main}
    assert card.waits == []


@pytest.mark.parametrize("failing", ["first", "second"])
def test_streams_are_joined_after_an_error_in_either(failing: str, card: FakeCard) -> None:
    def fail() -> Tensor:
        raise RuntimeError("out of shared memory")

    def succeed() -> Tensor:
        return torch.empty(1, device=META)

    first, second = (fail, succeed) if failing == "first" else (succeed, fail)
    with pytest.raises(RuntimeError, match="out of shared memory"):
        device_of(META).side_by_side(first, second)
    assert card.waits == ["fork", "join"]
    assert card.current is card.main
