"""Two MMLU runs question by question: where they agree, and whether one is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gyrfalcon.errors import UsageError
from gyrfalcon.measure.exam import CATEGORIES
from gyrfalcon.measure.mmlu import Answer
from gyrfalcon.measure.mmlu_score import answer_from_json
from gyrfalcon.measure.proportions import mcnemar

SETTINGS = ("protocol", "protocol_version", "split", "shots", "exam_sha256")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two runs' answers to the same questions; `p` is McNemar's exact two-sided one."""

    total: int
    same: int  # the same letter, right or wrong
    both_right: int
    only_first: int  # right in the first run alone
    only_second: int

    @property
    def p(self) -> float:
        return mcnemar(self.only_first, self.only_second)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs and those of each category; pairs of which a run dropped one are left out."""

    all: Pairs
    categories: Mapping[str, Pairs]
    num_left_out: int


def compare(first: Mapping[str, object], second: Mapping[str, object]) -> Comparison:
    """Compares two `mmlu` result documents; UsageError when they did not ask the same."""
    one, other = (_result(document) for document in (first, second))
    for name in SETTINGS:
        if one[name] != other[name]:
            what = "questions" if name == "exam_sha256" else name
            raise UsageError(
                f"two runs with the same {what}",
                f"{one[name]} and {other[name]}",
                "compare runs that asked the same questions in the same way",
            )
    pairs = list(zip(_answers(one), _answers(other), strict=True))
    kept = [pair for pair in pairs if not any(answer.dropped for answer in pair)]
    subjects = one["subjects"]
    assert isinstance(subjects, dict)
    return Comparison(
        all=_count(kept),
        categories={
            category: _count([p for p in kept if subjects[p[0].subject]["category"] == category])
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


def _result(document: Mapping[str, object]) -> Mapping[str, object]:
    found = document["result"]
    assert isinstance(found, dict)
    return found


def _answers(found: Mapping[str, object]) -> list[Answer]:
    predictions = found["predictions"]
    assert isinstance(predictions, list)
    return sorted(
        map(answer_from_json, predictions), key=lambda answer: (answer.subject, answer.id)
    )
