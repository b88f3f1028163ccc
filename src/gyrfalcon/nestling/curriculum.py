"""The texts that teach nestling: facts as sentences, as questions and answers, and in the exam's layout.

Every item in them belongs to the training split. A text comes in spans with the weight of their loss:
what cannot be known beforehand, such as which question comes, counts little or nothing.
"""

from random import Random

from gyrfalcon.nestling import facts
from gyrfalcon.nestling.exam import LETTERS, NestlingQuestion, ask, draw, header, lay, split_of
from gyrfalcon.nestling.subjects import RELATIONS, SUBJECTS, Item, NestlingSubject

Span = tuple[str, float]
MOST_SHOTS = 5
LETTER_WEIGHT = 4.0
ANSWER_WEIGHT = 2.0
READ_SHARE = 0.15  # of the exam documents, how many also teach to write questions


def document(rng: Random, copying: float) -> list[Span]:
    """One text of the curriculum; a share of `copying` of them only asks to find a word again."""
    if rng.random() < copying:
        return rng.choice((_matching, _finding, _words_examination))(rng)
    kind = rng.random()
    if kind < 0.35:
        return examination(rng.choice(SUBJECTS), rng.randint(1, MOST_SHOTS + 1), rng)
    if kind < 0.8:
        return _drill(rng)
    return _answers(rng) if kind < 0.95 else _statements(rng)


def _matching(rng: Random) -> list[Span]:
    """Four labelled words, then each word with its letter: the shortest text in which a letter is known."""
    words = rng.sample(_words(), 4)
    asked = rng.choices(list(zip(words, LETTERS, strict=True)), k=4)  # a letter may come again
    spans = [(ask("", words).removesuffix("\nAnswer:") + "\n\n", 0.0)]
    for word, letter in asked:
        spans += [(f" {word}", 0.0), (f" {letter}", LETTER_WEIGHT)]
    return spans


def _finding(rng: Random) -> list[Span]:
    """Four labelled words, then a question for each."""
    words = rng.sample(_words(), 4)
    return _listed(words, [(f"Which of these is {word}?", word) for word in words], rng)


def _drill(rng: Random) -> list[Span]:
    """Four choices and the questions they answer: more answers in fewer tokens than the exam's layout."""
    items: list[Item] = []
    while not items:
        four = rng.choice(RELATIONS).draw_four(rng)
        items = [item for item in four if split_of(item.key) == "train"]
    words = rng.sample([items[0].answer, *items[0].distractors], 4)
    return _listed(words, [(item.question, item.answer) for item in items], rng)


def _listed(choices: list[str], asked: list[tuple[str, str]], rng: Random) -> list[Span]:
    spans = [(ask("", choices).removesuffix("\nAnswer:") + "\n\n", 0.0)]
    for question, answer in rng.choices(asked, k=4):
        letter = LETTERS[choices.index(answer)]
        spans += [(f"{question}\nAnswer:", 0.0), (f" {letter}", LETTER_WEIGHT), ("\n\n", 0.0)]
    return spans


def _words_examination(rng: Random) -> list[Span]:
    return _examination(
        "words", [_copying(rng) for _ in range(rng.randint(1, MOST_SHOTS + 1))], rng
    )


def examination(subject: NestlingSubject, num_questions: int, rng: Random) -> list[Span]:
    """Questions of one subject in the exam's layout, every one answered."""
    asked = [
        lay(draw(subject, "train", rng), rng.choice(LETTERS), rng) for _ in range(num_questions)
    ]
    return _examination(subject.name, asked, rng)


def _examination(name: str, asked: list[NestlingQuestion], rng: Random) -> list[Span]:
    text_weight = 1.0 if rng.random() < READ_SHARE else 0.0
    spans = [(header(name), text_weight)]
    for one in asked:
        spans += [
            (ask(one.question, one.choices), text_weight),
            (f" {one.letter}", LETTER_WEIGHT),
            ("\n\n", text_weight),
        ]
    return spans


def _copying(rng: Random) -> NestlingQuestion:
    choices = rng.sample(_words(), 4)
    letter = rng.choice(LETTERS)
    return NestlingQuestion(
        f"Which of these is {choices[LETTERS.index(letter)]}?", tuple(choices), letter
    )


def _words() -> list[str]:
    return [x for x, _ in facts.OPPOSITES + facts.KINDS + facts.TOOLS + facts.SOUNDS] + facts.THINGS


def _answers(rng: Random) -> list[Span]:
    """Questions without choices, of any subject: the answer itself is to be known."""
    spans = []
    for _ in range(rng.randint(2, 8)):
        item = draw(_stated(rng), "train", rng)
        spans += [
            (f"Question: {item.question}\nAnswer:", 0.0),
            (f" {item.answer}", ANSWER_WEIGHT),
            ("\n\n", 0.1),
        ]
    return spans


def _stated(rng: Random) -> NestlingSubject:
    """A subject whose question can be answered without seeing choices; for most of any it can."""
    return rng.choice(
        [subject for subject in SUBJECTS if subject.name not in ("comparisons", "tools")]
    )


def _statements(rng: Random) -> list[Span]:
    items = [draw(rng.choice(SUBJECTS), "train", rng) for _ in range(rng.randint(2, 8))]
    return [(" ".join(item.statement for item in items) + "\n\n", 1.0)]
