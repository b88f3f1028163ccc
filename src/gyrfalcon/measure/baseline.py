"""What a speed sweep is compared with: another result of ours, or the guide's own figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gyrfalcon.measure import result
from gyrfalcon.measure.speed_files import Sweep
from gyrfalcon.measure.timing import Case, Figures, Row, averages

GUIDE = "guide"
GUIDE_CASES = 36
TIMES = ("response_ms", "first_token_ms", "time_per_token_ms")
RATES = ("tokens_per_second_of_mean_ms", "mean_tokens_per_second")


@dataclass(frozen=True, slots=True)
class Baseline:
    """Averages over cases, and the rows behind them where they are known."""

    name: str
    averages: Mapping[str, float]
    rows: Mapping[Case, Row] | None = None


# Means over 36 cases, fp16, batch 1. The guide's rate is for the 910B3 the mean of the cases'
# rates and for the A100 1000 / the mean time per token; how many A100s it had it does not say.
GUIDE_FIGURES = (
    Baseline(
        "the guide's Falcon-40B on 4 x 910B3",
        {
            "response_ms": 9204.322,
            "first_token_ms": 92.83104,
            "time_per_token_ms": 27.0287486,
            "mean_tokens_per_second": 37.0206184,
        },
    ),
    Baseline(
        "the guide's Falcon-40B on A100",
        {
            "response_ms": 6816.21,
            "first_token_ms": 150.4420922,
            "time_per_token_ms": 19.74296405,
            "tokens_per_second_of_mean_ms": 50.65095583,
        },
    ),
    Baseline(
        "the guide's Falcon-7B on 910B3", {"first_token_ms": 59.18, "time_per_token_ms": 17.24}
    ),
    Baseline(
        "the guide's Falcon-7B on A100", {"first_token_ms": 31.23, "time_per_token_ms": 10.73}
    ),
)


def baselines(word: str) -> tuple[Baseline, ...]:
    """The guide's figures for `guide`, else those of a speed result's file."""
    if word == GUIDE:
        return GUIDE_FIGURES
    path = Path(word)
    sweep = Sweep.from_json(result.findings(result.read(path, "speed"), path))
    return (Baseline(str(path), {}, sweep.rows),)


def compare(rows: Sequence[Row], baseline: Baseline) -> dict[str, object]:
    """How many times as fast these rows are as the baseline: ratios above 1 are faster.

    Where the baseline's rows are known, averages are over the cases that both have measured.
    """
    if baseline.rows is None:
        return {
            "name": baseline.name,
            "cases": averages(rows)["cases"],
            "baseline_cases": GUIDE_CASES,
            "averages": _ratios(averages(rows), baseline.averages),
        }
    pairs = [
        (row, other)
        for row in rows
        if row.figures and (other := baseline.rows.get(row.case)) and other.figures
    ]
    ours, theirs = (averages([pair[side] for pair in pairs]) for side in (0, 1))
    return {
        "name": baseline.name,
        "cases": len(pairs),
        "baseline_cases": len(pairs),
        "averages": _ratios(ours, theirs),
        "of_each": [
            {**asdict(row.case), **_ratios(_times(row.figures), _times(other.figures))}
            for row, other in pairs
        ],
    }


def _times(figures: Figures | None) -> dict[str, float]:
    assert figures is not None
    return {name: value for name, value in vars(figures).items() if name in TIMES}


def _ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Of times theirs / ours, of rates ours / theirs; of what both have."""
    times = {name: theirs[name] / ours[name] for name in TIMES if name in ours and name in theirs}
    rates = {name: ours[name] / theirs[name] for name in RATES if name in ours and name in theirs}
    return {**times, **rates}
