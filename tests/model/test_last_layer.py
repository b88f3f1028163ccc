"""The last layer computes only what the wanted logits need; what it leaves out changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engines import OPERATORS, make_engine, random_prompt, small
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.model.falcon import BlockLoop, Falcon
from gyrfalcon.native.library import library
from gyrfalcon.ops import reference
from gyrfalcon.quant import Weight
from gyrfalcon.request import Chunk, Request, SamplingParams, Sequence

LAYERS = 3
# The tokens of each sequence in a step: the end of a prompt, its middle, one that decodes, all of a prompt.
STEPS = (range(5, 20), range(8, 12), range(30, 31), range(9))
WANTED = [14, 18, 19, 28]  # of their 29 tokens, the last of each


def batch_of(block_size: int, whole: int | None = None) -> Batch:
    """A step with STEPS; of sequence `whole` all rows are wanted."""
    chunks, first = [], 0
    for place, step in enumerate(STEPS):
        prompt = random_prompt(31)
        params = SamplingParams(prompt_logprobs=1 if place == whole else None)
        request = Request(place, tuple(prompt), params, seed=0)
        num_blocks = -(-step.stop // block_size)
        blocks = list(range(first, first + num_blocks))
        sequence = Sequence(request, 0, prompt, 60, blocks=blocks)
        first += num_blocks
        chunks.append(Chunk(sequence, step.start, step.stop))
    return Batch.build(chunks, block_size)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("variant", ["7b", "40b", "11B", "rw-1b"])
@pytest.mark.parametrize("whole", [None, 0])
def test_logits_and_cache_are_those_of_all_tokens(
    whole: int | None,
    variant: str,
    operators: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", operators)
    folder = small(tmp_path / "model", variant, num_hidden_layers=LAYERS)
    with make_engine(folder, dtype="fp32") as engine:
        model, pool = engine._core.model_runner, engine._core.pool
        assert isinstance(model, Falcon)
        batch = batch_of(pool.block_size, whole)
        found = {}
        for of_rows in (batch.of_rows, None):
            for layer in pool.layers:
                layer.k.fill_(0.5)
                layer.v.fill_(0.5)
            logits = model(replace(batch, of_rows=of_rows), pool)
            found[of_rows is None] = logits, [(one.k.clone(), one.v.clone()) for one in pool.layers]
    (logits, caches), (every, expected) = found[False], found[True]
    assert batch.rows.tolist() == (WANTED if whole is None else [*range(15), *WANTED[1:]])
    assert (len(logits), len(every)) == (len(batch.rows), sum(map(len, STEPS)))
    torch.testing.assert_close(logits, every[batch.rows], rtol=1e-4, atol=1e-5)
    for (keys, values), (expected_keys, expected_values) in zip(caches, expected, strict=True):
        assert torch.equal(keys, expected_keys)
        assert torch.equal(values, expected_values)


@pytest.mark.parametrize("variant", ["40b", "rw-1b"])
def test_its_other_products_have_the_wanted_tokens_alone(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", "reference")
    linear = reference.linear
    counts: list[int] = []

    def counted(x: Tensor, weight: Weight, *rest: object) -> Tensor:
        counts.append(len(x))
        return linear(x, weight, *rest)  # type: ignore[arg-type]

    with make_engine(small(tmp_path / "model", variant, num_hidden_layers=LAYERS)) as engine:
        monkeypatch.setattr(reference, "linear", counted)
        batch = batch_of(engine._core.pool.block_size)
        engine._core.model_runner(batch, engine._core.pool)
    every, wanted = sum(map(len, STEPS)), len(WANTED)
    head = [wanted]
    assert counts == [every] * 4 * (LAYERS - 1) + [every, *[wanted] * 3] + head


@pytest.mark.skipif(library() is None, reason="the native kernels are not built")
def test_native_linears_in_one_call_have_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels read as many rows of each input, whatever it has."""
    from gyrfalcon.ops import native

    monkeypatch.setenv("GYRFALCON_OPS", "native")
    linears = native.linears
    counts: list[set[int]] = []

    def counted(*each: reference.LinearCall) -> list[Tensor]:
        counts.append({len(one.x) for one in each})
        return linears(*each)

    monkeypatch.setattr(native, "linears", counted)
    with make_engine(small(tmp_path / "model", num_hidden_layers=LAYERS)) as engine:
        model = engine._core.model_runner
        assert isinstance(model, Falcon)
        by_blocks = replace(model, run_blocks=BlockLoop(model.blocks))
        by_blocks(batch_of(engine._core.pool.block_size), engine._core.pool)
    assert counts
    assert all(len(each) == 1 for each in counts)


def test_steps_that_only_decode_are_as_before() -> None:
    sequence = Sequence(Request(0, (5, 6), SamplingParams(), seed=0), 0, [5, 6, 7], 9, blocks=[0])
    assert Batch.build([Chunk(sequence, 2, 3)], 16).of_rows is None
