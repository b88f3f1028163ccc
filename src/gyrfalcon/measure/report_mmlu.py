"""The tables of MMLU: accuracy by category beside baselines, pairs of runs, counts."""

from collections.abc import Sequence

from gyrfalcon.errors import UsageError
from gyrfalcon.measure.golden import MMLUFigure, guide_mmlu
from gyrfalcon.measure.mmlu_compare import Comparison, Pairs, compare
from gyrfalcon.measure.mmlu_score import Count
from gyrfalcon.measure.report_runs import ExamScore, Run
from gyrfalcon.measure.report_tables import NOTHING, Table
from gyrfalcon.output import counted

IN_GUIDES_ORDER = ("STEM", "social sciences", "humanities", "other")


def mmlu_tables(runs: Sequence[Run[ExamScore]], beside_guide: bool) -> list[Table]:
    """Accuracy by category, question by question beside each baseline, counts and subjects."""
    if not runs:
        return []
    guide = guide_mmlu() if beside_guide else []
    rows = [*map(_category_row, runs), *map(_guide_row, guide)]
    note = "Percent of all questions; brackets: 95 % interval (Wilson)."
    if guide:
        note += (
            " The guide's rows follow from its counts: both are 841 of 1531, 54.93 %, where it"
            " prints 54.9305 and 54.9302. They compare with runs that ask the same questions"
            " by the same protocol of the same model."
        )
    summary = Table(
        "Accuracy by category",
        ("run", "asked", *IN_GUIDES_ORDER, "Avg", "95 % interval"),
        tuple(rows),
        num_labels=2,
        note=note,
    )
    pairs = [
        _pair_table(run, other)
        for run in runs
        for other in runs
        if other.head.is_baseline and not run.head.is_baseline
    ]
    return [summary, *pairs, _count_table(runs), _subject_table(runs)]


def _category_row(run: Run[ExamScore]) -> tuple[str, ...]:
    found = run.found
    asked = f"{found.way}, {counted(found.all.total, 'question')}"
    if found.result.score.dropped:
        asked += f", {len(found.result.score.dropped)} too long to ask"
    counts = [found.categories[name] for name in IN_GUIDES_ORDER]
    return (run.label, asked, *map(percent, [*counts, found.all]), interval(found.all))


def _guide_row(figure: MMLUFigure) -> tuple[str, ...]:
    counts = [Count(*figure.categories[name]) for name in IN_GUIDES_ORDER]
    everything = Count(figure.right or 0, figure.total)
    asked = f"{figure.split}, {figure.protocol}, 5 shots, {figure.total} questions"
    name = f"Falcon-40B ({figure.source})"
    return (name, asked, *map(percent, [*counts, everything]), interval(everything))


def _pair_table(run: Run[ExamScore], baseline: Run[ExamScore]) -> Table:
    title = f"{run.label} beside {baseline.label}, question by question"
    only = ("only this right", "only baseline right")
    headings = ("category", "questions", "same answer", "agreement %", *only, "McNemar's exact p")
    try:
        names = (run.label, baseline.label)
        found = compare(run.found.result, baseline.found.result, names)
    except UsageError as error:
        note = f"Not comparable: {error.wanted} are needed. {error.got}."
        return Table(title, headings, (), note=note)
    parts = [*((name, found.categories[name]) for name in IN_GUIDES_ORDER), ("all", found.all)]
    rows = tuple(_pair_row(name, pairs) for name, pairs in parts)
    return Table(title, headings, rows, note=_left_out(found))


def _pair_row(name: str, pairs: Pairs) -> tuple[str, ...]:
    agreement = f"{100 * pairs.same / pairs.total:.2f}" if pairs.total else NOTHING
    counts = (pairs.only_first, pairs.only_second)
    return (name, str(pairs.total), str(pairs.same), agreement, *map(str, counts), f"{pairs.p:.4f}")


def _left_out(found: Comparison) -> str:
    note = "A small p says that chance alone does not explain the difference."
    return note + (
        f" Left out, too long to ask: {found.num_left_out}." if found.num_left_out else ""
    )


def _count_table(runs: Sequence[Run[ExamScore]]) -> Table:
    rows = tuple(
        (run.label, name, *_count_cells(count))
        for run in runs
        for name, count in (
            *((name, run.found.categories[name]) for name in IN_GUIDES_ORDER),
            ("all", run.found.all),
        )
    )
    headings = ("run", "category", "right", "asked", "%", "95 % interval")
    return Table("Counts by category", headings, rows, num_labels=2, folded=True)


def _subject_table(runs: Sequence[Run[ExamScore]]) -> Table:
    rows = tuple(
        (run.label, category, name.replace("_", " "), *_count_cells(count))
        for run in runs
        for category in IN_GUIDES_ORDER
        for name, count in run.found.subjects(category).items()
    )
    headings = ("run", "category", "subject", "right", "asked", "%", "95 % interval")
    return Table("Counts by subject", headings, rows, num_labels=3, folded=True)


def _count_cells(count: Count) -> tuple[str, ...]:
    return str(count.right), str(count.total), percent(count), interval(count)


def percent(count: Count) -> str:
    """41.12, without the sign; a dash where nothing was asked."""
    return NOTHING if count.accuracy is None else f"{100 * count.accuracy:.2f}"


def interval(count: Count) -> str:
    """(38.03 to 44.29); a dash where nothing was asked."""
    low, high = count.interval
    return f"({100 * low:.2f} to {100 * high:.2f})" if count.total else NOTHING
