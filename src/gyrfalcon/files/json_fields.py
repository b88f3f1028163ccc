"""Reads the fields of a foreign JSON object: aliases, type checks, and no field left unread."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard, TypeVar

from gyrfalcon.errors import ConfigError, UsageError, shortened
from gyrfalcon.files.foreign import DEEPEST, is_deep

T = TypeVar("T", int, float, bool, str)

KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
LARGEST = 1e15  # above any size or factor of a model; excludes NaN and infinity


class Fields:
    """A JSON object and the names already read from it. `where` names it in error messages; numbers
    above `largest` are refused.
    """

    def __init__(self, raw: Mapping[str, object], where: str, largest: float = LARGEST) -> None:
        self.raw = raw
        self.where = where
        self.largest = largest
        self.read: set[str] = set()

    def take(self, kind: type[T], *names: str) -> T | None:
        """The value under any of `names`; None when absent or null. Aliases that disagree are an
        error.
        """
        self.read.update(names)
        found = {name: self._typed(kind, name) for name in names if self.raw.get(name) is not None}
        if len(set(found.values())) > 1:
            raise ConfigError(
                f"one value for {' / '.join(found)}", _shown(found), f"correct {self.where}"
            )
        return next(iter(found.values()), None)

    def need(self, kind: type[T], *names: str) -> T:
        """As take(), but absence is an error."""
        value = self.take(kind, *names)
        if value is None:
            raise ConfigError(f"a field {' or '.join(names)}", "none", f"add it to {self.where}")
        return value

    def positive(self, *names: str) -> int:
        """A required whole number above zero."""
        value = self.need(int, *names)
        if value < 1:
            raise ConfigError(f"{names[0]} above 0", str(value), f"correct {self.where}")
        return value

    def count(self, *names: str) -> int:
        """A required whole number of zero or more."""
        value = self.need(int, *names)
        if value < 0:
            raise ConfigError(f"{names[0]} of 0 or more in {self.where}", str(value), "fix it")
        return value

    def inside(self, name: str) -> "Fields":
        """As nested(), but absence is an error."""
        found = self.nested(name)
        if found is None:
            raise ConfigError(f"an object {name} in {self.where}", "none", "add it")
        return found

    def items(self, name: str) -> list[object]:
        """The required list under `name`."""
        self.read.add(name)
        found = self.raw.get(name)
        if not isinstance(found, list):
            raise ConfigError(f"a list {name} in {self.where}", shown(found), "fix it")
        return found

    def objects(self, name: str) -> "list[Fields]":
        """The required list of objects under `name`."""
        found = []
        for number, value in enumerate(self.items(name)):
            where = f"{name}[{number}] of {self.where}"
            if not isinstance(value, dict):
                raise ConfigError(f"an object at {where}", shown(value), "fix it")
            found.append(Fields(value, where, self.largest))
        return found

    def list_of(self, kind: type[T], name: str) -> list[T]:
        """The required list of values of one kind under `name`."""
        where = f"{name} of {self.where}"
        raw = {f"item {number}": value for number, value in enumerate(self.items(name))}
        fields = Fields(raw, where, self.largest)
        return [fields.need(kind, item) for item in raw]

    def one_of(self, words: Sequence[str], name: str) -> str:
        """A required word, one of `words`."""
        word = self.need(str, name)
        if word not in words:
            wanted = f"{name} to be one of {', '.join(words)} in {self.where}"
            raise ConfigError(wanted, shown(word), "fix it")
        return word

    def nested(self, name: str) -> "Fields | None":
        """The object under `name`; None when absent, null or false."""
        self.read.add(name)
        value = self.raw.get(name)
        if value is None or value is False:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"an object for {name}", repr(value), f"correct {self.where}")
        return Fields(value, f"{name} of {self.where}", self.largest)

    def refuse_unread(self, harmless: frozenset[str] = frozenset()) -> None:
        """ConfigError for a field that was not read and is not known to be harmless."""
        for name, value in self.raw.items():
            if value is not None and name not in self.read | harmless and not name.startswith("_"):
                raise ConfigError(
                    "only fields whose meaning is known",
                    f"{name} = {value!r}",
                    f"remove it from {self.where} if it does not change the mathematics",
                )

    def _typed(self, kind: type[T], name: str) -> T:
        value = self.raw[name]
        if kind is float and _is_number(value, self.largest):
            value = float(value)
        is_numeric = kind in (int, float)
        if not isinstance(value, kind) or (is_numeric and not _is_number(value, self.largest)):
            raise ConfigError(
                f"{KIND_NAMES[kind]} for {name}", repr(value), f"correct {self.where}"
            )
        return value


def parsed_json(raw: bytes, where: str, do: str) -> object:
    """The value of a JSON text; UsageError for text that is damaged in any way.

    Also refused: NaN and infinities, a name twice in one object, and nesting too deep to walk. Half
    a surrogate pair, which no file can store, becomes a question mark.
    """
    try:
        value: object = json.loads(
            raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
        if is_deep(value):
            raise ValueError(f"objects or lists more than {DEEPEST} deep")
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if not text.isascii():
            value = json.loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"JSON in {where}", str(error), do) from None
    return value


def shown(value: object) -> str:
    """A foreign value for an error message, as JSON."""
    return shortened(json.dumps(value, ensure_ascii=False))


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word}, which is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} twice in one object")
    return found


def _is_number(value: object, largest: float) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest


def _shown(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())
