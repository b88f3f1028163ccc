"""All blocks of a model in one native call: what the operations one after the other give, to the last bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import random_prompt
from torch import Tensor
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.native.library import library, why_not_native
from gyrfalcon.ops.reference import BlockWeights, RunBlocks
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.shared_memory import SharedMemory

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

from gyrfalcon.ops import native

# Of whole units and tiles of int4.
SHAPES: dict[str, dict[str, Any]] = {
    "7b": dict(hidden_size=192, num_attention_heads=3),
    "40b": dict(hidden_size=256, num_attention_heads=4, num_kv_heads=2),
    "11B": dict(num_attention_heads=4, num_kv_heads=2),
    "rw-1b": dict(num_attention_heads=2),
}
FUSE_BLOCKS = native.fuse_blocks


def logits(engine: Engine) -> Tensor:
    """Of three sequences of several lengths, in chunks, then token by token; and how likely the tokens are
    that follow on such prompts, of which the last logits alone are wanted.
    """
    ids = torch.tensor([random_prompt(70) for _ in range(3)])
    mask = torch.arange(70) >= torch.tensor([[0], [64], [30]])
    found = engine.logits(ids, mask.long(), single_steps=4)
    params = SamplingParams(max_new_tokens=3, logprobs=5)
    prompts = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    answers = engine.generate(prompts, params)
    likely = [token.logprob for one in answers for token in one.completions[0].logprobs or ()]
    assert len(likely) == 9
    return torch.cat([found.flatten(), torch.tensor(likely)])


def counted(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> list[int]:
    """Has models made with all blocks in one call, or without; the numbers of blocks of those that were."""
    found: list[int] = []

    def fuse_blocks(
        loop: RunBlocks,
        weights: Sequence[BlockWeights],
        memory: SharedMemory | None,
        heartbeat: Heartbeat,
    ) -> RunBlocks:
        made = FUSE_BLOCKS(loop, weights, memory, heartbeat) if wanted else loop
        found.append(0 if made is loop else len(weights))
        return made

    monkeypatch.setattr(native, "fuse_blocks", fuse_blocks)
    return found


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("variant", ["7b", "40b", "11B"])
def test_all_blocks_in_one_call_are_the_operations_one_by_one(
    variant: str, quant: str, world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, variant, num_hidden_layers=3, **SHAPES[variant])
    found = {}
    for wanted in (True, False):
        calls = counted(monkeypatch, wanted)
        found[wanted] = on_engines(
            world,
            folder,
            logits,
            one_machine=True,
            quant=quant,
            dtype="bf16",
            max_batch_tokens=32,
        )
        assert calls == [3 if wanted else 0] * world
    assert torch.equal(found[True], found[False])


@pytest.mark.parametrize(
    ("variant", "made", "settings"),
    [
        ("rw-1b", {}, {}),
        ("40b", {"bias": True}, {}),
        ("40b", {}, {"quant": "fp8"}),
        ("40b", {}, {"world": 2}),
    ],
)
def test_what_one_call_does_not_know_goes_by_its_operations(
    variant: str,
    made: dict[str, Any],
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequential blocks, biases, 8-bit floats, ranks that are summed over backend."""
    folder = make_checkpoint(tmp_path, variant, **SHAPES[variant], **made)
    calls = counted(monkeypatch, True)
    run: Callable[..., object] = on_engines
    run(settings.pop("world", 1), folder, logits, dtype="bf16", **settings)
    assert not any(calls)
