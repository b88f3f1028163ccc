"""The tables of exams. A table has only runs that were asked the same questions in the same way:
what cannot be compared never shares one.
"""

from collections.abc import Mapping, Sequence

from gyrfalcon.console.format import counted
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.mmlu.compare import Comparison, Pairs, compare
from gyrfalcon.measure.mmlu.exam_identity import MMLU_NAME
from gyrfalcon.measure.mmlu.result import QUESTIONS
from gyrfalcon.measure.mmlu.score import Count
from gyrfalcon.measure.published import GUIDE_MODEL, MMLUFigure, guide_mmlu
from gyrfalcon.report.runs import ExamScore, Run
from gyrfalcon.report.tables import NOTHING, Table

IN_GUIDES_ORDER = ("STEM", "social sciences", "humanities", "other")
GUIDE_SHOTS = 5
DIGITS = 8  # of a checksum that tells exams of one name apart

Runs = Sequence[Run[ExamScore]]
NamedComparison = tuple[str, str, Comparison]  # two runs' names, their answers


def by_exam(runs: Runs) -> dict[str, list[Run[ExamScore]]]:
    """Groups runs that were asked the same in the same way."""
    groups: dict[tuple[tuple[str, object], ...], list[Run[ExamScore]]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.found.result.settings.items())), []).append(run)
    headings = [group[0].found.result.heading for group in groups.values()]
    found = {}
    for heading, group in zip(headings, groups.values(), strict=True):
        checksum = str(group[0].found.result.settings[QUESTIONS])[:DIGITS]
        alike = headings.count(heading) > 1
        found[f"{heading} (checksum {checksum})" if alike else heading] = group
    return found


def mmlu_tables(runs: Runs, beside_guide: bool) -> list[Table]:
    """Accuracy by category of each exam, question by question beside others, counts and subjects."""
    if not runs:
        return []
    guide = guide_mmlu() if beside_guide else []
    groups = by_exam(runs)
    tables = []
    for heading, group in groups.items():
        tables.append(_category_table(heading, group, guide if _as_the_guide(group[0]) else ()))
        tables += [_pair_table(heading, beside) for beside in pairs(group)]
    tables += _other_pairs(runs)
    if guide and not any(_as_the_guide(group[0]) for group in groups.values()):
        tables.append(_category_table(_guide_heading(guide[0]), (), guide))
    for heading, group in groups.items():
        tables += [_count_table(heading, group), _subject_table(heading, group)]
    return tables


def pairs(group: Runs) -> list[NamedComparison]:
    """Compares every run with each baseline; without one, with the first run. Then the comparisons
    that results contain.
    """
    baselines = [run for run in group if run.head.is_baseline] or list(group[:1])
    found = [
        (run.label, other.label, compare(run.found.result, other.found.result))
        for run in group
        for other in baselines
        if run is not other and not (run.head.is_baseline and other.head.is_baseline)
    ]
    for run in group:
        if (with_ := run.found.compared) is not None:
            found.append((run.label, f"{with_.model} in {with_.file}", with_.pairs))
    return found


def _as_the_guide(run: Run[ExamScore]) -> bool:
    """Whether a run asked everything the guide's system asks, in its way."""
    found, [figure, *_] = run.found.result, guide_mmlu()
    way = {"protocol": figure.protocol, "split": figure.split, "shots": GUIDE_SHOTS}
    same_way = way.items() <= found.settings.items()
    return found.exam.name == MMLU_NAME and same_way and len(found.answers) == figure.total


def _guide_heading(figure: MMLUFigure) -> str:
    way = f"{figure.split}, {figure.protocol}, {GUIDE_SHOTS} shots"
    return f"{MMLU_NAME}, {way}, {figure.total} questions"


def _category_table(heading: str, runs: Runs, guide: Sequence[MMLUFigure]) -> Table:
    note = "Percent of all questions; brackets: 95 % interval (Wilson)."
    if guide:
        note += (
            " The guide's rows follow from its counts: both are 841 of 1531, 54.93 %, where it"
            " prints 54.9305 and 54.9302."
        )
    if not runs:
        note += " No run here asked this: none is comparable with it."
    rows = [_category_row(run, bool(guide)) for run in runs]
    rows += [_guide_row(figure, bool(runs)) for figure in guide]
    headings = ("run", *IN_GUIDES_ORDER, "Avg", "95 % interval")
    return Table(f"{heading}: accuracy by category", headings, tuple(rows), note=note)


def _category_row(run: Run[ExamScore], beside_guide: bool) -> tuple[str, ...]:
    found = run.found
    label = run.label
    if found.result.score.dropped:
        label += f" ({len(found.result.score.dropped)} too long to ask)"
    if beside_guide and run.head.model_kind != GUIDE_MODEL:
        label += f" ({run.head.model_kind}, not the guide's {GUIDE_MODEL})"
    counts = [found.categories[name] for name in IN_GUIDES_ORDER]
    return (label, *map(percent, [*counts, found.all]), interval(found.all))


def _guide_row(figure: MMLUFigure, beside_runs: bool) -> tuple[str, ...]:
    counts = [Count(*figure.categories[name]) for name in IN_GUIDES_ORDER]
    everything = Count(figure.right or 0, figure.total)
    label = f"Falcon-40B ({figure.source})"
    if not beside_runs:
        label += ", comparable with no run here"
    return (label, *map(percent, [*counts, everything]), interval(everything))


def _pair_table(heading: str, beside: NamedComparison) -> Table:
    first, second, found = beside
    only = (f"only {first} right", f"only {second} right")
    headings = ("category", "questions", "same answer", "agreement %", *only, "McNemar's exact p")
    parts = [*((name, found.categories[name]) for name in IN_GUIDES_ORDER), ("all", found.all)]
    rows = tuple(_pair_row(name, pairs) for name, pairs in parts)
    title = f"{first} beside {second}, question by question: {heading}"
    return Table(title, headings, rows, note=_left_out(found))


def _other_pairs(runs: Runs) -> list[Table]:
    """Why a baseline of another exam is compared with no run."""
    found = []
    for run in runs:
        for other in runs:
            if run.head.is_baseline or not other.head.is_baseline:
                continue
            try:
                compare(run.found.result, other.found.result, (run.label, other.label))
            except UsageError as error:
                note = f"Not comparable: {error.wanted} are needed. {error.got}."
                title = f"{run.label} beside {other.label}, question by question"
                found.append(Table(title, (), (), note=note))
    return found


def _pair_row(name: str, pairs: Pairs) -> tuple[str, ...]:
    agreement = f"{100 * pairs.same / pairs.total:.2f}" if pairs.total else NOTHING
    counts = (pairs.only_first, pairs.only_second)
    return (name, str(pairs.total), str(pairs.same), agreement, *map(str, counts), f"{pairs.p:.4f}")


def _left_out(found: Comparison) -> str:
    note = "A small p says that chance alone does not explain the difference."
    return note + (
        f" Left out, too long to ask: {found.num_left_out}." if found.num_left_out else ""
    )


def _count_table(heading: str, runs: Runs) -> Table:
    rows = tuple(
        (run.label, name, *_count_cells(count))
        for run in runs
        for name, count in _by_category(run).items()
    )
    headings = ("run", "category", "right", "asked", "%", "95 % interval")
    title = f"{heading}: counts by category"
    return Table(title, headings, rows, num_labels=2, folded=True)


def _by_category(run: Run[ExamScore]) -> Mapping[str, Count]:
    return {**{name: run.found.categories[name] for name in IN_GUIDES_ORDER}, "all": run.found.all}


def _subject_table(heading: str, runs: Runs) -> Table:
    rows = tuple(
        (run.label, category, name.replace("_", " "), *_count_cells(count))
        for run in runs
        for category in IN_GUIDES_ORDER
        for name, count in run.found.subjects(category).items()
    )
    headings = ("run", "category", "subject", "right", "asked", "%", "95 % interval")
    title = f"{heading}: counts by subject"
    return Table(title, headings, rows, num_labels=3, folded=True)


def _count_cells(count: Count) -> tuple[str, ...]:
    return str(count.right), str(count.total), percent(count), interval(count)


def percent(count: Count) -> str:
    """41.12, without the sign; a dash where nothing was asked."""
    return NOTHING if count.accuracy is None else f"{100 * count.accuracy:.2f}"


def interval(count: Count) -> str:
    """(38.03 to 44.29); a dash where nothing was asked."""
    low, high = count.interval
    return f"({100 * low:.2f} to {100 * high:.2f})" if count.total else NOTHING


def pair_words(found: Comparison) -> str:
    """The findings of a comparison in a few words."""
    everything = found.all
    return (
        f"{counted(everything.total, 'question')}, {everything.same} answered alike; right in one"
        f" alone: {everything.only_first} to {everything.only_second}"
    )
