"""Reads the fields of a foreign JSON object: several names for one thing, types checked, nothing missed."""

from collections.abc import Mapping
from typing import TypeGuard, TypeVar

from gyrfalcon.errors import ConfigError

T = TypeVar("T", int, float, bool, str)

KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
LARGEST = 1e15  # no size or factor of a model comes near; NaN and infinity are not within it either


class Fields:
    """One JSON object and the names already read from it; `where` names it in error messages."""

    def __init__(self, raw: Mapping[str, object], where: str) -> None:
        self.raw = raw
        self.where = where
        self.read: set[str] = set()

    def take(self, kind: type[T], *names: str) -> T | None:
        """The value under any of `names`; None when absent or null. Two names that disagree are an error."""
        self.read.update(names)
        found = {name: self._typed(kind, name) for name in names if self.raw.get(name) is not None}
        if len(set(found.values())) > 1:
            raise ConfigError(
                f"one value for {' / '.join(found)}", _shown(found), f"mend {self.where}"
            )
        return next(iter(found.values()), None)

    def need(self, kind: type[T], *names: str) -> T:
        """As take(), but absence is an error."""
        value = self.take(kind, *names)
        if value is None:
            raise ConfigError(f"a field {' or '.join(names)}", "none", f"add it to {self.where}")
        return value

    def positive(self, *names: str) -> int:
        """A whole number above zero that must be there."""
        value = self.need(int, *names)
        if value < 1:
            raise ConfigError(f"{names[0]} above 0", str(value), f"mend {self.where}")
        return value

    def nested(self, name: str) -> "Fields | None":
        """The object under `name`; None when absent or null."""
        self.read.add(name)
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"an object for {name}", repr(value), f"mend {self.where}")
        return Fields(value, f"{name} of {self.where}")

    def refuse_unread(self, harmless: frozenset[str] = frozenset()) -> None:
        """Raises when a field was neither read nor is known to leave the mathematics alone."""
        for name, value in self.raw.items():
            if value is not None and name not in self.read | harmless and not name.startswith("_"):
                raise ConfigError(
                    "only fields whose meaning is known",
                    f"{name} = {value!r}",
                    f"remove it from {self.where} if it does not change the mathematics",
                )

    def _typed(self, kind: type[T], name: str) -> T:
        value = self.raw[name]
        if kind is float and _is_number(value):
            value = float(value)
        if not isinstance(value, kind) or (kind in (int, float) and not _is_number(value)):
            raise ConfigError(f"{KIND_NAMES[kind]} for {name}", repr(value), f"mend {self.where}")
        return value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _shown(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())
