"""Fits the shares of the peaks that engines reach, for `gyrfalcon plan`.

    python tools/fit_efficiencies.py [--check]

Reads src/gyrfalcon/plan/observations.json and benchmarks/results/cpu-peers*.json; writes
src/gyrfalcon/plan/efficiencies.json and the tables of docs/performance-model.md. With --check it writes
nothing and ends with 1 where they would change.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

from gyrfalcon.config import ModelConfig
from gyrfalcon.measure.speed.baseline import GUIDE_LENGTHS
from gyrfalcon.model.architectures import config_from_json
from gyrfalcon.plan.efficiencies import ENGINE, FORMAT, VERSION
from gyrfalcon.plan.fit import (
    Key,
    LeftOut,
    Observation,
    Shares,
    TimedStep,
    by_key,
    fit,
    leave_one_out,
    median_error,
)
from gyrfalcon.plan.hardware import Hardware, known_hardware
from gyrfalcon.plan.models import PUBLISHED
from gyrfalcon.plan.prediction import (
    HOST_SECONDS,
    HOST_SEQUENCE_SECONDS,
    collective_seconds,
)
from gyrfalcon.plan.step_load import StepLoad, decoding_load, load_of
from gyrfalcon.plan.work import Work, work_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gyrfalcon" / "plan"
PAGE = ROOT / "docs" / "performance-model.md"
BEGIN, END = "<!-- fit: begin -->", "<!-- fit: end -->"
MISSED = 0.15  # of an observation
CHUNK = 512  # prompt tokens that gyrfalcon computes in a step
THEIR_LAUNCHES = 10  # kernels of a layer that other engines launch on cards, about
CALLED_BY_HOST = 30e-6  # an all-reduce that the host launches: 20 to 50 µs (H100, NCCL)
# Llama-2's three matrices of the MLP have as many weights as two that are half as wide again.
OTHER_MODELS: Mapping[str, Mapping[str, object]] = {
    "A": dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, num_kv_heads=4),
    "llama-2-7b": dict(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=16512,
        vocab_size=32000,
    ),
    "llama-2-70b": dict(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_kv_heads=8,
        ffn_hidden_size=43008,
        vocab_size=32000,
    ),
}


def observations() -> list[Observation]:
    """All that are known, those of the guide first."""
    raw = json.loads((PACKAGE / "observations.json").read_text("utf-8"))["observations"]
    found: list[Observation] = []
    for one in raw:
        found += _of_table(one) if "table" in one else [_published(one)]
    for path in sorted((ROOT / "benchmarks" / "results").glob("cpu-peers*.json")):
        found += _of_peers(path)
    return found


def _config(name: str) -> ModelConfig:
    if name == "B":
        return config_from_json({**PUBLISHED["falcon-7b"], "num_hidden_layers": 8})
    if name in PUBLISHED:
        return config_from_json(PUBLISHED[name])
    new = {"model_type": "falcon", "new_decoder_architecture": True, "vocab_size": 65024}
    return config_from_json({**new, **OTHER_MODELS[name]})


def _published(raw: Mapping[str, Any]) -> Observation:
    """A figure of a card."""
    hardware, cards = known_hardware()[raw["platform"]], raw["cards"]
    precision = raw["precision"]
    quant = precision if precision in ("int8", "int4", "fp8") else "none"
    config, dtype = _config(raw["model"]), "bf16" if quant != "none" else precision
    work = work_of(config, cards, dtype, quant, on_cards=True)
    link = hardware.link
    if raw["engine"] == "the guide's":  # keys and values of all heads, two all-reduces a layer
        heads = config.num_heads if cards == 1 else config.num_heads // cards
        keys = 2 * 2 * heads * config.head_dim * config.num_layers
        reduces = 2 * config.num_layers * (cards > 1)
        work = replace(work, key_bytes=keys, all_reduces=reduces)
        link = replace(link, latency_seconds=CALLED_BY_HOST)
    rates = replace(hardware, link=link)
    loads = _loads(raw)
    peak = hardware.peak(raw.get("peak", dtype))
    steps = tuple(_card_step(work, rates, load, peak, weight) for load, weight in loads)
    name = f"{raw['model']} {precision}, {cards} × {raw['platform']}, {raw['phase']}"
    if "input" in raw:
        name += f", batch {raw['batch']}, {raw['input']} tokens"
    key = Key(raw["platform"], raw["engine"], precision)
    return Observation(key, name, steps, _seconds(raw), raw["source"])


def _seconds(raw: Mapping[str, Any]) -> float:
    if "seconds" in raw:
        return float(raw["seconds"])
    if "per_second" in raw:
        return 1 / float(raw["per_second"])
    return float(raw["batch"] * raw["output"] / (raw["per_second_and_card"] * raw["cards"]))


def _loads(raw: Mapping[str, Any]) -> list[tuple[StepLoad, float]]:
    """The steps of a figure and the weight of each."""
    if raw.get("guide"):  # means over its 36 cases
        if raw["phase"] == "first":
            return [(load_of([range(n)]), 1 / len(GUIDE_LENGTHS)) for n in GUIDE_LENGTHS]
        cases = list(product(GUIDE_LENGTHS, GUIDE_LENGTHS))
        return [(decoding_load(1, n + out // 2), 1 / len(cases)) for n, out in cases]
    batch, tokens = raw.get("batch", 1), raw.get("input", 128)
    if raw["phase"] == "first":
        return [(load_of([range(tokens)] * batch), 1.0)]
    context = tokens + raw.get("output", 128) // 2
    decoding = decoding_load(batch, batch * context)
    if raw["phase"] == "decode":
        return [(decoding, 1.0)]
    return [(load_of([range(tokens)] * batch), 1.0), (decoding, float(raw["output"] - 1))]


def _card_step(
    work: Work, hardware: Hardware, load: StepLoad, peak: float, weight: float
) -> TimedStep:
    fixed = work.launches(THEIR_LAUNCHES) * hardware.launch_seconds
    return TimedStep(
        work.bytes_read(load) / hardware.bytes_per_second,
        work.flops(load) / peak,
        load.tokens,
        fixed + collective_seconds(work, hardware, load.tokens),
        weight,
    )


def _cpu_step(
    work: Work, load: StepLoad, rates: tuple[float, float], ours: bool, weight: float = 1.0
) -> TimedStep:
    host = HOST_SECONDS + HOST_SEQUENCE_SECONDS * max(load.decoding - 1, 0) if ours else 0.0
    moved, computed = work.bytes_read(load) / rates[0], work.flops(load) / rates[1]
    return TimedStep(moved, computed, load.tokens, host, weight)


def _prompts(batch: int, prompt_len: int) -> list[StepLoad]:
    """Prompts in chunks, one after the other, as gyrfalcon computes them; others may take more at once."""
    chunks = [range(n, min(n + CHUNK, prompt_len)) for n in range(0, prompt_len, CHUNK)]
    return [load_of([chunk]) for chunk in chunks] * batch


def _of_table(raw: Mapping[str, Any]) -> Iterable[Observation]:
    """Rows of engines on one processor: a prompt of 512, then decoding one sequence and eight."""
    rates = raw["bytes_per_second"], raw["flops_per_second"]
    for row in raw["table"]:
        quant = row["precision"] if row["precision"] != "bf16" else "none"
        work = work_of(_config(row["model"]), 1, "bf16", quant, on_cards=False)
        key = Key(raw["platform"], row["engine"], row["precision"])
        cases = {
            "first": (_prompts(1, 512), 1.0),
            "decode": ([decoding_load(1, 576)], 1.0),
            "per_second_of_8": ([decoding_load(8, 8 * 576)], 8.0),
        }
        for name, (loads, tokens) in cases.items():
            if name in row:
                steps = tuple(_cpu_step(work, load, rates, ours=False) for load in loads)
                seconds = tokens / row[name] if name == "per_second_of_8" else row[name]
                shown = f"{row['model']} {row['precision']}, {raw['machine']}, {name}"
                yield Observation(key, shown, steps, seconds, raw["source"])


def _of_peers(path: Path) -> Iterable[Observation]:
    """Medians over the rounds of a result of benchmarks/cpu_peers.py: prompts, and a decoding step."""
    document = json.loads(path.read_text("utf-8"))
    platform = "cpu-" + document["versions"]["gyrfalcon"]["operators"].removeprefix("native ")
    turns: dict[str, list[Mapping[str, Any]]] = {}
    for turn in document["turns"]:
        if turn["failed"] is None and len(turn.get("ends", ())) > 1:
            turns.setdefault(json.dumps([turn["case"], turn["engine"]]), []).append(turn)
    for same in turns.values():
        case, engine, ours = same[0]["case"], same[0]["engine"], same[0]["engine"] == ENGINE
        config = document["models"][case["model"]]["config"]
        quant = case["precision"] if case["precision"] != "bf16" else "none"
        work = work_of(_peers_config(config), 1, "bf16", quant, on_cards=False)
        rates = _rates([turn["limits"] for turn in same])
        batch, prompt = case["batch"], case["prompt_len"]
        gaps = [b - a for turn in same for a, b in pairwise(turn["ends"])]
        decoding = decoding_load(batch, batch * (prompt + case["steps"] // 2))
        phases = (
            ("prompts", _prompts(batch, prompt), median(turn["ends"][0] for turn in same)),
            ("a step", [decoding], median(gaps)),
        )
        for phase, loads, seconds in phases:
            steps = tuple(_cpu_step(work, load, rates, ours) for load in loads)
            name = f"{case['model']} {case['precision']}, {batch} × {prompt}, {phase}"
            key = Key(platform, engine, case["precision"])
            yield Observation(key, name, steps, seconds, f"benchmarks/results/{path.name}")


def _rates(limits: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Bytes a second, and float32 multiply-adds: of the instruction where it was measured, else torch's."""
    peaks = [
        one.get("float32_flops_per_second") or one["matrix_flops_per_second"] for one in limits
    ]
    return median(one["bandwidth_bytes_per_second"] for one in limits), median(peaks)


def _peers_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The model of a result, which holds our words; positions do not count here."""
    return ModelConfig(**{**raw, "rope": None})


def document(found: Sequence[Observation]) -> tuple[dict[str, object], list[LeftOut]]:
    """The content of efficiencies.json, and every observation predicted from the others."""
    fitted, rows = [], list[LeftOut]()
    for key, same in by_key(found).items():
        left_out = leave_one_out(same)
        rows += left_out
        fitted.append({**key._asdict(), **_plain(fit(same)), **_errors(left_out)})
    return {"format": FORMAT, "version": VERSION, "fitted": fitted}, rows


def _plain(shares: Shares) -> dict[str, object]:
    names = ("bytes", "flops", "few_flops")
    values = (shares.bytes, shares.flops, shares.few_flops)
    return {
        **{
            name: None if value is None else round(value, 3)
            for name, value in zip(names, values, strict=True)
        },
        "rows": shares.num_rows,
    }


def _errors(rows: Sequence[LeftOut]) -> dict[str, object]:
    """In percent; null where a single observation was fitted."""
    errors = [abs(row.error) for row in rows if row.error is not None]
    middle = median_error(rows)
    return {
        "median_error": None if middle is None else round(100 * middle, 1),
        "worst_error": round(100 * max(errors), 1) if errors else None,
    }


def tables(plain: Mapping[str, Any], rows: Sequence[LeftOut]) -> str:
    """The page's part: what was fitted, how well, and each miss."""
    ours = [row for row in rows if row.observation.key.engine == ENGINE]
    cards = [row for row in rows if not row.observation.key.platform.startswith("cpu-")]
    lines = [
        "| rows | predicted from the others | median error | within 15 % |",
        "|---|---|---|---|",
        _summary("all", rows),
        _summary("gyrfalcon on CPUs", ours),
        _summary("cards", cards),
        "",
        "| platform | engine | precision | bytes | flops | few tokens | rows | median | worst |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_fitted_line(one) for one in plain["fitted"]),
        "",
        "Misses, predicted from the others of their kind:",
        "",
        "| platform, engine | observation | observed | predicted | error |",
        "|---|---|---|---|---|",
        *(_miss_line(row) for row in rows if row.error is not None and abs(row.error) > MISSED),
    ]
    return "\n".join(lines)


def _summary(name: str, rows: Sequence[LeftOut]) -> str:
    errors = [abs(row.error) for row in rows if row.error is not None]
    within = sum(error <= MISSED for error in errors)
    return f"| {name}: {len(rows)} | {len(errors)} | {median(errors):.1%} | {within} |"


def _fitted_line(one: Mapping[str, Any]) -> str:
    shares = [
        "–" if one[name] is None else f"{one[name]:.2f}" for name in ("bytes", "flops", "few_flops")
    ]
    errors = [
        "fitted" if one[name] is None else f"{one[name]:.0f} %"
        for name in ("median_error", "worst_error")
    ]
    cells = [one["platform"], one["engine"], one["precision"], *shares, str(one["rows"]), *errors]
    return f"| {' | '.join(cells)} |"


def _miss_line(row: LeftOut) -> str:
    one, predicted = row.observation, row.predicted
    assert predicted is not None
    assert row.error is not None
    times = f"{_shown(one.seconds)} | {_shown(predicted)}"
    return f"| {one.key.platform}, {one.key.engine} | {one.name} | {times} | {row.error:+.0%} |"


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def main() -> int:
    """Writes or checks both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    plain, rows = document(observations())
    table = tables(plain, rows)
    page = PAGE.read_text("utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    texts = {
        PACKAGE / "efficiencies.json": json.dumps(plain, indent=1) + "\n",
        PAGE: f"{before}{BEGIN}\n{table}\n{END}{after}",
    }
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text
    ]
    if not check:
        for path in stale:
            path.write_text(texts[path], "utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'would change' if check else 'written'}")
    print(table.partition("\n\n")[0])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
