"""Engines on a card that computes nothing (`gpu_stubs`), for what they launch: every number is 0, and every
token the first of the vocabulary.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from checkpoints import make_checkpoint
from gpu_checks import law_prompts, nestling, output_ids, same_however_launched
from gpu_counts import META
from gpu_plan import Plan
from gpu_stubs import StubCard, stubs
from gpu_tuner import fastest_tiles
from torch import Tensor

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.device import cuda
from gyrfalcon.device.lookup import device_of, kind_of
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.ranks import RankInfo, Ranks

# Of numbers, which torch's meta device has not.
READS = "tolist cpu item equal any all __float__ __int__ __bool__".split()


def walk_laws(plan: Plan, model: str) -> None:
    """Launches what the laws of the card's plan launch, on a stand-in called `model`: an engine of each
    variant and dtype, and one of each of two ranks without the other.
    """
    prompts, params = law_prompts(plan)
    with stubs(model), _is_the_card(), tempfile.TemporaryDirectory() as name:
        for variant in plan.variants:
            folder = make_checkpoint(Path(name) / variant, variant)
            for dtype in (torch.float32, plan.dtype):
                same_however_launched(folder, "cuda", dtype, prompts, params)
            config = EngineConfig(model=str(folder), device="cuda", max_len=64)
            with Engine(config) as engine:
                engine.logits(torch.tensor([prompts[-1]]))
            said: list[bytes] = []
            for rank in range(2):
                alone = Ranks(RankInfo(_Alone(rank, said), 0, 1))
                with Engine(config, alone) as engine:
                    output_ids(engine, prompts, params)


def walk_exam(plan: Plan, model: str) -> None:
    """The same for nestling's exam, by one question of each subject."""
    plan = replace(plan, exam_questions=1)
    with stubs(model), _is_the_card():
        for exam in nestling(plan).values():
            exam()


def walk_tuner(plan: Plan, model: str) -> None:
    """The same for the tuner, whose clock says nothing here."""
    plan, cache = replace(plan, device=META), SimpleNamespace(L2_cache_size=60 << 20)
    with (
        stubs(model),
        _is_the_card(),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=cache),
    ):
        for shape in plan.shapes:
            for precision in plan.precisions:
                fastest_tiles(plan, shape, precision)


class _Alone(Group):
    """One of two ranks, whose sums are its own: rank 0 runs first, and rank 1 is told what it said."""

    def __init__(self, rank: int, said: list[bytes]) -> None:
        super().__init__(rank, 2, None, capturable=False)
        self._said = said

    def broadcast(self, message: bytes = b"") -> bytes:
        if self.rank:
            return self._said.pop(0)
        self._said.append(message)
        return message


@contextmanager
def _is_the_card() -> Iterator[None]:
    """Engines for `cuda` are on torch's meta device, which `stubs` makes a card."""

    class OnMeta(StubCard):
        name = "cuda"

        @classmethod
        def count(cls) -> int:
            return 1

        @classmethod
        def at(cls, index: int) -> StubCard:
            device = device_of(META)
            assert isinstance(device, StubCard)
            return device

        @classmethod
        def of_rank(cls, local_rank: int) -> StubCard:
            return cls.at(local_rank)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(cuda, "KIND", OnMeta))
        for name in READS:
            read = _of_zeros(getattr(Tensor, name))
            patches.enter_context(mock.patch.object(Tensor, name, read))
        kind_of.cache_clear()
        try:
            yield
        finally:
            kind_of.cache_clear()


def _of_zeros(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a method gives for zeros, where a tensor has no numbers; `all` gives what it checks as true."""
    make = torch.ones if method is Tensor.all else torch.zeros

    def known(one: Any) -> Any:
        is_meta = isinstance(one, Tensor) and one.is_meta
        return make(one.shape, dtype=one.dtype) if is_meta else one

    return lambda *each: method(*map(known, each))
