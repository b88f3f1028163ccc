"""What `gyrfalcon mmlu` shows people: the score by category, published figures, two runs compared."""

from collections.abc import Iterator, Sequence

from gyrfalcon.console.format import counted
from gyrfalcon.measure.mmlu.compare import Comparison
from gyrfalcon.measure.mmlu.proportions import INTERVAL
from gyrfalcon.measure.mmlu.published import PublishedComparison
from gyrfalcon.measure.mmlu.result import ExamResult

MOST_NAMED = 20  # dropped questions on screen; the result file has them all


def score_lines(run: ExamResult) -> Iterator[str]:
    """Which exam; the four categories, all questions, the mean of the subjects, those dropped."""
    found = run.score
    yield f"{run.heading} of {counted(len(run.categories), 'subject')}"
    yield f"{'':16} {'right':>6} {'total':>6} {'accuracy':>9}  {INTERVAL}"
    for name, count in (*found.categories.items(), ("all questions", found.all)):
        low, high = count.interval
        interval = f"{100 * low:.2f}-{100 * high:.2f} %" if count.total else ""
        shown = _percent(count.accuracy)
        yield f"{name:16} {count.right:6} {count.total:6} {shown:>9}  {interval}"
    yield f"{'mean of subjects':16} {'':6} {'':6} {_percent(found.macro):>9}"
    if found.dropped:
        named = [f"{answer.subject} {answer.id}" for answer in found.dropped[:MOST_NAMED]]
        more = ", …" if len(found.dropped) > MOST_NAMED else ""
        yield f"dropped, too long to ask: {len(found.dropped)} ({', '.join(named)}{more})"


def published_lines(rows: Sequence[PublishedComparison]) -> Iterator[str]:
    """Each published figure beside ours."""
    for row in rows:
        verdict = "agrees" if row.agrees else "DIFFERS" if row.agrees is False else row.why_not
        way = f"{row.figure.protocol}, {row.figure.split}"
        yield f"published {row.model} {_percent(row.theirs)} {verdict}: {row.figure.source} ({way})"
        if row.subjects_compared and not row.why_not:
            compared = counted(row.subjects_compared, "subject")
            yield f"{'':10}{row.subjects_alike} of {compared} with its count"
        for name, (theirs, ours) in row.categories.items() if not row.why_not else ():
            yield f"{'':10}{name}: {theirs} right there, {ours} here"


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Agreement, discordant pairs and p, by category and of all."""
    columns = ("total", "same", "both", "only A", "only B", "p")
    yield f"{'':16}" + "".join(f"{column:>8}" for column in columns)
    for name, pairs in (*comparison.categories.items(), ("all questions", comparison.all)):
        numbers = (pairs.total, pairs.same, pairs.both_right, pairs.only_first, pairs.only_second)
        yield f"{name:16}" + "".join(f"{number:8}" for number in numbers) + f"{pairs.p:8.4f}"
    yield "same: the same answer; both, only A, only B: right in; p: McNemar's exact, two-sided"
    if comparison.num_left_out:
        yield f"left out, dropped by one of the runs: {comparison.num_left_out}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
