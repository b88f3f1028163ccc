"""Compares two MMLU runs question by question: where they agree, and whether one is better."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from gyrfalcon.console.format import counted
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.mmlu.exam import CATEGORIES
from gyrfalcon.measure.mmlu.exam_identity import Identity
from gyrfalcon.measure.mmlu.prompts import Exam
from gyrfalcon.measure.mmlu.proportions import mcnemar
from gyrfalcon.measure.mmlu.result import QUESTIONS, SETTINGS, ExamResult
from gyrfalcon.measure.mmlu.run import Answer


@dataclass(frozen=True, slots=True)
class ExamSetup:
    """What has to be equal for two runs to be compared."""

    exam: str
    settings: Mapping[str, object]  # those of SETTINGS
    counts: Mapping[str, int]  # subject → questions

    @classmethod
    def in_exam(cls, exam: Exam, which: Identity) -> Self:
        """What a run will ask."""
        counts = {subject.name: len(subject.questions) for subject in exam.subjects}
        return cls(which.name, exam.settings, counts)

    @classmethod
    def in_result(cls, found: ExamResult) -> Self:
        """What a run has asked."""
        return cls(
            found.exam.name, found.settings, Counter(answer.subject for answer in found.answers)
        )

    def describe(self, name: str, other: Self) -> str:
        """A setting in words, where the other's differs."""
        if name != QUESTIONS:
            return str(self.settings[name])
        total = counted(sum(self.counts.values()), "question")
        words = f"{self.exam}, {total} of {counted(len(self.counts), 'subject')}"
        extra = sorted(set(self.counts) - set(other.counts))
        if extra:
            return f"{words}, {extra[0]} among them"
        return f"{words}, worded otherwise" if self.counts == other.counts else words


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two runs' answers to the same questions; `p` is McNemar's exact two-sided p-value."""

    total: int
    same: int  # the same letter, right or wrong
    both_right: int
    only_first: int  # right in the first run alone
    only_second: int

    @property
    def counts(self) -> tuple[int, ...]:
        """All of the above."""
        return self.total, self.same, self.both_right, self.only_first, self.only_second

    @property
    def p(self) -> float:
        return mcnemar(self.only_first, self.only_second)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs and those of each category; pairs of which a run dropped one are left out."""

    all: Pairs
    categories: Mapping[str, Pairs]
    num_left_out: int


def check_alike(first: ExamSetup, second: ExamSetup, names: tuple[str, str]) -> None:
    """UsageError unless two runs, called by these names, ask the same questions in the same way."""
    for name in SETTINGS:
        if first.settings[name] != second.settings[name]:
            one, other = first.describe(name, second), second.describe(name, first)
            raise UsageError(
                f"two runs with the same {'questions' if name == QUESTIONS else name}",
                f"{names[0]}: {one}; {names[1]}: {other}",
                "compare runs that asked the same questions in the same way",
            )


def compare(
    first: ExamResult, second: ExamResult, names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compares two runs; UsageError unless they asked the same."""
    check_alike(ExamSetup.in_result(first), ExamSetup.in_result(second), names)
    if _questions(first) != _questions(second):
        wanted = "two runs with the same questions and truths"
        raise UsageError(wanted, "one that was changed", "run that exam again")
    pairs = list(zip(first.answers, second.answers, strict=True))
    kept = [pair for pair in pairs if not any(answer.dropped for answer in pair)]
    home = first.categories
    return Comparison(
        all=_count(kept),
        categories={
            category: _count([pair for pair in kept if home[pair[0].subject] == category])
            for category in CATEGORIES
        },
        num_left_out=len(pairs) - len(kept),
    )


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """The comparison for programs."""
    return {
        "all": _pairs_json(comparison.all),
        "categories": {name: _pairs_json(p) for name, p in comparison.categories.items()},
        "left_out": comparison.num_left_out,
    }


def comparison_from_json(raw: Fields, run: ExamResult) -> Comparison:
    """The comparison in a run's result, with that run as the first of the two; UsageError for
    counts that contradict each other or the run.
    """
    everything, stated = _pairs(raw.inside("all")), raw.inside("categories")
    categories = {name: _pairs(stated.inside(name)) for name in CATEGORIES}
    left_out, asked = raw.count("left_out"), len(run.answers)
    right = everything.both_right + everything.only_first
    fits = (
        everything.total + left_out == asked
        and 0 <= run.score.all.right - right <= left_out
        and all(
            sum(counts) == total
            for total, *counts in zip(
                everything.counts, *(one.counts for one in categories.values()), strict=True
            )
        )
    )
    if not fits:
        raise UsageError(f"counts of {asked} pairs in {raw.where}", "others", "compare them again")
    return Comparison(everything, categories, left_out)


def _pairs(raw: Fields) -> Pairs:
    names = ("total", "same", "both_right", "only_first", "only_second")
    found = Pairs(*(raw.count(name) for name in names))
    differing = found.only_first + found.only_second
    if not found.both_right <= found.same or found.same + differing > found.total:
        raise UsageError(f"counts of pairs that fit in {raw.where}", "others", "compare them again")
    return found


def _questions(found: ExamResult) -> list[tuple[str, int, str]]:
    return [(answer.subject, answer.id, answer.truth) for answer in found.answers]


def _pairs_json(pairs: Pairs) -> dict[str, object]:
    return {
        "total": pairs.total,
        "same": pairs.same,
        "agreement": pairs.same / pairs.total if pairs.total else None,
        "both_right": pairs.both_right,
        "only_first": pairs.only_first,
        "only_second": pairs.only_second,
        "p": pairs.p,
    }


def _count(pairs: Sequence[tuple[Answer, Answer]]) -> Pairs:
    return Pairs(
        total=len(pairs),
        same=sum(one.pred == other.pred for one, other in pairs),
        both_right=sum(one.right and other.right for one, other in pairs),
        only_first=sum(one.right and not other.right for one, other in pairs),
        only_second=sum(other.right and not one.right for one, other in pairs),
    )
