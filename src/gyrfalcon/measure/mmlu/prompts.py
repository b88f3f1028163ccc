"""Builds the prompts of the three MMLU protocols, as text and token ids. No model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.measure.mmlu.exam import LETTERS, Question, Subject, fingerprint

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How questions are asked; `version` increases whenever a prompt or its scoring changes."""

    name: str
    version: int
    gap: str  # before the subject in the first line
    strips: bool  # whether to strip white space around a question
    fewest_examples: int | None  # of a prompt that is too long; None: it loses its beginning
    longest_prompt: int | None  # in tokens, whatever the model takes
    num_new_tokens: int  # 1: the letters' likelihoods are scored, not the token


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model reads it; `ids` is None when it does not fit."""

    question: Question
    num_examples: int
    ids: tuple[int, ...] | None


# Hendrycks et al. 2021. Two spaces: its subject begins with one.
HENDRYCKS = Protocol("hendrycks", 1, "  ", False, 0, None, 1)
# lm-evaluation-harness' task `mmlu`, which cuts a long prompt on the left.
LM_EVAL = Protocol("lm-eval", 1, " ", True, None, None, 1)
# The guide's: the answer is the first letter of up to 32 greedy tokens.
GENERATE = Protocol("generate", 1, "  ", False, 1, 2000, 32)

PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (HENDRYCKS, LM_EVAL, GENERATE)}


@dataclass(frozen=True, slots=True)
class Exam:
    """What is asked, and how; UsageError when a subject has fewer worked examples."""

    subjects: Sequence[Subject]
    split: str
    protocol: Protocol
    num_examples: int

    def __post_init__(self) -> None:
        for subject in self.subjects:
            if len(subject.examples) < self.num_examples:
                wanted = f"{self.num_examples} worked examples in dev/ of {subject.name}"
                got = str(len(subject.examples) or "none")
                raise UsageError(wanted, got, "lower `shots`, or leave it out of `subjects`")

    @property
    def num_questions(self) -> int:
        return sum(len(subject.questions) for subject in self.subjects)

    @property
    def settings(self) -> dict[str, object]:
        """What must be equal for two runs to be compared."""
        return {
            "protocol": self.protocol.name,
            "protocol_version": self.protocol.version,
            "split": self.split,
            "shots": self.num_examples,
            "exam_sha256": fingerprint(self.subjects),
        }


def prompt_text(protocol: Protocol, subject: Subject, question: Question, num_examples: int) -> str:
    """The whole prompt: first line, worked examples in their order, the question up to "Answer:"."""
    head = "The following are multiple choice questions (with answers) about"
    examples = "".join(
        f"{_ask(protocol, example)} {example.answer}\n\n"
        for example in subject.examples[:num_examples]
    )
    return f"{head}{protocol.gap}{subject.title}.\n\n{examples}{_ask(protocol, question)}"


def fitted(
    exam: Exam, subject: Subject, question: Question, encode: Encode, max_len: int
) -> Prompt:
    """The prompt with as many worked examples as the protocol and `max_len` allow."""
    protocol, most = exam.protocol, exam.num_examples

    def ids(count: int) -> tuple[int, ...]:
        return tuple(encode(prompt_text(protocol, subject, question, count)))

    if protocol.fewest_examples is None:
        return Prompt(question, most, ids(most)[-max_len:])
    longest = min(protocol.longest_prompt or max_len, max_len - protocol.num_new_tokens)
    for count in range(most, min(most, protocol.fewest_examples) - 1, -1):
        found = ids(count)
        if len(found) <= longest:
            return Prompt(question, count, found)
    return Prompt(question, 0, None)


def letter_ids(encode: Encode) -> tuple[int, ...]:
    """The tokens of " A" to " D" after "Answer:"; CheckpointError where one takes several."""
    stem = encode("Answer:")
    found = [encode(f"Answer: {letter}") for letter in LETTERS]
    for letter, ids in zip(LETTERS, found, strict=True):
        if ids[:-1] != stem:
            raise CheckpointError(
                f"a tokenizer with one token for ' {letter}' after 'Answer:'",
                f"{len(ids)} tokens for 'Answer: {letter}', {len(stem)} for 'Answer:'",
                "use `protocol=generate`",
            )
    return tuple(ids[-1] for ids in found)


def _ask(protocol: Protocol, question: Question) -> str:
    text = question.text.strip() if protocol.strips else question.text
    choices = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)
    )
    return f"{text}{choices}\nAnswer:"
