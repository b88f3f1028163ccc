"""The checks of gpu-gate: a model's laws on the device, and full-size layers against float32."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from checkpoints import make_checkpoint
from gpu_compile import one_at_a_time
from gpu_models import config_of, decode_batch, make_pool, prompt_batch, quant_word, random_model
from gpu_worker import Rows, Skipped
from torch import Tensor

from gyrfalcon import Engine, EngineConfig, SamplingParams, ops
from gyrfalcon.batch import Batch
from gyrfalcon.device.dtypes import WORD_OF_DTYPE
from gyrfalcon.device.lookup import device_of, kind_of
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.measure.mmlu.exam import open_exam
from gyrfalcon.measure.mmlu.prompts import HENDRYCKS, Exam
from gyrfalcon.measure.mmlu.run import answers
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import connect
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.torchrun_ranks import HERE
from gyrfalcon.request import check_finite

if TYPE_CHECKING:
    from gpu_plan import Plan

LARGEST_FP32_ERROR = 1e-4  # relative L2 of logits
# A layer's stream beside float32: least cosine, largest relative L2 of a token at the 95th percentile.
LAYER_LIMITS = {
    "bf16": (0.999, 0.05),
    "int8": (0.999, 0.05),
    "fp8": (0.99, 0.12),
    "int4": (0.95, 0.35),
}
# Of nestling's exam, which it passes with 84 %; chance is 25 %.
LEAST_RIGHT = {"bf16": 0.7, "int8": 0.7, "fp8": 0.65, "int4": 0.6}
KERNEL_LIMIT = LAYER_LIMITS["bf16"]  # against the product of the dequantised weights


def laws(plan: "Plan") -> Rows:
    """(2) Tiny models of every variant: the device computes what the CPU's definition does, a batch
    what each prompt does alone, graphs and overlapped steps what single kernels and steps do, also in
    the plan's dtype, 2 ranks what 1 does.
    """
    return {variant: partial(_laws_of, variant, plan) for variant in plan.variants}


def _laws_of(variant: str, plan: "Plan") -> dict[str, Any]:
    word = plan.device.type
    prompts, params = law_prompts(plan)
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name) / "model", variant)
        with _operators("reference"):
            expected, said = _run(folder, "cpu", prompts, params)
        logits, batched = _run(folder, word, prompts, params)
        with Engine(EngineConfig(model=str(folder), device=word, max_len=64)) as engine:
            alone = [output_ids(engine, [ids], params)[0] for ids in prompts]
        shared = _on_two_ranks(folder, word, prompts, params)
        same = {
            dtype: same_however_launched(folder, word, dtype, prompts, params)
            for dtype in dict.fromkeys((torch.float32, plan.dtype))
        }
    error = (logits - expected).norm() / expected.norm()
    found = {
        "logits": float(error) <= LARGEST_FP32_ERROR,
        "tokens": batched == said,
        "batch": batched == alone,
        "two_ranks": shared == batched,
        **{f"launches {WORD_OF_DTYPE[dtype]}": held for dtype, held in same.items()},
    }
    return {"passed": all(found.values()), **found}


def law_prompts(plan: "Plan") -> tuple[list[list[int]], SamplingParams]:
    """What the laws' models are asked."""
    prompts = [_prompt(length) for length in plan.law_prompts]
    return prompts, SamplingParams(max_new_tokens=plan.law_tokens, ignore_eos=True)


def same_however_launched(
    folder: Path, device: str, dtype: torch.dtype, prompts: list[list[int]], params: SamplingParams
) -> bool:
    """Whether graphs and overlapped steps give what single kernels and single steps give, in a dtype."""
    config = EngineConfig(
        model=str(folder),
        device=device,
        dtype=WORD_OF_DTYPE[dtype],
        max_len=64,
        reuse_prefixes=False,
    )
    with Engine(config) as engine:
        found = []
        for take_step in (Overlap(engine._core).step, engine._core.step):
            runner = engine._core.model_runner
            sizes = (engine.hardware.graph_sizes[-1], 0) if isinstance(runner, Graphs) else (0,)
            for largest in sizes:
                if isinstance(runner, Graphs):
                    runner.largest = largest
                engine._take_step = take_step
                found.append(output_ids(engine, prompts, params))
    return all(one == found[0] for one in found)


def _run(
    folder: Path, device: str, prompts: list[list[int]], params: SamplingParams
) -> tuple[Tensor, list[Any]]:
    with Engine(EngineConfig(model=str(folder), device=device, max_len=64)) as engine:
        logits = engine.logits(torch.tensor([prompts[-1]]))[0].cpu()
        return logits, output_ids(engine, prompts, params)


def output_ids(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[Any]:
    """What is generated for each prompt; NotFinite where one fails, so that two failures never agree."""
    outputs = engine.generate(prompts, params)
    check_finite(*(output.completions[0] for output in outputs))
    return [output.output_ids for output in outputs]


def _on_two_ranks(
    folder: Path, device: str, prompts: list[list[int]], params: SamplingParams
) -> list[Any]:
    """Two ranks as threads that share the device, over gloo. What both launch first, one of them compiles."""
    store = dist.HashStore()

    def rank(number: int) -> list[Any]:
        group = connect(
            store, number, 2, kind=kind_of(device), one_device=device == "cuda", host=HERE
        )
        config = EngineConfig(
            model=str(folder), device=device, max_len=64, cache_memory=1 << 26, seed=0
        )
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            return output_ids(engine, prompts, params)

    with one_at_a_time(), ThreadPoolExecutor(2) as pool:
        first, second = pool.map(rank, range(2))
    return first if first == second else []


@contextmanager
def _operators(name: str) -> Iterator[None]:
    """Engines made inside use these operators."""
    before = os.environ.get("GYRFALCON_OPS")
    os.environ["GYRFALCON_OPS"] = name
    try:
        yield
    finally:
        os.environ.pop("GYRFALCON_OPS")
        if before is not None:
            os.environ["GYRFALCON_OPS"] = before


def _prompt(length: int) -> list[int]:
    return torch.randint(
        20, 509, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()


def nestling(plan: "Plan") -> Rows:
    """(5) The shipped model's exam in every precision, against what the CPU's definition answers in
    float32: a broken kernel shows in the score.
    """
    return {precision: partial(_exam, precision, plan) for precision in plan.precisions}


def _exam(precision: str, plan: "Plan") -> dict[str, Any]:
    if not plan.exam_questions:
        raise Skipped("its prompts take hours in the interpreter")
    exam = Exam(
        tuple(open_exam("nestling", "test", limit=plan.exam_questions)), "test", HENDRYCKS, 5
    )
    config = EngineConfig(
        model="nestling",
        device=plan.device.type,
        dtype=WORD_OF_DTYPE[plan.dtype],
        quant=quant_word(precision),
        cache_memory=1 << 28,
    )
    with Engine(config) as engine:
        given = list(answers(engine, exam))
    right = sum(answer.pred == answer.truth for answer in given)
    held = right >= LEAST_RIGHT[precision] * len(given)
    return {"passed": held, "right": right, "questions": len(given)}


def layers(plan: "Plan") -> Rows:
    """(4) Four layers of the largest shape, token by token and layer by layer, against float32:
    with the original weights, and with the dequantised ones.
    """
    return {precision: partial(_layers, precision, plan) for precision in plan.precisions}


def _layers(precision: str, plan: "Plan") -> dict[str, Any]:
    config = config_of(plan.shapes[0], num_hidden_layers=2 if plan.device.type == "cpu" else 4)
    settings = {"dtype": plan.dtype, "quant": quant_word(precision), "exact": True}
    ours = _streams(
        random_model(config, ops.choose(device_of(plan.device)), plan.device, **settings), plan
    )
    plain = {**settings, "dtype": torch.float32}
    stood_for = _streams(random_model(config, reference, plan.device, **plain, restore=True), plan)
    given = {**plain, "quant": "none"}
    exact = _streams(random_model(config, reference, plan.device, **given), plan)
    found = {
        "beside_float32": _worst(ours, exact, LAYER_LIMITS[precision]),
        "beside_what_the_weights_stand_for": _worst(ours, stood_for, KERNEL_LIMIT),
    }
    return {"passed": all(one["held"] for one in found.values()), **found}


def _streams(model: Falcon, plan: "Plan") -> list[Tensor]:
    """The stream after each layer, float32 on the host: of a prompt, then of a decoded token."""
    config_tokens = 64 if plan.device.type == "cuda" else 24
    config = model_config(model, plan)
    dtype = model.embedding.dtype
    pool = make_pool(config, config_tokens + 16, plan.device, dtype)
    found = []
    for batch in (prompt_batch(config, config_tokens), decode_batch(config, 1, config_tokens + 1)):
        found += _walk(model, batch.on(plan.device), pool)
    device_of(plan.device).synchronise()
    return found


def model_config(model: Falcon, plan: "Plan") -> Any:
    return config_of(plan.shapes[0], num_hidden_layers=len(model.blocks))


@torch.inference_mode()
def _walk(model: Falcon, batch: Batch, pool: KVPool) -> list[Tensor]:
    x, part = model.embedding(batch.token_ids), None
    assert model.rotary is not None
    angles = model.rotary.angles(batch.positions, batch.rope_lengths)
    found = []
    for block, cache in zip(model.blocks, pool.layers, strict=True):
        x, part = block(x, part, angles, batch, cache)
        stream, _ = model.final_norm(x, part)
        found.append(stream.float().cpu())
    return found


def _worst(ours: list[Tensor], theirs: list[Tensor], limits: tuple[float, float]) -> dict[str, Any]:
    """The worst layer's figures, and whether they keep the limits."""
    cosines, errors = [], []
    for one, other in zip(ours, theirs, strict=True):
        cosines.append(float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)))
        relative = (one - other).norm(dim=-1) / other.norm(dim=-1)
        errors.append(float(relative.quantile(0.95)))
    least, largest = limits
    held = min(cosines) > least and max(errors) <= largest
    return {"cosine": min(cosines), "relative_l2_p95": max(errors), "held": held}
