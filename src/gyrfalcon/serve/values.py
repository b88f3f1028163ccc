"""What the value of a request's option may be: each kind reads one that came as JSON, and describes itself
as JSON Schema.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gyrfalcon.bounds import Bounds, shown
from gyrfalcon.request import is_text
from gyrfalcon.text.chat import Message

Schema = dict[str, object]

MOST_PROMPTS = 2048  # of one request
MOST_MESSAGES = 2048
MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_STOP_IDS = MOST_BIASES = 1024
TOKEN_IDS = Bounds(0, 2**31 - 1)
TOKEN_ID_RANGE = range(2**31)
BIASES = Bounds(-100, 100)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
EMPTY: tuple[object, ...] = ({}, [], "")  # what clients send back in a message of ours


class WrongValue(Exception):
    """A value that an option does not take: what it takes, what came, and where in the value (".0.role")."""

    def __init__(self, wanted: str, got: object, at: str = "") -> None:
        super().__init__(wanted, got, at)
        self.wanted, self.at = wanted, at
        self.got = got if isinstance(got, str) else shown(got)


class ValueType(Protocol):
    """One kind of values."""

    @property
    def words(self) -> str:
        """What it takes, for people."""

    def read(self, value: object) -> object:
        """The value as the server uses it; WrongValue for another kind of value."""

    def schema(self) -> Schema:
        """Its JSON Schema."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds; JSON may write it as 5.0."""

    bounds: Bounds

    @property
    def words(self) -> str:
        return f"a whole number {self.bounds.words}"

    def read(self, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value not in self.bounds:
            raise WrongValue(self.words, shown(value))
        return value

    def schema(self) -> Schema:
        return {"type": "integer", **_range(self.bounds)}


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds."""

    bounds: Bounds

    @property
    def words(self) -> str:
        return f"a number {self.bounds.words}"

    def read(self, value: object) -> float:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or value not in self.bounds:  # type: ignore[operator]  # known to be a number
            raise WrongValue(self.words, shown(value))
        return float(value)  # type: ignore[arg-type]  # known to be a number

    def schema(self) -> Schema:
        return {"type": "number", **_range(self.bounds)}


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    words: str = "true or false"

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise WrongValue(self.words, shown(value))
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text:
    """A string, of a length within bounds."""

    least: int = 0
    most: int | None = None

    @property
    def words(self) -> str:
        return "a string" if self.most is None else f"{self.least} to {self.most} characters"

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise WrongValue(self.words, shown(value))
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            raise WrongValue(self.words, str(len(value)))
        if not is_text(value):
            raise WrongValue("valid Unicode", shown(value))
        return value

    def schema(self) -> Schema:
        least: Schema = {"minLength": self.least} if self.least else {}
        most: Schema = {} if self.most is None else {"maxLength": self.most}
        return {"type": "string", **least, **most}


@dataclass(frozen=True, slots=True)
class Stops:
    """A string or several."""

    words: str = f"a string, or at most {MOST_STOPS} of 1 to {LONGEST_STOP} characters each"

    def read(self, value: object) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MOST_STOPS:
            raise WrongValue(self.words, shown(value))
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= LONGEST_STOP:
                raise WrongValue(self.words, shown(stop))
        return tuple(stops)

    def schema(self) -> Schema:
        one: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
        return {"anyOf": [one, {"type": "array", "items": one, "maxItems": MOST_STOPS}]}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A list of token ids, of `most` at most."""

    most: int | None = None

    @property
    def words(self) -> str:
        return "a list of token ids" if self.most is None else f"at most {self.most} token ids"

    def read(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise WrongValue(self.words, shown(value))
        if self.most is not None and len(value) > self.most:
            raise WrongValue(self.words, str(len(value)))
        return _ids(value, self.words)

    def schema(self) -> Schema:
        most: Schema = {} if self.most is None else {"maxItems": self.most}
        return {"type": "array", "items": {"type": "integer", **_range(TOKEN_IDS)}, **most}


@dataclass(frozen=True, slots=True)
class Prompts:
    """One prompt, as a string or token ids, or a list of such prompts."""

    words: str = f"a string, token ids, or 1 to {MOST_PROMPTS} of these"

    def read(self, value: object) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not value:
            raise WrongValue(self.words, shown(value))
        if isinstance(value[0], int):
            return (_ids(value, self.words),)
        if len(value) > MOST_PROMPTS:
            raise WrongValue(self.words, f"{len(value)} prompts")
        if all(isinstance(one, str) for one in value):
            return tuple(value)
        if not all(isinstance(one, list) for one in value):
            raise WrongValue(self.words, "a list of other things")
        return tuple(_ids(one, self.words, f".{place}") for place, one in enumerate(value))

    def schema(self) -> Schema:
        ids, text = TokenIds().schema(), Text().schema()
        several = {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS}
        return {"anyOf": [text, ids, {**several, "items": text}, {**several, "items": ids}]}


@dataclass(frozen=True, slots=True)
class Biases:
    """Numbers by token ids, which JSON writes as strings."""

    words: str = f"an object of at most {MOST_BIASES} token ids, each with a number {BIASES.words}"

    def read(self, value: object) -> dict[int, float]:
        if not isinstance(value, dict):
            raise WrongValue(self.words, shown(value))
        if len(value) > MOST_BIASES:
            raise WrongValue(self.words, str(len(value)))
        for token_id in value:
            if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 11):
                raise WrongValue("token ids as keys", token_id, ".*")
        return {int(token_id): Number(BIASES).read(bias) for token_id, bias in value.items()}

    def schema(self) -> Schema:
        number = Number(BIASES).schema()
        return {
            "type": "object",
            "patternProperties": {"^[0-9]{1,10}$": number},
            "maxProperties": MOST_BIASES,
            "additionalProperties": False,
        }


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation. Text parts of a message are joined; what clients send back of a message of ours
    without a meaning (null and empty fields) is dropped.
    """

    words: str = f"a list of 1 to {MOST_MESSAGES} messages"

    def read(self, value: object) -> tuple[Message, ...]:
        if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
            raise WrongValue(self.words, shown(value))
        return tuple(_message(one, f".{place}") for place, one in enumerate(value))

    def schema(self) -> Schema:
        part = {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": Text().schema()},
            "required": ["type", "text"],
            "additionalProperties": {"enum": [None, *EMPTY]},
        }
        message = {
            "type": "object",
            "properties": {
                "role": {"enum": list(ROLES)},
                "content": {
                    "anyOf": [Text().schema(), {"type": "array", "items": part, "minItems": 1}]
                },
            },
            "required": ["role", "content"],
            "additionalProperties": {"enum": [None, *EMPTY]},
        }
        return {"type": "array", "items": message, "minItems": 1, "maxItems": MOST_MESSAGES}


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of such fields, each of which may be absent or null unless it is `required`."""

    fields: Mapping[str, ValueType]
    required: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return f"an object of {', '.join(self.fields)}"

    def read(self, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise WrongValue(self.words, shown(value))
        read: dict[str, object] = {}
        for name, one in value.items():
            if one is None:
                continue
            if name not in self.fields:
                raise WrongValue(self.words, name, f".{name}")
            try:
                read[name] = self.fields[name].read(one)
            except WrongValue as wrong:
                raise WrongValue(wrong.wanted, wrong.got, f".{name}{wrong.at}") from None
        for name in self.required:
            if name not in read:
                raise WrongValue(self.fields[name].words, "none", f".{name}")
        return read

    def schema(self) -> Schema:
        fields = {
            name: kind.schema() if name in self.required else nullable(kind.schema())
            for name, kind in self.fields.items()
        }
        required: Schema = {"required": list(self.required)} if self.required else {}
        return {"type": "object", "properties": fields, "additionalProperties": False, **required}


@dataclass(frozen=True, slots=True)
class Only:
    """One of a few values."""

    values: tuple[object, ...]

    @property
    def words(self) -> str:
        return " or ".join(map(json.dumps, self.values))

    def read(self, value: object) -> object:
        if not any(same(value, one) for one in self.values):
            raise WrongValue(self.words, shown(value))
        return value

    def schema(self) -> Schema:
        return {"enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class Anything:
    """Any value."""

    words: str = "any value"

    def read(self, value: object) -> object:
        return value

    def schema(self) -> Schema:
        return {}


def same(value: object, other: object) -> bool:
    """Whether two values are the same in JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def nullable(schema: Schema) -> Schema:
    """The schema of what may be null as well, which counts as absent."""
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _range(bounds: Bounds) -> Schema:
    return {"exclusiveMinimum" if bounds.above else "minimum": bounds.least, "maximum": bounds.most}


def _ids(value: Sequence[object], words: str, at: str = "") -> tuple[int, ...]:
    for one in value:
        if type(one) is not int or one not in TOKEN_ID_RANGE:
            raise WrongValue(words, one, at)
    return tuple(value)  # type: ignore[arg-type]  # whole numbers all


def _message(value: object, at: str) -> Message:
    if not isinstance(value, dict):
        raise WrongValue("a message {role, content}", value, at)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise WrongValue(f"a role: {', '.join(ROLES)}", role, f"{at}.role")
    _refuse_others(value, ("role", "content"), "a message", at)
    return Message(ROLES[role], _content(content, f"{at}.content"))


def _content(content: object, at: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise WrongValue('a text, or a list of {"type": "text", "text": …}', content, at)
    return "".join(_part(part, f"{at}.{place}") for place, part in enumerate(content))


def _part(part: object, at: str) -> str:
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind != "text" or not isinstance(text, str):
        got = kind if isinstance(kind, str) and kind != "text" else part
        raise WrongValue('a part {"type": "text", "text": …}: this model takes text', got, at)
    assert isinstance(part, dict)
    _refuse_others(part, ("type", "text"), "a part", at)
    return text


def _refuse_others(value: Mapping[str, object], names: tuple[str, str], what: str, at: str) -> None:
    """WrongValue for a further field that says something."""
    for name, one in value.items():
        if name not in names and one is not None and one not in EMPTY:
            raise WrongValue(f"{' and '.join(names)} alone in {what}", name, f"{at}.{name}")
