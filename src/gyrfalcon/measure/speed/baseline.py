"""What a speed sweep is compared with: another result of ours, or the guide's own figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from gyrfalcon.measure import result
from gyrfalcon.measure.published import GUIDE_MODEL, model_of
from gyrfalcon.measure.speed.cases import Case, Figures, Row, averages
from gyrfalcon.measure.speed.files import Sweep

GUIDE = "guide"
GUIDE_LENGTHS = (32, 64, 128, 256, 512, 1024)
GUIDE_CASES = frozenset(Case(1, *pair) for pair in product(GUIDE_LENGTHS, GUIDE_LENGTHS))
TIMES = ("response_ms", "first_token_ms", "time_per_token_ms")
RATES = ("tokens_per_second_of_mean_ms", "mean_tokens_per_second")


@dataclass(frozen=True, slots=True)
class Baseline:
    """Averages over cases, and their rows where known. `model` is as published.kind_of() names it."""

    name: str
    model: str
    averages: Mapping[str, float]
    rows: Mapping[Case, Row] | None = None


# Means over 36 cases, fp16, batch 1. The guide's rate is for the 910B3 the mean of the cases'
# rates and for the A100 1000 / the mean time per token; how many A100s it had it does not say.
# The figures of Falcon-7B are not in the guide: its publisher gave them in a table of later date.
PUBLISHED = (
    Baseline(
        "the guide's Falcon-40B on 4 x 910B3",
        "falcon-40b",
        {
            "response_ms": 9204.322,
            "first_token_ms": 92.83104,
            "time_per_token_ms": 27.0287486,
            "mean_tokens_per_second": 37.0206184,
        },
    ),
    Baseline(
        "the guide's Falcon-40B on A100",
        "falcon-40b",
        {
            "response_ms": 6816.21,
            "first_token_ms": 150.4420922,
            "time_per_token_ms": 19.74296405,
            "tokens_per_second_of_mean_ms": 50.65095583,
        },
    ),
    Baseline(
        "Falcon-7B on 910B3, from a later table of the guide's publisher",
        "falcon-7b",
        {"first_token_ms": 59.18, "time_per_token_ms": 17.24},
    ),
    Baseline(
        "Falcon-7B on A100, from a later table of the guide's publisher",
        "falcon-7b",
        {"first_token_ms": 31.23, "time_per_token_ms": 10.73},
    ),
)


def guide_for(model: str) -> tuple[Baseline, ...]:
    """The published figures of a model; for a model without any, the guide's own, of another model."""
    return tuple(one for one in PUBLISHED if one.model == model) or guide_for(GUIDE_MODEL)


def baselines(word: str, model: str) -> tuple[Baseline, ...]:
    """What `guide` means for this model, or the speed result in a file."""
    if word == GUIDE:
        return guide_for(model)
    path = Path(word)
    document = result.read(path, "speed")
    sweep = Sweep.from_json(result.findings(document, path))
    name, kind = model_of(document, path)
    return (Baseline(f"{name} in {path}", kind, {}, sweep.rows),)


def compare(rows: Sequence[Row], baseline: Baseline, model: str) -> dict[str, object]:
    """The speed-up of these rows of `model` over the baseline: above 1 is faster.

    Where the rows of the baseline are known, averages are over the cases that both measured.
    `warnings` says why the two are not comparable.
    """
    named = {"name": baseline.name, "warnings": differences(rows, baseline, model)}
    if baseline.rows is None:
        return {
            **named,
            "cases": averages(rows)["cases"],
            "baseline_cases": len(GUIDE_CASES),
            "averages": _ratios(averages(rows), baseline.averages),
        }
    pairs = [
        (row, other)
        for row in rows
        if row.figures and (other := baseline.rows.get(row.case)) and other.figures
    ]
    ours, theirs = (averages([pair[side] for pair in pairs]) for side in (0, 1))
    return {
        **named,
        "cases": len(pairs),
        "baseline_cases": len(pairs),
        "averages": _ratios(ours, theirs),
        "of_each": [
            {**asdict(row.case), **_ratios(_times(row.figures), _times(other.figures))}
            for row, other in pairs
        ],
    }


def differences(rows: Sequence[Row], baseline: Baseline, model: str) -> list[str]:
    """Why a baseline is not comparable: "another model: …", "other cases: …"; empty where it is."""
    found = []
    if model != baseline.model:
        found.append(f"another model: {baseline.model} there, {model} here")
    if baseline.rows is not None:
        return found
    measured = {row.case for row in rows if row.figures}
    if measured != GUIDE_CASES:
        same = len(measured & GUIDE_CASES)
        others = f" and {len(measured - GUIDE_CASES)} others" if measured - GUIDE_CASES else ""
        found.append(
            f"other cases: means over {len(GUIDE_CASES)} there, {same} of them{others} here"
        )
    return found


def _times(figures: Figures | None) -> dict[str, float]:
    assert figures is not None
    return {name: value for name, value in vars(figures).items() if name in TIMES}


def _ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """theirs / ours for times, ours / theirs for rates, where both are known."""
    times = {name: theirs[name] / ours[name] for name in TIMES if name in ours and name in theirs}
    rates = {name: ours[name] / theirs[name] for name in RATES if name in ours and name in theirs}
    return {**times, **rates}
