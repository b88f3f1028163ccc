"""Structured output: what the text of a request has to match, checked as far as it can be without a
tokenizer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from gyrfalcon.bounds import shown
from gyrfalcon.console.suggestion import known_names
from gyrfalcon.errors import RequestError

MOST_BYTES = 64 * 1024
ONE_OF = "one of json, json_object, regex, choice and grammar"
NAMES = {
    "json": "a JSON schema",
    "json_object": "True or False for json_object",
    "regex": "a regular expression",
    "choice": "a list of choices",
    "grammar": "a grammar in Lark's syntax",
}
Schema = str | Mapping[str, object]


@known_names(RequestError, "structured output")
@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What the text has to match: exactly one of these, of at most 64 KiB. The tokens are chosen
    among those that keep it possible, and the text ends only where it matches.

    json: a JSON schema (draft 2020-12, without remote references), as a mapping or as its text. The
        properties come in the order of the schema.
    json_object: True for any JSON object.
    regex: a regular expression, in the syntax of Rust's, that the whole text matches.
    choice: texts, one of which it is.
    grammar: a context-free grammar in the syntax of Lark, which begins with its rule `start`.

    >>> params = SamplingParams(structured=StructuredOutput(choice=["yes", "no"]))
    >>> Engine("nestling").generate("Is it a bird?", params)[0].text in ("yes", "no")
    True
    >>> StructuredOutput(regex="[0-9]+", json_object=True)
    Traceback (most recent call last):
    gyrfalcon.errors.RequestError: wanted one of ... and grammar, got 2 of them; give one
    """

    json: Schema | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        """Keeps a schema as its text, and the choices in a tuple."""
        given = self._given()
        if len(given) != 1:
            raise RequestError(ONE_OF, f"{len(given)} of them", "give one")
        kind = given[0]
        parts = _parts(kind, getattr(self, kind))
        size = sum(len(part.encode()) for part in parts)
        if size > MOST_BYTES:
            wanted = f"{NAMES[kind]} of at most {MOST_BYTES:,} bytes"
            raise RequestError(wanted, f"{size:,}", "simplify it")
        if kind != "json_object":
            object.__setattr__(self, kind, parts if kind == "choice" else parts[0])

    @property
    def kind(self) -> str:
        """Which of them is given."""
        return self._given()[0]

    @property
    def name(self) -> str:
        """What it is called in an error message."""
        return NAMES[self.kind]

    def _given(self) -> list[str]:
        return [one.name for one in fields(self) if getattr(self, one.name) not in (None, False)]


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    """Structured output as Engine.prepare() compiled it, which only that engine takes without compiling it
    again. Equal to any other of the same structured output.
    """

    structured: StructuredOutput
    compiler: object = field(compare=False, repr=False)  # the engine's, see text/grammar.py
    grammar: object = field(compare=False, repr=False)  # what it made, on rank 0


def _parts(kind: str, value: object) -> tuple[str, ...]:
    """The texts that a value consists of; RequestError for another value."""
    if kind == "json_object" and value is True:
        return ()
    if kind == "json" and isinstance(value, Mapping):
        value = _json_text(value)
    if kind == "choice" and isinstance(value, Iterable) and not isinstance(value, str):
        parts = tuple(value)
    else:
        parts = () if kind == "choice" else (value,)
    if not parts or not all(map(_is_text, parts)):
        raise RequestError(NAMES[kind], shown(value), "correct it")
    return parts


def _is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can write."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _json_text(schema: Mapping[str, object]) -> str:
    try:
        return json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError("a JSON schema that JSON can write", str(error), "correct it") from None
