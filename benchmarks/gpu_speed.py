"""The measurements of gpu-gate: the card's limits, decoding and prefill of full-size models with random
weights, and what part of a token is spent where.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_models import (
    BLOCK_SIZE,
    config_of,
    decode_batch,
    make_pool,
    prompt_batch,
    quant_word,
    random_model,
)
from gpu_sweep import averages, computed_sweep
from gpu_worker import Rows, Skipped
from torch import Tensor

from gyrfalcon import SamplingParams, ops
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine import sampler
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.engine.decode_graphs import DecodeGraph
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.overlap import stepper
from gyrfalcon.engine.prompt_graphs import PromptGraph
from gyrfalcon.engine.rank_messages import Add
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.measure.roofline import Deployment, decode_bytes, prefill_flops
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Vocabulary, solo
from gyrfalcon.request import Request

if TYPE_CHECKING:
    from gpu_plan import Plan

SPARE_BYTES = 3 << 30  # what a step needs beside weights and cache


def limits(plan: "Plan") -> Rows:
    """Memory bandwidth (of a copy, read and written bytes, or of reading alone) and matrix peak, on the
    spot.
    """
    device = device_of(plan.device)

    def measured() -> dict[str, Any]:
        if device.on_host:
            raise Skipped("times of a card only")
        return {
            "bandwidth_bytes_per_second": device.measure_bandwidth(),
            "matrix_flops_per_second": device.measure_matrix_peak(plan.dtype),
        }

    return {"card": measured}


@dataclass(frozen=True)
class Prepared:
    """A model on the device with a cache, and what the limits are counted from."""

    model: Falcon
    config: ModelConfig
    layout: Deployment
    pool: KVPool
    sizes: Sequence[int]  # batches that the cache has room for
    max_len: int


def timed_steps(plan: "Plan") -> dict[str, Callable[["Plan"], Rows]]:
    """All that time models of full size."""
    return {
        **{
            f"speed {shape} {precision}": partial(speed, shape=shape, precision=precision)
            for shape in plan.shapes
            for precision in plan.timed
        },
        "speed shard": shard,
    }


def speed(plan: "Plan", shape: str, precision: str) -> Rows:
    """(3) One shape in one precision, if it fits: its rows are of one model, made for the first."""
    prepared = cache(partial(prepare, plan, shape, precision))
    return {
        **{f"decode {size}": partial(_decode, plan, prepared, size) for size in plan.batches},
        **{
            f"prefill {length}": partial(_prefill, plan, prepared, length)
            for length in plan.prompts
        },
        "shares": lambda: _shares(prepared(), plan),
        "engine": lambda: _engine_row(prepared(), plan),
    }


def prepare(plan: "Plan", shape: str, precision: str) -> Prepared:
    """A model of random weights with a cache; Skipped where it does not fit."""
    config, quant = config_of(shape), quant_word(precision)
    layout = _layout(config, plan, quant)
    _require_room(layout, plan)
    model = _build(config, plan, quant)
    max_len = max(plan.contexts) + BLOCK_SIZE
    room = device_of(plan.device).memory()[0] - SPARE_BYTES
    token_bytes = decode_bytes(layout, 1, 1) - decode_bytes(layout, 1, 0)
    sizes = [size for size in plan.batches if size * max_len * token_bytes <= room]
    pool = make_pool(config, max(sizes) * max_len, plan.device, plan.dtype)
    return Prepared(model, config, layout, pool, sizes, max_len)


def _decode(plan: "Plan", prepared: Callable[[], Prepared], size: int) -> dict[str, Any]:
    made = prepared()
    if size not in made.sizes:
        raise Skipped("no memory for its cache")
    return {"batch": size, "contexts": decode_rows(made, size, plan)}


def _prefill(plan: "Plan", prepared: Callable[[], Prepared], length: int) -> dict[str, Any]:
    return _prefill_row(prepared(), length, plan)


def _layout(config: ModelConfig, plan: "Plan", quant: str, ranks: int = 1) -> Deployment:
    return Deployment(config, ranks, plan.dtype.itemsize, quant, on_cards=True)


def _require_room(layout: Deployment, plan: "Plan") -> None:
    """Skipped where the weights do not fit."""
    if plan.device.type == "cpu":
        return
    torch.cuda.empty_cache()
    needed, free = decode_bytes(layout, 1, 0) + SPARE_BYTES, device_of(plan.device).memory()[0]
    if needed > free:
        raise Skipped(f"{needed / 1e9:.0f} GB wanted, {free / 1e9:.0f} GB free")


def _build(config: ModelConfig, plan: "Plan", quant: str, ranks: int = 1) -> Falcon:
    return random_model(
        config,
        ops.choose(device_of(plan.device)),
        plan.device,
        dtype=plan.dtype,
        quant=quant,
        ranks=ranks,
    )


def _choose(config: ModelConfig) -> sampler.Choose:
    """What picks the most likely token in a graph."""
    return partial(sampler.greedy, vocabulary=Vocabulary.shared(config.vocab_size, solo()))


def seconds_of(work: Callable[[], object], plan: "Plan", times: int) -> float:
    """The median over rounds of the mean of `times` runs, launched one after the other."""
    work()
    means = []
    for _ in range(plan.rounds):
        device_of(plan.device).synchronise()
        start = time.perf_counter()
        for _ in range(times):
            work()
        device_of(plan.device).synchronise()
        means.append((time.perf_counter() - start) / times)
    return statistics.median(means)


@torch.inference_mode()
def decode_rows(made: Prepared, size: int, plan: "Plan") -> list[dict[str, Any]]:
    """One batch size at every context: the captured step, launched again and again."""
    choose = _choose(made.config)
    device = device_of(plan.device)
    graph = DecodeGraph.of(made.model, made.pool, size, made.max_len, device, choose)
    rows = []
    for context in plan.contexts:
        graph.run(decode_batch(made.config, size, context))
        seconds = seconds_of(graph.replay, plan, plan.steps)
        rows.append(
            {
                "context": context,
                "ms_per_token": 1000 * seconds,
                "tokens_per_second": size / seconds,
                "bytes": decode_bytes(made.layout, size, context),
            }
        )
    return rows


@torch.inference_mode()
def _prefill_row(made: Prepared, length: int, plan: "Plan") -> dict[str, Any]:
    """A prompt in one go, its tokens on the device: as a graph if it is one for the engine."""
    model, pool = made.model, made.pool
    device, batch = device_of(plan.device), prompt_batch(made.config, length)
    size = next((size for size in device.prompt_sizes if size >= length), None)
    if size is None:
        on_device = batch.on(plan.device)
        work: Callable[[], object] = partial(model, on_device, pool)
    else:
        graph = PromptGraph.of(model, pool, size, length, device, _choose(made.config))
        graph.run(batch)
        work = graph.replay
    times = 1 if plan.device.type == "cpu" else 5
    seconds = seconds_of(work, plan, times)
    flops = prefill_flops(made.layout, 1, length)
    return {"tokens": length, "first_token_ms": 1000 * seconds, "flops": flops}


@torch.inference_mode()
def _shares(made: Prepared, plan: "Plan") -> dict[str, Any]:
    """Batch 1, the longest context: a token's products alone, its attention alone, all of it."""
    model, pool, config = made.model, made.pool, made.config
    context = max(plan.contexts)
    graph = DecodeGraph.of(model, pool, 1, made.max_len, device_of(plan.device))
    graph.run(decode_batch(config, 1, context))
    batch = decode_batch(config, 1, context).on(plan.device)
    products = device_of(plan.device).capture(lambda: _products(model, config))
    attention = device_of(plan.device).capture(lambda: _attention(model, pool, batch, config))
    whole, alone, attending = (
        seconds_of(work, plan, plan.steps) for work in (graph.replay, products, attention)
    )
    found = {
        "context": context,
        "token_ms": 1000 * whole,
        "products_ms": 1000 * alone,
        "attention_ms": 1000 * attending,
        "outside_percent": 100 * (1 - (alone + attending) / whole),
    }
    if isinstance(model.blocks[0].mlp.up.weight, Tensor):
        with_torch = device_of(plan.device).capture(
            lambda: _products(model, config, reference.linear)
        )
        found["products_by_torch_ms"] = 1000 * seconds_of(with_torch, plan, plan.steps)
    return found


def _products(
    model: Falcon, config: ModelConfig, linear: Callable[..., Tensor] | None = None
) -> Tensor:
    """The matrix products of one token, nothing between them."""
    x = torch.ones(1, config.hidden_size, dtype=model.embedding.dtype, device=_device(model))
    for block in model.blocks:
        multiply = linear or block.attention.ops.linear
        attention, mlp = block.attention, block.mlp
        fused = multiply(x, attention.qkv.weight)
        multiply(fused[:, : attention.dense.weight.shape[1]], attention.dense.weight)
        multiply(multiply(x, mlp.up.weight, None, mlp.up.activation), mlp.down.weight)
    return (linear or model.head.ops.linear)(x, model.head.weight)


def _attention(model: Falcon, pool: KVPool, batch: Any, config: ModelConfig) -> Tensor:
    q = torch.ones(
        1,
        config.num_heads,
        config.head_dim,
        dtype=model.embedding.dtype,
        device=_device(model),
    )
    for block, layer in zip(model.blocks, pool.layers, strict=True):
        out = block.attention.ops.attention(q, layer, batch, None)
    return out


def _device(model: Falcon) -> torch.device:
    return model.final_norm.each[0][0].device


def _core(made: Prepared, plan: "Plan") -> EngineCore:
    model, pool, max_len = made.model, made.pool, made.max_len
    allocator = BlockAllocator(len(pool.layers[0].k), pool.block_size, False)
    scheduler = Scheduler(allocator, StepLimits(max_len, max_len, 1))
    vocabulary = Vocabulary.shared(model.head.weight.shape[0], solo())
    choose = partial(sampler.greedy, vocabulary=vocabulary)
    run = Graphs(model, choose, max_len, device_of(plan.device))
    return EngineCore(run, pool, scheduler, vocabulary, device_of(plan.device), None)


def _case(core: EngineCore, input_len: int, output_len: int) -> tuple[float, float]:
    """Seconds to the first token, and of all tokens, through scheduler, model and sampler."""
    params = SamplingParams(max_new_tokens=output_len, ignore_eos=True)
    start = time.perf_counter()
    core.handle(Add(Request(0, tuple(range(100, 100 + input_len)), params, seed=0)))
    take_step, given = stepper(core), 0
    while not given:
        given += len(take_step(input_len))
    first = time.perf_counter() - start
    while given < output_len:
        given += len(take_step(input_len))
    return first, time.perf_counter() - start


def _engine_row(made: Prepared, plan: "Plan") -> dict[str, Any]:
    """Batch 1 through scheduler, model and sampler: what the host adds to a token."""
    core = _core(made, plan)
    context, tokens = plan.contexts[0], 1 + plan.steps
    cases = [_case(core, context - tokens, tokens) for _ in range(1 + plan.rounds)][1:]
    per_token = statistics.median((whole - first) / (tokens - 1) for first, whole in cases)
    return {"context": context, "ms_per_token": 1000 * per_token}


def shard(plan: "Plan") -> Rows:
    """What one of four ranks computes for a token at batch 1, without the sums over ranks."""
    return {
        f"{shape} {precision}": partial(_rank_of_four, plan, shape, precision)
        for shape in plan.shapes
        for precision in plan.timed
    }


@torch.inference_mode()
def _rank_of_four(plan: "Plan", shape: str, precision: str) -> dict[str, Any]:
    config, quant = config_of(shape), quant_word(precision)
    layout = _layout(config, plan, quant, ranks=4)
    _require_room(layout, plan)
    model = _build(config, plan, quant, ranks=4)
    context = plan.contexts[0]
    pool = make_pool(config, context + BLOCK_SIZE, plan.device, plan.dtype, ranks=4)
    graph = DecodeGraph.of(model, pool, 1, context + BLOCK_SIZE, device_of(plan.device))
    graph.run(decode_batch(config, 1, context))
    seconds = seconds_of(graph.replay, plan, plan.steps)
    return {
        "context": context,
        "ms_per_token": 1000 * seconds,
        "bytes": decode_bytes(layout, 1, context),
    }


def full_sweep(plan: "Plan", shape: str, precision: str) -> Rows:
    """The guide's cases token by token at batch 1, through scheduler, model and sampler; beside the
    mean computed from a few steps, from which it may differ by 3 %.
    """
    return {f"{shape} {precision}": partial(_full_sweep, plan, shape, precision)}


def _full_sweep(plan: "Plan", shape: str, precision: str) -> dict[str, Any]:
    longest = 2 * max(plan.lengths)
    made = prepare(
        replace(plan, batches=(1,), contexts=(*plan.contexts, longest)), shape, precision
    )
    steps = decode_rows(made, 1, plan)
    firsts = {length: _prefill_row(made, length, plan)["first_token_ms"] for length in plan.lengths}
    computed = computed_sweep(steps, firsts, plan.lengths)
    core = _core(made, plan)
    _case(core, plan.lengths[0], 2)
    rows = []
    for input_len, output_len in itertools.product(plan.lengths, repeat=2):
        first, whole = _case(core, input_len, output_len)
        rows.append((1000 * first, 1000 * (whole - first) / (output_len - 1), 1000 * whole))
    measured = averages(rows)
    ratio = measured["time_per_token_ms"] / computed["time_per_token_ms"]
    agrees = abs(ratio - 1) <= 0.03 or plan.device.type == "cpu"
    return {
        "passed": agrees,
        "computed": computed,
        "measured": measured,
        "measured_over_computed": ratio,
    }
