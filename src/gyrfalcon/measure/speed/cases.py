"""From times to figures: the guide's formulas for one case of a speed sweep, and their averages.

A case generates `output_len` tokens for each of `batch` prompts of `input_len` tokens. Times are
those of the whole batch, in milliseconds, medians over the repeats.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median

import numpy as np

OOM, UNTIMED = "oom", "emulated"


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """Lengths in tokens of what is generated."""

    batch: int
    input_len: int
    output_len: int

    @property
    def mean_context(self) -> float:
        """The k-th of the output_len − 1 decoding steps attends to input_len + k tokens."""
        return self.input_len + self.output_len / 2


@dataclass(frozen=True, slots=True)
class Generation:
    """One timed generation: seconds from the first request to the end, and to each token of each
    sequence.
    """

    seconds: float
    arrivals: tuple[tuple[float, ...], ...]

    def gaps_ms(self, sequence: int) -> list[float]:
        """The times between a sequence's tokens."""
        times = self.arrivals[sequence]
        return [1000 * (later - sooner) for sooner, later in pairwise(times)]


@dataclass(frozen=True)  # without slots: vars() makes JSON of it without copying its lists
class Figures:
    """The figures of a case. Percentiles are over the gaps between tokens, of all sequences and
    repeats; `inter_token_ms` are those of the first sequence in the repeat of median length.
    """

    response_ms: float
    first_token_ms: float
    time_per_token_ms: float
    tokens_per_second: float  # of one sequence, as the guide has it
    tokens_per_second_of_batch: float
    tokens_per_second_per_device: float
    inter_token_p50_ms: float
    inter_token_p90_ms: float
    inter_token_p99_ms: float
    peak_memory_bytes: list[int]  # of each rank that could be asked, rank 0 first
    decode_percent_of_limit: float | None = None  # None: no limits were measured
    prefill_percent_of_limit: float | None = None
    response_ms_of_each: list[float] | None = None
    first_token_ms_of_each: list[float] | None = None
    inter_token_ms: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A case and its figures, or why it has none: it ran out of memory, or was computed by other hardware
    than that it is named after.
    """

    case: Case
    max_seq_len: int
    figures: Figures | None
    reason: str | None = None
    is_emulated: bool = False

    @property
    def status(self) -> str:
        """What stands in place of figures; "measured" where there are some."""
        if self.figures is not None:
            return "measured"
        return UNTIMED if self.is_emulated else OOM

    def to_json(self) -> dict[str, object]:
        """One flat object; `status` is "measured", "oom" or "emulated"."""
        return {
            **asdict(self.case),
            "max_seq_len": self.max_seq_len,
            "status": self.status,
            **({"reason": self.reason} if self.figures is None else vars(self.figures)),
        }


def figures_of(
    case: Case, first: Sequence[Generation], whole: Sequence[Generation], num_devices: int
) -> Figures:
    """The guide's formulas. `first` are generations of one token, `whole` of output_len.

    FirstTokenTime is a separate generation of one token, ResponseTime one of all. TimePerTokens =
    (ResponseTime − FirstTokenTime) / (output − 1), but never less than the shortest gap between two
    tokens, which noise could make it; TokensPerSecond = 1000 / TimePerTokens.
    """
    responses = [1000 * generation.seconds for generation in whole]
    firsts = [1000 * generation.seconds for generation in first]
    gaps = [gap for one in whole for row in range(case.batch) for gap in one.gaps_ms(row)]
    formula = (median(responses) - median(firsts)) / (case.output_len - 1)
    per_token = max(formula, min(gaps))
    rate = 1000 / per_token
    p50, p90, p99 = np.percentile(gaps, [50, 90, 99]).tolist()
    typical = sorted(whole, key=lambda one: one.seconds)[(len(whole) - 1) // 2]
    return Figures(
        response_ms=median(responses),
        first_token_ms=median(firsts),
        time_per_token_ms=per_token,
        tokens_per_second=rate,
        tokens_per_second_of_batch=case.batch * rate,
        tokens_per_second_per_device=case.batch * rate / num_devices,
        inter_token_p50_ms=p50,
        inter_token_p90_ms=p90,
        inter_token_p99_ms=p99,
        peak_memory_bytes=[],
        response_ms_of_each=responses,
        first_token_ms_of_each=firsts,
        inter_token_ms=[round(gap, 4) for gap in typical.gaps_ms(0)],
    )


def averages(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the measured cases, as the guide's table has them; and both meanings of an average
    rate.

    `tokens_per_second_of_mean_ms` is 1000 / the mean time per token, `mean_tokens_per_second` the
    mean of the cases' rates, which is larger where cases differ.
    """
    measured = [row.figures for row in rows if row.figures is not None]
    counts: dict[str, float] = {
        "cases": len(measured),
        OOM: sum(row.status == OOM for row in rows),
    }
    if not measured:
        return counts
    per_token = fmean(one.time_per_token_ms for one in measured)
    return {
        **counts,
        "response_ms": fmean(one.response_ms for one in measured),
        "first_token_ms": fmean(one.first_token_ms for one in measured),
        "time_per_token_ms": per_token,
        "tokens_per_second_of_mean_ms": 1000 / per_token,
        "mean_tokens_per_second": fmean(one.tokens_per_second for one in measured),
    }
