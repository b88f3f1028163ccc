"""Compares the MMLU score of a run with the figures published for the same model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gyrfalcon.measure.mmlu.prompts import Exam
from gyrfalcon.measure.mmlu.score import Count, Score
from gyrfalcon.measure.published import MMLUFigure, PublishedFigures

SHOTS = 5  # of every published figure


@dataclass(frozen=True, slots=True)
class PublishedComparison:
    """One published figure and ours. `why_not` says why they need not agree; empty where they
    should.
    """

    model: str  # whose shape ours has
    figure: MMLUFigure
    theirs: float  # accuracy on our questions where they are known one by one, else on all theirs
    ours: Count
    why_not: str
    subjects_alike: int  # subjects with exactly the same count
    subjects_compared: int
    categories: Mapping[str, tuple[int, int]]  # right: theirs, ours; where both asked the same

    @property
    def agrees(self) -> bool | None:
        """Whether theirs lies in our interval; None where it need not."""
        low, high = self.ours.interval
        return None if self.why_not else low <= self.theirs <= high


def compare_published(
    published: PublishedFigures, found: Score, exam: Exam
) -> list[PublishedComparison]:
    """Compares the score of a run with every published figure."""
    return [_beside(published.name, figure, found, exam) for figure in published.mmlu]


def rows_json(rows: Sequence[PublishedComparison]) -> list[dict[str, object]]:
    """The comparison for programs."""
    return [
        {
            "model": row.model,
            "source": row.figure.source,
            "protocol": row.figure.protocol,
            "split": row.figure.split,
            "accuracy": row.theirs,
            "agrees": row.agrees,
            "not_comparable": row.why_not or None,
            "subjects_alike": row.subjects_alike,
            "subjects_compared": row.subjects_compared,
            "categories": {name: list(pair) for name, pair in row.categories.items()},
        }
        for row in rows
    ]


def _beside(model: str, figure: MMLUFigure, found: Score, exam: Exam) -> PublishedComparison:
    way = (exam.protocol.name, exam.split, exam.num_examples)
    asked = {
        name: count.total + sum(answer.subject == name for answer in found.dropped)
        for name, count in found.subjects.items()
    }
    comparable = {
        name: figure.subjects[name]
        for name in asked
        if name in figure.subjects and figure.subjects[name][1] == asked[name]
    }
    theirs, why_not = figure.accuracy, ""
    if way != (figure.protocol, figure.split, SHOTS):
        why_not = "another way to ask"
    elif len(comparable) == len(asked):
        theirs = sum(right for right, _ in comparable.values()) / sum(asked.values())
    elif sum(asked.values()) != figure.total:
        why_not = "other questions"
    return PublishedComparison(
        model=model,
        figure=figure,
        theirs=theirs,
        ours=found.all,
        why_not=why_not,
        subjects_alike=sum(
            found.subjects[name].right == right for name, (right, _) in comparable.items()
        ),
        subjects_compared=len(comparable),
        categories={
            name: (right, found.categories[name].right)
            for name, (right, total) in figure.categories.items()
            if found.categories[name].total == total
        },
    )
