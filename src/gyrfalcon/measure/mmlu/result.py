"""Reads answers back: from a run's journal and from `mmlu` results. Refuses answers that no run can
have given: two to one question, one to a question that was not asked, a letter that does not follow
from the model's output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.console.format import counted
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields, shown
from gyrfalcon.measure.mmlu.exam import CATEGORIES, LETTERS, SPLITS, Subject
from gyrfalcon.measure.mmlu.exam_identity import Identity, unnamed
from gyrfalcon.measure.mmlu.prompts import PROTOCOLS
from gyrfalcon.measure.mmlu.run import Answer, argmax_letter, first_letter
from gyrfalcon.measure.mmlu.score import Count, Score, score_of
from gyrfalcon.measure.result import findings, read

DO = "run the exam again"
QUESTIONS = "exam_sha256"
SETTINGS = ("protocol", "protocol_version", "split", "shots", QUESTIONS)

Truths = Mapping[tuple[str, int], str | None]  # subject, number → truth; None: not known here


@dataclass(frozen=True, slots=True)
class ExamResult:
    """One run of an exam: what was asked and how, and every answer."""

    model: str  # as it was typed
    exam: Identity
    settings: Mapping[str, object]  # those of SETTINGS
    categories: Mapping[str, str]  # subject → category
    answers: tuple[Answer, ...]  # by subject and number
    score: Score

    @classmethod
    def load(cls, path: Path) -> "ExamResult":
        """The run in a result file; ConfigError or UsageError for anything else."""
        document = read(path, "mmlu")
        model = Fields(document, str(path)).inside("model").need(str, "name")
        return cls.from_json(findings(document, path), model)

    @classmethod
    def from_json(cls, raw: Fields, model: str) -> "ExamResult":
        """The `result` of an `mmlu` document. Its counts have to be those of its answers."""
        stated = raw.inside("subjects")
        subjects = {name: stated.inside(name) for name in stated.raw}
        categories = {name: one.one_of(CATEGORIES, "category") for name, one in subjects.items()}
        totals = _totals(raw, categories)
        predictions = raw.objects("predictions")
        _check_number(raw, len(predictions), sum(totals.values()))
        asked = {(name, number): None for name, total in totals.items() for number in range(total)}
        answers = read_answers(predictions, asked)
        _check_dropped(raw, answers)
        found = score_of(categories, answers)
        for name, one in subjects.items():
            _check_count(one, found.subjects[name])
        for name in CATEGORIES:
            _check_count(raw.inside("categories").inside(name), found.categories[name])
        _check_count(raw, found.all)
        identity, settings = _identity(raw, totals), _settings(raw)
        return cls(model, identity, settings, categories, tuple(answers), found)

    @property
    def heading(self) -> str:
        """What was asked, and how: "MMLU, test, hendrycks, 5 shots, 14042 questions"."""
        shots = counted(int(str(self.settings["shots"])), "shot")
        way = f"{self.settings['split']}, {self.settings['protocol']}, {shots}"
        return f"{self.exam.name}, {way}, {self.exam.part(len(self.answers))}"


def asked_in(exam: Sequence[Subject]) -> dict[tuple[str, int], str | None]:
    """The questions of an exam with their answers."""
    return {
        (subject.name, question.id): question.answer
        for subject in exam
        for question in subject.questions
    }


def read_answers(raws: Sequence[Fields], asked: Truths) -> list[Answer]:
    """Answers that answer_json() wrote, sorted; each question at most once."""
    found: dict[tuple[str, int], Answer] = {}
    for raw in raws:
        answer = _answer(raw)
        key = (answer.subject, answer.id)
        name = f"{answer.subject} {answer.id}"
        if key not in asked:
            raise UsageError(f"answers to the exam's own questions in {raw.where}", name, DO)
        if key in found:
            raise UsageError(f"one answer to each question in {raw.where}", f"two to {name}", DO)
        if asked[key] not in (None, answer.truth):
            wanted = f"{asked[key]} as the truth of {name} in {raw.where}"
            raise UsageError(wanted, answer.truth, DO)
        found[key] = answer
    return [found[key] for key in sorted(found)]


def _answer(raw: Fields) -> Answer:
    has_logprobs = raw.raw.get("logprobs") is not None
    answer = Answer(
        subject=raw.need(str, "subject"),
        id=raw.count("id"),
        truth=raw.one_of(tuple(LETTERS), "truth"),
        pred=raw.take(str, "pred"),
        num_examples=raw.count("num_examples"),
        num_prompt_tokens=raw.count("num_prompt_tokens"),
        logprobs=tuple(raw.list_of(float, "logprobs")) if has_logprobs else None,
        text=raw.take(str, "text"),
        dropped=raw.need(bool, "dropped"),
    )
    if answer.logprobs is not None and len(answer.logprobs) != len(LETTERS):
        wanted = f"{len(LETTERS)} numbers in logprobs of {raw.where}"
        raise UsageError(wanted, str(len(answer.logprobs)), DO)
    if answer.pred != (follows := _followed_by(answer)):
        raise UsageError(f"pred {shown(follows)} in {raw.where}", shown(answer.pred), DO)
    return answer


def _followed_by(answer: Answer) -> str | None:
    """The letter that follows from the model's output."""
    if answer.dropped:
        return None
    if answer.logprobs is not None:
        return argmax_letter(answer.logprobs)
    return first_letter(answer.text or "")


def _totals(raw: Fields, categories: Mapping[str, str]) -> dict[str, int]:
    """How many questions of each subject were asked, dropped ones included."""
    totals = {name: raw.inside("subjects").inside(name).count("total") for name in categories}
    for one in raw.objects("dropped"):
        name = one.one_of(tuple(categories), "subject")
        one.count("id")
        totals[name] += 1
    return totals


def _check_number(raw: Fields, num_answers: int, num_asked: int) -> None:
    number = raw.positive("num_questions")
    if not num_answers == num_asked == number:
        wanted = f"{number} answers to {number} questions in {raw.where}"
        raise UsageError(wanted, f"{num_answers} to {num_asked}", DO)


def _check_dropped(raw: Fields, answers: Sequence[Answer]) -> None:
    dropped = [(one.need(str, "subject"), one.need(int, "id")) for one in raw.objects("dropped")]
    if sorted(dropped) != [(answer.subject, answer.id) for answer in answers if answer.dropped]:
        got = "others among the predictions"
        raise UsageError(f"the dropped questions in {raw.where}", got, DO)


def _check_count(raw: Fields, found: Count) -> None:
    stated = Count(raw.count("right"), raw.count("total"))
    if stated != found:
        wanted = f"{found.right} of {found.total} right, as the answers say, in {raw.where}"
        raise UsageError(wanted, f"{stated.right} of {stated.total}", DO)


def _identity(raw: Fields, totals: Mapping[str, int]) -> Identity:
    """Results of earlier versions do not name their exam, nor how much of it they asked."""
    stated = raw.nested("exam")
    if stated is None:
        name = unnamed(raw.need(str, QUESTIONS))
        return Identity(name, len(totals), sum(totals.values()))
    found = Identity(
        stated.need(str, "name"), stated.positive("num_subjects"), stated.positive("num_questions")
    )
    if len(totals) > found.num_subjects or sum(totals.values()) > found.num_questions:
        wanted = f"at most {found.num_questions} questions of {found.num_subjects} subjects"
        got = f"{sum(totals.values())} of {len(totals)}"
        raise UsageError(f"{wanted} in {raw.where}", got, DO)
    return found


def _settings(raw: Fields) -> dict[str, object]:
    return {
        "protocol": raw.one_of(tuple(PROTOCOLS), "protocol"),
        "protocol_version": raw.positive("protocol_version"),
        "split": raw.one_of(SPLITS, "split"),
        "shots": raw.count("shots"),
        QUESTIONS: raw.need(str, QUESTIONS),
    }
