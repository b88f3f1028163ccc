"""From the times of benchmarks/cpu_peers.py to its rows: medians, ratios, percent of the limits, who is
behind; and how they are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from gyrfalcon.config import ModelConfig
from gyrfalcon.measure.roofline import (
    Deployment,
    MachineLimits,
    decode_bytes,
    prefill_flops,
)

OURS = "gyrfalcon"
PHASES = ("prefill", "decode")
BAR = 0.28  # inches of a plot's height


@dataclass(frozen=True, slots=True)
class Case:
    """What is generated, with which weights. Lengths in tokens."""

    model: str
    precision: str  # bf16, int8 or int4
    batch: int
    prompt_len: int
    steps: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine's turn in one round of a case, and what the machine was like before it."""

    case: Case
    engine: str
    round: int
    limits: MachineLimits
    load_average: float
    ends: list[float]  # of each step, in seconds since the beginning; the first read the prompts
    first_ids: list[int]
    failed: str | None = None

    def ms(self, phase: str) -> list[float]:
        """The prefill, or every decoding step."""
        if phase == "prefill":
            return [1000 * self.ends[0]]
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return [1000 * (later - sooner) for sooner, later in pairs]


@dataclass(frozen=True, slots=True)
class Row:
    """One engine in one phase of a case, over all rounds. Percent of the memory bandwidth for decoding,
    of the peak of the instruction that our kernels use for a prefill, each round's median beside the
    limits measured before it.
    """

    case: Case
    phase: str
    engine: str
    failed: str | None = None
    median_ms: float | None = None
    least_ms: float | None = None
    most_ms: float | None = None
    percent_of_limit: float | None = None
    ratio: float | None = None  # the best peer's median ÷ this one's: above 1 is faster than it

    @property
    def typical_ms(self) -> float:
        """The median, of a row that did not fail."""
        assert self.median_ms is not None
        return self.median_ms

    @property
    def behind(self) -> bool:
        """Whether this is ours and a peer does better, or ours failed."""
        if self.engine != OURS:
            return False
        return self.failed is not None or (self.ratio is not None and self.ratio < 1)


def rows_of(turns: Sequence[Turn], configs: Mapping[str, ModelConfig]) -> list[Row]:
    """All rows, those of one case and phase together, the fastest first and failures last."""
    rows: list[Row] = []
    for case in dict.fromkeys(turn.case for turn in turns):
        there = [turn for turn in turns if turn.case == case]
        for phase in PHASES:
            rows += _compared(case, phase, there, configs[case.model])
    return rows


def _compared(case: Case, phase: str, turns: Sequence[Turn], config: ModelConfig) -> list[Row]:
    engines = dict.fromkeys(turn.engine for turn in turns)
    rows = [
        _row(case, phase, [turn for turn in turns if turn.engine == engine], config)
        for engine in engines
    ]
    measured = [row for row in rows if row.failed is None]
    best = min((row.typical_ms for row in measured if row.engine != OURS), default=None)
    if best is not None:
        measured = [replace(row, ratio=best / row.typical_ms) for row in measured]
    failed = [row for row in rows if row.failed is not None]
    return sorted(measured, key=lambda row: row.typical_ms) + failed


def _row(case: Case, phase: str, turns: Sequence[Turn], config: ModelConfig) -> Row:
    """Of one engine. A turn that failed makes it a failed row."""
    engine = turns[0].engine
    why = next((turn.failed for turn in turns if turn.failed is not None), None)
    if why is not None:
        return Row(case, phase, engine, failed=why)
    ms = [one for turn in turns for one in turn.ms(phase)]
    percent = median(
        100 * least_ms(phase, turn.case, config, turn.limits) / median(turn.ms(phase))
        for turn in turns
    )
    return Row(case, phase, engine, None, median(ms), min(ms), max(ms), percent)


def least_ms(phase: str, case: Case, config: ModelConfig, limits: MachineLimits) -> float:
    """Of a prefill or a decoding step at the machine's limits: the least work in our own format of these
    weights, whoever does it.
    """
    layout = Deployment(
        config, world_size=1, number_bytes=2, quant=quant_of(case.precision), on_cards=False
    )
    if phase == "prefill":
        work: float = prefill_flops(layout, case.batch, case.prompt_len)
        limit = limits.matrix_flops_per_second
    else:
        work = decode_bytes(layout, case.batch, case.prompt_len + case.steps / 2)
        limit = limits.bandwidth_bytes_per_second
    return 1000 * work / limit


def quant_of(precision: str) -> str:
    """Our word for it."""
    return "none" if precision == "bf16" else precision


def table(rows: Sequence[Row], turns: Sequence[Turn]) -> str:
    """All rows for people, and what each round was measured beside."""
    lines = [f"{'':34} {'median':>9} {'least':>9} {'most':>9}   best peer  of limit"]
    before = None
    for row in rows:
        head = _head(row)
        if head != before:
            lines.append(head)
        before = head
        lines.append(_line(row))
    return "\n".join([*lines, "", *_rounds(turns)])


def _head(row: Row) -> str:
    case = row.case
    what = f"{case.steps} steps after" if row.phase == "decode" else ""
    tokens = f"{case.batch} × {case.prompt_len} tokens"
    return " ".join(f"{case.model} {case.precision} {row.phase} {what} {tokens}".split())


def _line(row: Row) -> str:
    if row.failed is not None:
        return f"  {row.engine:<32} failed: {row.failed}"
    ratio = "no peer" if row.ratio is None else f"{row.ratio:.2f} ×"
    times = " ".join(f"{ms:9.1f}" for ms in (row.median_ms, row.least_ms, row.most_ms))
    behind = "  BEHIND" if row.behind else ""
    return f"  {row.engine:<32} {times} ms {ratio:>8} {row.percent_of_limit:7.1f} %{behind}"


def _rounds(turns: Sequence[Turn]) -> list[str]:
    lines = ["round  model precision   memory read   matrix peak  load average  of"]
    shown = {(turn.round, turn.case.model, turn.case.precision): turn for turn in turns}
    for (number, model, precision), turn in shown.items():
        bandwidth = turn.limits.bandwidth_bytes_per_second / 1e9
        peak = turn.limits.matrix_flops_per_second / 1e9
        lines.append(
            f"{number + 1:5}  {model:5} {precision:9} {bandwidth:8.1f} GB/s {peak:6.0f} GFLOP/s"
            f" {turn.load_average:8.1f}      {turn.limits.instruction or 'torch'}"
        )
    return lines


def to_json(rows: Sequence[Row], turns: Sequence[Turn]) -> dict[str, object]:
    """Rows and every turn they come from."""
    return {
        "rows": [{**asdict(row), "behind": row.behind} for row in rows],
        "turns": [asdict(turn) for turn in turns],
    }


def _shown(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 1000 else f"{ms:.1f} ms"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Medians as bars, one panel for each case and phase, ours filled darker; needs matplotlib."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.median_ms is not None]
    panels = {_head(row): [other for other in shown if _head(other) == _head(row)] for row in shown}
    heights = [1 + len(panel) for panel in panels.values()]
    figure = Figure(figsize=(7, BAR * sum(heights) + 1), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (head, panel) in zip(grid, panels.items(), strict=True):
        colours = ["#1f4e79" if row.engine == OURS else "#a9bcd0" for row in panel]
        bars = axes.barh(
            [row.engine for row in panel], [row.typical_ms for row in panel], color=colours
        )
        axes.bar_label(bars, [_shown(row.typical_ms) for row in panel], padding=3, fontsize=8)
        axes.set_title(head, fontsize=9, loc="left")
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path)
