"""From answers to a score: right and total by subject and category, averages, intervals, JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from gyrfalcon.measure.mmlu.exam import CATEGORIES, Subject
from gyrfalcon.measure.mmlu.proportions import INTERVAL, wilson
from gyrfalcon.measure.mmlu.run import Answer


@dataclass(frozen=True, slots=True)
class Count:
    """Right answers and how many were given; dropped questions count in neither."""

    right: int
    total: int

    @property
    def accuracy(self) -> float | None:
        """None when nothing was answered."""
        return self.right / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)


@dataclass(frozen=True, slots=True)
class Score:
    """One run's counts; every question is asked once and belongs to one subject."""

    subjects: Mapping[str, Count]
    categories: Mapping[str, Count]  # in the order of CATEGORIES
    all: Count
    dropped: tuple[Answer, ...]

    @property
    def macro(self) -> float | None:
        """The mean of the subjects' accuracies."""
        known = [count.accuracy for count in self.subjects.values() if count.accuracy is not None]
        return sum(known) / len(known) if known else None


def score(exam: Sequence[Subject], answers: Sequence[Answer]) -> Score:
    """Counts the answers to an exam."""
    return score_of({subject.name: subject.category for subject in exam}, answers)


def score_of(category: Mapping[str, str], answers: Sequence[Answer]) -> Score:
    """Counts answers; `category` is each subject's."""
    return Score(
        subjects={name: count([a for a in answers if a.subject == name]) for name in category},
        categories={
            name: count([a for a in answers if category[a.subject] == name]) for name in CATEGORIES
        },
        all=count(answers),
        dropped=tuple(a for a in answers if a.dropped),
    )


def count(answers: Sequence[Answer]) -> Count:
    """Right and total of those that were not dropped."""
    given = [answer for answer in answers if not answer.dropped]
    return Count(sum(answer.right for answer in given), len(given))


def subject_accuracies(found: Score) -> dict[str, float | None]:
    """The guide's result_<rank>_subject_acc.json."""
    return {name: count.accuracy for name, count in found.subjects.items()}


def class_accuracies(found: Score) -> dict[str, float | None]:
    """The guide's result_<rank>_classes_acc.json; Avg is over all questions."""
    classes = {name: count.accuracy for name, count in found.categories.items()}
    return {**classes, "Avg": found.all.accuracy}


def score_json(found: Score, exam: Sequence[Subject]) -> dict[str, object]:
    """The score for a result document."""
    return {
        **_count_json(found.all),
        "interval_kind": INTERVAL,
        "macro_accuracy": found.macro,
        "categories": {name: _count_json(count) for name, count in found.categories.items()},
        "subjects": {
            subject.name: {
                "category": subject.category,
                **_count_json(found.subjects[subject.name]),
            }
            for subject in exam
        },
        "dropped": [{"subject": answer.subject, "id": answer.id} for answer in found.dropped],
    }


def answer_json(answer: Answer) -> dict[str, object]:
    """One answer without the fields that its protocol does not fill."""
    fields = asdict(answer)
    unused = [name for name in ("logprobs", "text") if fields[name] is None]
    return {name: value for name, value in fields.items() if name not in unused}


def _count_json(count: Count) -> dict[str, object]:
    return {**asdict(count), "accuracy": count.accuracy, "interval": list(count.interval)}
