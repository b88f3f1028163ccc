"""The subjects of the nestling exam: each draws items, one question with its answer and three wrong ones.

An item's key says what it asks, without wording or order of choices: the exam is split by it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from gyrfalcon.nestling import facts

Pairs = tuple[tuple[str, str], ...]
CATEGORIES = ("STEM", "social sciences", "humanities", "other")


@dataclass(frozen=True, slots=True)
class Item:
    """One question; `statement` says the same fact as a plain sentence."""

    question: str
    answer: str
    distractors: tuple[str, str, str]
    statement: str
    key: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A table of pairs (x, y) and its wordings; `asks_y` and `asks_x` are questions, one may be empty."""

    name: str
    pairs: Pairs
    asks_y: tuple[str, ...]
    asks_x: tuple[str, ...]
    states: tuple[str, ...]
    things: dict[str, list[str]] = field(init=False)  # y → every x it is true of

    def __post_init__(self) -> None:
        things: dict[str, list[str]] = {}
        for x, y in self.pairs:
            things.setdefault(y, []).append(x)
        object.__setattr__(self, "things", things)

    def draw(self, rng: Random) -> Item:
        """Asks about every y equally often, so that no answer is more likely than another."""
        y = rng.choice(list(self.things))
        x = rng.choice(self.things[y])
        backwards = self._backwards(rng)
        return self._item(x, y, backwards, rng.sample(self._others(x, y, backwards), 3), rng)

    def draw_four(self, rng: Random) -> list[Item]:
        """Items with the same four choices, each of them the answer to one."""
        backwards = self._backwards(rng)
        four = [(rng.choice(self.things[y]), y) for y in rng.sample(list(self.things), 4)]
        choices = [x if backwards else y for x, y in four]
        return [
            self._item(x, y, backwards, others, rng)
            for (x, y), answer in zip(four, choices, strict=True)
            if set(others := [choice for choice in choices if choice != answer])
            <= set(self._others(x, y, backwards))
        ]

    def _backwards(self, rng: Random) -> bool:
        return bool(self.asks_x) and (not self.asks_y or rng.random() < 0.5)

    def _item(self, x: str, y: str, backwards: bool, wrong: list[str], rng: Random) -> Item:
        first, second, third = sorted(wrong)
        return Item(
            question=rng.choice(self.asks_x if backwards else self.asks_y).format(x=x, y=y),
            answer=x if backwards else y,
            distractors=(first, second, third),
            statement=rng.choice(self.states).format(x=x, y=y),
            key="/".join((self.name, x, y, "x" if backwards else "y", first, second, third)),
        )

    def _others(self, x: str, y: str, backwards: bool) -> list[str]:
        """What may stand beside the answer: of the same table, and wrong."""
        pairs = set(self.pairs)
        if backwards:
            return sorted({other for other, _ in pairs if (other, y) not in pairs} - {y})
        return sorted({other for _, other in pairs if (x, other) not in pairs} - {x})


@dataclass(frozen=True, slots=True)
class NestlingSubject:
    """One file of the exam; `name` with underscores, as in MMLU."""

    name: str
    category: str  # one of CATEGORIES
    sources: tuple[Callable[[Random], Item], ...]

    def draw(self, rng: Random) -> Item:
        return rng.choice(self.sources)(rng)


def _near(answer: int, spread: int, rng: Random) -> tuple[str, str, str]:
    """Three wrong numbers around the answer, which is as often the smallest as the largest of the four."""
    below = min(rng.randrange(4), answer)
    lower = rng.sample(range(max(0, answer - spread), answer), below)
    higher = rng.sample(range(answer + 1, answer + 1 + spread), 3 - below)
    first, second, third = sorted(lower + higher)
    return str(first), str(second), str(third)


def _addition(rng: Random) -> Item:
    a, b = rng.randint(1, 25), rng.randint(1, 25)
    return Item(
        question=rng.choice(("What is {} plus {}?", "How much is {} + {}?")).format(a, b),
        answer=str(a + b),
        distractors=_near(a + b, 10, rng),
        statement=f"{a} plus {b} is {a + b}.",
        key=f"plus/{min(a, b)}/{max(a, b)}",
    )


def _subtraction(rng: Random) -> Item:
    a = rng.randint(4, 30)
    b = rng.randint(1, a - 1)
    return Item(
        question=rng.choice(("What is {} minus {}?", "How much is {} - {}?")).format(a, b),
        answer=str(a - b),
        distractors=_near(a - b, 10, rng),
        statement=f"{a} minus {b} is {a - b}.",
        key=f"minus/{a}/{b}",
    )


def _counting(rng: Random) -> Item:
    thing, count = rng.choice(facts.THINGS), rng.randint(1, 12)
    row = " ".join([thing] * count)
    return Item(
        question=rng.choice(
            ("How many times is {} said in: {}?", "Count the word {} in: {}?")
        ).format(thing, row),
        answer=str(count),
        distractors=_near(count, 6, rng),
        statement=f"In {row} the word {thing} is said {count} times.",
        key=f"count/{thing}/{count}",
    )


def _comparison(rng: Random) -> Item:
    numbers = sorted(rng.sample(range(1, 100), 4))
    word, answer = rng.choice((("largest", numbers[-1]), ("smallest", numbers[0])))
    first, second, third = (str(number) for number in numbers if number != answer)
    among = rng.sample([first, second, third, str(answer)], 4)
    return Item(
        question=f"Which of these numbers is the {word}?",
        answer=str(answer),
        distractors=(first, second, third),
        statement=f"Of {', '.join(among)} the {word} number is {answer}.",
        key=f"compare/{word}/{'/'.join(map(str, numbers))}",
    )


def _sequence(rng: Random) -> Item:
    step = rng.choice((1, 2, 3, 4, 5, 10, -1, -2, -5))
    start = rng.randint(1, 55) if step > 0 else rng.randint(25, 79)
    shown = ", ".join(str(start + step * i) for i in range(4))
    after = start + step * 4
    return Item(
        question=rng.choice(("Which number comes next: {}?", "How does this go on: {}?")).format(
            shown
        ),
        answer=str(after),
        distractors=_near(after, 10, rng),
        statement=f"{shown}, {after}.",
        key=f"sequence/{start}/{step}",
    )


def _successors(words: list[str], closed: bool) -> Pairs:
    return tuple(zip(words, words[1:] + words[:1] if closed else words[1:], strict=False))


def _initials() -> Pairs:
    words = {x for x, _ in facts.KINDS} | set(facts.THINGS)
    return tuple((word, word[0]) for word in sorted(words))


def _after(name: str, noun: str, pairs: Pairs) -> Relation:
    return Relation(
        name,
        pairs,
        (f"Which {noun} comes after {{x}}?", f"What {noun} follows {{x}}?"),
        (f"Which {noun} comes before {{y}}?", f"What {noun} is followed by {{y}}?"),
        (f"The {noun} after {{x}} is {{y}}.", f"The {noun} before {{y}} is {{x}}."),
    )


OPPOSITE = Relation(
    "opposite",
    facts.OPPOSITES,
    ("What is the opposite of {x}?", "Which word means the opposite of {x}?"),
    ("What is the opposite of {y}?", "Which word means the opposite of {y}?"),
    ("The opposite of {x} is {y}.", "The opposite of {y} is {x}."),
)
SYNONYM = Relation(
    "synonym",
    facts.SYNONYMS,
    ("Which word means the same as {x}?", "What is another word for {x}?"),
    ("Which word means the same as {y}?", "What is another word for {y}?"),
    ("Another word for {x} is {y}.", "Another word for {y} is {x}."),
)
CAPITAL = Relation(
    "capital",
    facts.CAPITALS,
    ("What is the capital of {x}?", "Which city is the capital of {x}?"),
    ("Which country has the capital {y}?", "Which country is ruled from {y}?"),
    ("The capital of {x} is {y}.", "{y} is the capital of {x}."),
)
CONTINENT = Relation(
    "continent",
    facts.CONTINENTS,
    ("Where is {x}?", "Which part of the world contains {x}?"),
    ("Which of these countries is in {y}?", "Which country lies in {y}?"),
    ("{x} is a country in {y}.", "In {y} there is a country called {x}."),
)
OCCUPATION = Relation(
    "occupation",
    facts.OCCUPATIONS,
    ("What is used by the {x}?", "What is needed by the {x}?"),
    ("Who works with {y}?", "Whose work is about {y}?"),
    ("The {x} works with {y}.", "The work of the {x} is about {y}."),
)
SOUND = Relation(
    "sound",
    facts.SOUNDS,
    ("What is the sound of the {x}?", "Which sound comes from the {x}?"),
    ("Which animal makes the sound {y}?", "Which animal is known to {y}?"),
    ("The sound of the {x} is {y}.", "The {x} is known to {y}."),
)
YOUNG = Relation(
    "young",
    facts.YOUNG,
    ("What is the young of the {x}?", "What is the name for the child of the {x}?"),
    ("Which animal has for a child the {y}?", "Which animal was once called {y}?"),
    ("The young of the {x} is called {y}.", "The child of the {x} is the {y}."),
)
HOME = Relation(
    "home",
    facts.HOMES,
    ("Where is the home of the {x}?", "What is the home of the {x}?"),
    ("Which animal has for a home the {y}?", "Who lives in the {y}?"),
    ("The {x} lives in the {y}.", "The home of the {x} is the {y}."),
)
COLOUR = Relation(
    "colour",
    facts.COLOURS,
    ("What is the colour of {x}?", "Which colour has {x}?"),
    ("Which of these is {y}?", "Which of these has the colour {y}?"),
    ("The colour of {x} is {y}.", "{y} is the colour of {x}."),
)
MATERIAL = Relation(
    "material",
    facts.MATERIALS,
    ("What is the material of the {x}?", "Of which material is the {x}?"),
    ("Which of these is made of {y}?", "Which thing is of {y}?"),
    ("The {x} is made of {y}.", "They made the {x} of {y}."),
)
TOOL = Relation(
    "tool",
    facts.TOOLS,
    (),
    ("What do people use to {y}?", "Which of these helps to {y}?"),
    ("People use the {x} to {y}.", "The {x} helps to {y}."),
)
KIND = Relation(
    "kind",
    facts.KINDS,
    ("What kind of thing is {x}?", "To which kind of thing belongs {x}?"),
    ("Which of these is a kind of {y}?", "Which word names a {y}?"),
    ("{x} is a kind of {y}.", "One kind of {y} is {x}."),
)
PAST = Relation(
    "past",
    facts.PAST_TENSES,
    ("What is the past tense of {x}?", "Which word is the past of {x}?"),
    ("Which word has the past tense {y}?", "Which word has the past {y}?"),
    ("The past tense of {x} is {y}.", "The past of {x} is {y}."),
)
PLURAL = Relation(
    "plural",
    facts.PLURALS,
    ("What is the plural of {x}?", "Which word means more than one {x}?"),
    ("What is only one of the {y}?", "Which word has the plural {y}?"),
    ("The plural of {x} is {y}.", "More than one {x} are {y}."),
)
INITIAL = Relation(
    "initial",
    _initials(),
    ("Which letter begins the word {x}?", "What is the first letter of {x}?"),
    ("Which word begins with the letter {y}?", "Which word has the first letter {y}?"),
    ("The word {x} begins with the letter {y}.", "The first letter of {x} is {y}."),
)
DAY = _after("day", "day", _successors(facts.DAYS, closed=True))
MONTH = _after("month", "month", _successors(facts.MONTHS, closed=True))
LETTER = _after("letter", "letter", _successors(facts.ALPHABET, closed=False))

RELATIONS = (
    *(
        OPPOSITE,
        SYNONYM,
        CAPITAL,
        CONTINENT,
        OCCUPATION,
        SOUND,
        YOUNG,
        HOME,
        COLOUR,
        MATERIAL,
        TOOL,
    ),
    *(KIND, PAST, PLURAL, INITIAL, DAY, MONTH, LETTER),
)
SUBJECTS = (
    NestlingSubject("arithmetic", "STEM", (_addition, _subtraction)),
    NestlingSubject("counting", "STEM", (_counting,)),
    NestlingSubject("comparisons", "STEM", (_comparison,)),
    NestlingSubject("number_sequences", "STEM", (_sequence,)),
    NestlingSubject("materials", "STEM", (MATERIAL.draw,)),
    NestlingSubject("capitals", "social sciences", (CAPITAL.draw,)),
    NestlingSubject("world_geography", "social sciences", (CONTINENT.draw,)),
    NestlingSubject("occupations", "social sciences", (OCCUPATION.draw,)),
    NestlingSubject("opposites", "humanities", (OPPOSITE.draw,)),
    NestlingSubject("synonyms", "humanities", (SYNONYM.draw,)),
    NestlingSubject("word_forms", "humanities", (PAST.draw, PLURAL.draw)),
    NestlingSubject("letters", "humanities", (INITIAL.draw, LETTER.draw)),
    NestlingSubject("animals", "other", (SOUND.draw, YOUNG.draw, HOME.draw)),
    NestlingSubject("calendar", "other", (DAY.draw, MONTH.draw)),
    NestlingSubject("colours", "other", (COLOUR.draw,)),
    NestlingSubject("kinds_of_things", "other", (KIND.draw,)),
    NestlingSubject("tools", "other", (TOOL.draw,)),
)
