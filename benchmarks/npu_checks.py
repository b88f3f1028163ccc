"""The checks of npu-gate that need no checkpoint of anyone's: the laws on tiny models of each variant, and
the guide's cases on a model with random weights.
"""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from checkpoints import make_model
from gpu_models import config_of, random_model
from gpu_speed import _case
from torch import Tensor

from gyrfalcon import Engine, EngineConfig, ops
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.lookup import kind_of
from gyrfalcon.device.protocol import Device
from gyrfalcon.engine import sampler
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.measure.roofline import Deployment, decode_bytes, percent_of_limit, prefill_flops
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.parallel.group import Vocabulary, solo

if TYPE_CHECKING:
    from npu_gate import Plan

KIND = "npu"
# Heads as wide as those of the real models, for which the operators are made; little else.
VARIANTS: dict[str, dict[str, object]] = {
    "rw-1b": dict(hidden_size=512, num_attention_heads=8),
    "rw-7b": dict(hidden_size=768, num_attention_heads=12),
    "7b": dict(hidden_size=4544, num_attention_heads=71, num_hidden_layers=1, ffn_hidden_size=256),
    "40b": dict(hidden_size=1024, num_attention_heads=16, num_kv_heads=2),
    "180B": dict(hidden_size=3712, num_attention_heads=58, num_kv_heads=2, num_hidden_layers=1)
    | dict[str, object](ffn_hidden_size=256),
    "11B": dict(hidden_size=1024, num_attention_heads=8, num_kv_heads=2, ffn_hidden_size=768),
}
PROMPT_LEN, DECODED = 150, 10  # tokens: more than a page, and those computed one at a time
# Relative L2 of logits: beside transformers in float32 on the CPU, and of two ways on the device.
LIMITS = {"fp32": (1e-4, 1e-5), "bf16": (0.05, 0.03)}


def laws(plan: "Plan") -> dict[str, Any]:
    """Tiny models of every variant: the device computes what transformers does; cached tokens give what
    whole prompts do, a batch what its prompts do alone, 2 ranks what 1 does.
    """
    found = {variant: _laws_of(variant, plan) for variant in VARIANTS}
    held = all(one["holds"] for laws in found.values() for one in laws.values())
    return {"passed": held, "dtype": plan.dtype, "variants": found}


@torch.no_grad()
def _laws_of(variant: str, plan: "Plan") -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 509, (2, PROMPT_LEN), generator=draw)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(variant, **VARIANTS[variant])  # type: ignore[arg-type]  # none is its seed
        model.save_pretrained(folder)
        wanted = model(ids).logits
        with _engine(folder, plan.dtype, 1) as engine:
            ours = engine.logits(ids).cpu()
            cached = engine.logits(ids, single_steps=DECODED).cpu()
            alone = torch.cat([engine.logits(row[None]).cpu() for row in ids])
        shared = None
        if kind_of(KIND).count() > 1 and not plan.emulated:
            with _engine(folder, plan.dtype, 2) as engine:
                shared = engine.logits(ids).cpu()
    far, near = LIMITS[plan.dtype]
    laws = {
        "as transformers": _law(ours, wanted, far),
        "cached as uncached": _law(cached, ours, near),
        "alone as batched": _law(alone, ours, near),
    }
    if shared is not None:
        laws["two ranks as one"] = _law(shared, ours, near)
    return laws


def _engine(folder: Path, dtype: str, ranks: int) -> Engine:
    config = EngineConfig(
        model=str(folder),
        device=KIND,
        dtype=dtype,
        world_size=ranks,
        max_len=2 * PROMPT_LEN,
        cache_memory=1 << 28,
        reuse_prefixes=False,
    )
    return Engine(config)


def _law(one: Tensor, other: Tensor, limit: float) -> dict[str, Any]:
    error = float((one - other).norm() / other.norm())
    return {"relative_l2": error, "limit": limit, "holds": error <= limit}


def random_weights(plan: "Plan") -> dict[str, Any]:
    """The guide's cases token by token at batch 1 on one card, through scheduler, model and sampler, with
    weights that nobody trained: of falcon-7b's shape in bf16.
    """
    device, config = kind_of(KIND).of_rank(0), config_of(plan.shape)
    dtype = torch.float32 if plan.emulated else torch.bfloat16
    max_len = 2 * max(plan.lengths)
    core = _core(config, device, dtype, max_len)
    lengths = list(itertools.product(plan.lengths, plan.lengths))
    _case(core, plan.lengths[0], 2)
    times = [_case(core, *case) for case in lengths]
    found: dict[str, Any] = {"passed": True, "shape": plan.shape, "cases": len(lengths)}
    return found if plan.emulated else found | _rates(config, device, dtype, lengths, times)


def _core(config: ModelConfig, device: Device, dtype: torch.dtype, max_len: int) -> EngineCore:
    """One rank's core around a model with random weights."""
    operations = ops.choose(device)
    model: Falcon = random_model(config, operations, device.torch_device, dtype=dtype)
    block_size = device.block_size(16)
    num_blocks = 1 + -(-max_len // block_size)
    shape = CacheShape(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)
    pool = KVPool(shape, num_blocks, device.torch_device, device.spare_blocks)
    scheduler = Scheduler(
        BlockAllocator(num_blocks, block_size, False), StepLimits(max_len, max_len, 1)
    )
    vocabulary = Vocabulary.shared(config.vocab_size, solo())
    choose = partial(sampler.greedy, vocabulary=vocabulary)
    runner = Graphs(model, choose, max_len, device, operations.CAPTURABLE)
    return EngineCore(runner, pool, scheduler, vocabulary, device, None)


def _rates(
    config: ModelConfig,
    device: Device,
    dtype: torch.dtype,
    lengths: Sequence[tuple[int, int]],
    times: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Milliseconds and percent of the card's limits, measured on the spot."""
    bandwidth, peak = device.measure_bandwidth(), device.measure_matrix_peak(dtype)
    deployment = Deployment(config, 1, dtype.itemsize, "none", on_cards=True)
    rows = []
    for (input_len, output_len), (first, whole) in zip(lengths, times, strict=True):
        per_token = 1000 * (whole - first) / (output_len - 1)
        needed = decode_bytes(deployment, 1, input_len + output_len / 2)
        flops = prefill_flops(deployment, 1, input_len)
        rows.append(
            {
                "in": input_len,
                "out": output_len,
                "first_token_ms": 1000 * first,
                "time_per_token_ms": per_token,
                "decode_percent_of_limit": percent_of_limit(needed, bandwidth, per_token),
                "prefill_percent_of_limit": percent_of_limit(flops, peak, 1000 * first),
            }
        )
    names = ("first_token_ms", "time_per_token_ms", "decode_percent_of_limit")
    return {
        "bandwidth_bytes_per_second": bandwidth,
        "matrix_flops_per_second": peak,
        "means": {name: statistics.fmean(row[name] for row in rows) for name in names},
        "rows": rows,
    }
