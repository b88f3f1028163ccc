"""The measurements of gpu-gate: the card's limits, decoding and prefill of full-size models with random
weights, and what part of a token is spent where.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from gyrfalcon.measure.roofline import Deployment, decode_bytes, percent_of_limit, prefill_flops
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Vocabulary, solo
from gyrfalcon.request import Request

if TYPE_CHECKING:
    from gpu_gate import Plan

SPARE_BYTES = 3 << 30  # what a step needs beside weights and cache
measured_limits: dict[str, float] = {}


def limits(plan: "Plan") -> dict[str, Any]:
    """Memory bandwidth (of a copy, read and written bytes, or of reading alone) and matrix peak, on the
    spot.
    """
    measured_limits["bandwidth_bytes_per_second"] = device_of(plan.device).measure_bandwidth()
    measured_limits["matrix_flops_per_second"] = device_of(plan.device).measure_matrix_peak(
        plan.dtype
    )
    return dict(measured_limits)


@dataclass(frozen=True)
class Prepared:
    """A model on the device, and what of it the limits are counted from."""

    model: Falcon
    config: ModelConfig
    layout: Deployment


def prepare(plan: "Plan", shape: str, precision: str) -> Prepared | str:
    """The model with random weights; or why it cannot be made here."""
    config, quant = config_of(shape), quant_word(precision)
    layout = _layout(config, plan, quant)
    refusal = _refusal(layout, quant, plan)
    return refusal or Prepared(_build(config, plan, quant), config, layout)


def speed(plan: "Plan", shape: str, precision: str) -> dict[str, Any]:
    """(3) One shape in one precision, if it fits."""
    made = prepare(plan, shape, precision)
    if isinstance(made, str):
        return {"skipped": made}
    model, config, layout = made.model, made.config, made.layout
    max_len = max(plan.contexts) + BLOCK_SIZE
    room = device_of(plan.device).memory()[0] - SPARE_BYTES
    token_bytes = decode_bytes(layout, 1, 1) - decode_bytes(layout, 1, 0)
    sizes = [size for size in plan.batches if size * max_len * token_bytes <= room]
    pool = make_pool(config, max(sizes) * max_len, plan.device, plan.dtype)
    decode = [_decode_row(model, pool, layout, size, plan, max_len) for size in sizes]
    prefill = [_prefill_row(model, pool, layout, length, plan) for length in plan.prompts]
    found = {
        "weights_bytes": decode_bytes(layout, 1, 0),
        "decode": list(itertools.chain.from_iterable(decode)),
        "skipped_batches": [size for size in plan.batches if size not in sizes],
        "prefill": prefill,
        "shares": _shares(model, pool, config, plan, max_len),
        "engine": _engine_row(model, pool, plan, max_len),
        "guide_sweep_computed": _computed_sweep(decode[0], prefill, plan),
    }
    del made, model, pool
    found["rank_of_4"] = _rank_of_four(config, plan, quant_word(precision))
    return found


def _layout(config: ModelConfig, plan: "Plan", quant: str, ranks: int = 1) -> Deployment:
    return Deployment(config, ranks, plan.dtype.itemsize, quant, on_cards=True)


def _refusal(layout: Deployment, quant: str, plan: "Plan") -> str | None:
    if plan.device.type == "cpu":
        return None
    torch.cuda.empty_cache()
    needed, free = decode_bytes(layout, 1, 0) + SPARE_BYTES, device_of(plan.device).memory()[0]
    return None if needed <= free else f"{needed / 1e9:.0f} GB wanted, {free / 1e9:.0f} GB free"


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
def _decode_row(
    model: Falcon, pool: KVPool, layout: Deployment, size: int, plan: "Plan", max_len: int
) -> list[dict[str, Any]]:
    """One batch size at every context: the captured step, launched again and again."""
    choose = _choose(layout.config)
    graph = DecodeGraph.of(model, pool, size, max_len, device_of(plan.device), choose)
    rows = []
    for context in plan.contexts:
        graph.run(decode_batch(layout.config, size, context))
        seconds = seconds_of(graph.replay, plan, plan.steps)
        percent = percent_of_limit(
            decode_bytes(layout, size, context),
            measured_limits["bandwidth_bytes_per_second"],
            1000 * seconds,
        )
        rows.append(
            {
                "batch": size,
                "context": context,
                "ms_per_token": 1000 * seconds,
                "tokens_per_second": size / seconds,
                "percent_of_bandwidth": percent,
            }
        )
    return rows


@torch.inference_mode()
def _prefill_row(
    model: Falcon, pool: KVPool, layout: Deployment, length: int, plan: "Plan"
) -> dict[str, Any]:
    """A prompt in one go, its tokens on the device: as a graph if it is one for the engine."""
    device, batch = device_of(plan.device), prompt_batch(layout.config, length)
    size = next((size for size in device.prompt_sizes if size >= length), None)
    if size is None:
        on_device = batch.on(plan.device)
        work: Callable[[], object] = partial(model, on_device, pool)
    else:
        graph = PromptGraph.of(model, pool, size, length, device, _choose(layout.config))
        graph.run(batch)
        work = graph.replay
    times = 1 if plan.device.type == "cpu" else 5
    seconds = seconds_of(work, plan, times)
    percent = percent_of_limit(
        prefill_flops(layout, 1, length),
        measured_limits["matrix_flops_per_second"],
        1000 * seconds,
    )
    return {"tokens": length, "first_token_ms": 1000 * seconds, "percent_of_peak": percent}


@torch.inference_mode()
def _shares(
    model: Falcon, pool: KVPool, config: ModelConfig, plan: "Plan", max_len: int
) -> dict[str, Any]:
    """Batch 1, the longest context: a token's products alone, its attention alone, all of it."""
    context = max(plan.contexts)
    graph = DecodeGraph.of(model, pool, 1, max_len, device_of(plan.device))
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
    for block, cache in zip(model.blocks, pool.layers, strict=True):
        out = block.attention.ops.attention(q, cache, batch, None)
    return out


def _device(model: Falcon) -> torch.device:
    return model.final_norm.each[0][0].device


def _core(model: Falcon, pool: KVPool, plan: "Plan", max_len: int) -> EngineCore:
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


def _engine_row(model: Falcon, pool: KVPool, plan: "Plan", max_len: int) -> dict[str, Any]:
    """Batch 1 through scheduler, model and sampler: what the host adds to a token."""
    core = _core(model, pool, plan, max_len)
    context, tokens = plan.contexts[0], 1 + plan.steps
    cases = [_case(core, context - tokens, tokens) for _ in range(1 + plan.rounds)][1:]
    per_token = statistics.median((whole - first) / (tokens - 1) for first, whole in cases)
    return {"context": context, "ms_per_token": 1000 * per_token}


def _computed_sweep(
    steps: list[dict[str, Any]], prefill: list[dict[str, Any]], plan: "Plan"
) -> dict[str, Any]:
    """The guide's averages over its cases, from the times of steps at a few contexts and of first
    tokens; between the contexts a step's time is taken from the line through its neighbours.
    """
    firsts = {row["tokens"]: row["first_token_ms"] for row in prefill}
    rows = []
    for input_len, output_len in itertools.product(plan.lengths, repeat=2):
        contexts = range(input_len + 1, input_len + output_len)
        decoding = sum(_step_ms(steps, context) for context in contexts)
        rows.append((firsts[input_len], decoding / (output_len - 1), firsts[input_len] + decoding))
    return _averages(rows)


def _averages(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    first, per_token, response = (statistics.fmean(column) for column in zip(*rows, strict=True))
    return {
        "cases": len(rows),
        "first_token_ms": first,
        "time_per_token_ms": per_token,
        "response_ms": response,
        "tokens_per_second": 1000 / per_token,
    }


def _step_ms(steps: list[dict[str, Any]], context: int) -> float:
    known = [(row["context"], row["ms_per_token"]) for row in steps]
    if len(known) == 1 or context <= known[0][0]:
        return known[0][1]
    right = next((i for i, (at, _) in enumerate(known) if at >= context), len(known) - 1)
    (before, low), (after, high) = known[right - 1], known[right]
    return low + (high - low) * (context - before) / (after - before)


@torch.inference_mode()
def _rank_of_four(config: ModelConfig, plan: "Plan", quant: str) -> dict[str, Any]:
    """What one of four ranks computes for a token at batch 1, without the sums over ranks."""
    if config.num_heads < 4:
        return {"skipped": "fewer than 4 heads"}
    model = _build(config, plan, quant, ranks=4)
    context = plan.contexts[0]
    pool = make_pool(config, context + BLOCK_SIZE, plan.device, plan.dtype, ranks=4)
    graph = DecodeGraph.of(model, pool, 1, context + BLOCK_SIZE, device_of(plan.device))
    graph.run(decode_batch(config, 1, context))
    seconds = seconds_of(graph.replay, plan, plan.steps)
    needed = decode_bytes(_layout(config, plan, quant, ranks=4), 1, context)
    percent = percent_of_limit(
        needed, measured_limits["bandwidth_bytes_per_second"], 1000 * seconds
    )
    return {"context": context, "ms_per_token": 1000 * seconds, "percent_of_bandwidth": percent}


def full_sweep(plan: "Plan", shape: str, precision: str) -> dict[str, Any]:
    """The guide's cases token by token at batch 1, through scheduler, model and sampler; beside the
    mean computed from a few steps, from which it may differ by 3 %.
    """
    made = prepare(plan, shape, precision)
    if isinstance(made, str):
        return {"skipped": made}
    model, config, layout = made.model, made.config, made.layout
    max_len = 2 * max(plan.lengths) + BLOCK_SIZE
    pool = make_pool(config, max_len, plan.device, plan.dtype)
    steps = _decode_row(model, pool, layout, 1, plan, max_len)
    prefill = [_prefill_row(model, pool, layout, length, plan) for length in plan.lengths]
    computed = _computed_sweep(steps, prefill, plan)
    core = _core(model, pool, plan, max_len)
    _case(core, plan.lengths[0], 2)
    rows = []
    for input_len, output_len in itertools.product(plan.lengths, repeat=2):
        first, whole = _case(core, input_len, output_len)
        rows.append((1000 * first, 1000 * (whole - first) / (output_len - 1), 1000 * whole))
    measured = _averages(rows)
    ratio = measured["time_per_token_ms"] / computed["time_per_token_ms"]
    agrees = abs(ratio - 1) <= 0.03 or plan.device.type == "cpu"
    return {
        "passed": agrees,
        "shape": shape,
        "precision": precision,
        "computed": computed,
        "measured": measured,
        "measured_over_computed": ratio,
    }
