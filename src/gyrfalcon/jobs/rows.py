"""Rows of prompts: what one holds, read from the objects of a JSONL or Parquet file. No files, no tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gyrfalcon.bounds import shown as shown_by_python
from gyrfalcon.errors import GyrfalconError, UsageError, shortened
from gyrfalcon.files.json_fields import shown

RowId = str | int
Prompt = str | tuple[int, ...]

FIX = "correct the row"


@dataclass(frozen=True, slots=True)
class Columns:
    """What the fields of a row are called."""

    id: str = "id"
    prompt: str = "prompt"
    continuation: str = "continuation"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt, text or token ids, and for scoring maybe what continues it, of the same kind. `where`
    names it in messages; one without an id of its own has that for an id. `unused` are its other fields.
    """

    where: str
    id: RowId
    prompt: Prompt
    continuation: Prompt | None = None
    unused: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row from which no result can come, and why."""

    where: str
    id: RowId
    error: GyrfalconError


def read_row(value: object, where: str, columns: Columns, *, scored: bool) -> Row | BadRow:
    """The row in a JSON value. A continuation is read where rows are `scored`."""
    try:
        if not isinstance(value, Mapping):
            raise UsageError(f"a JSON object in {where}", _shown(value), FIX)
        own_id = _id(value.get(columns.id), where, columns.id)
    except UsageError as error:
        return BadRow(where, where, error)
    row_id = where if own_id is None else own_id
    used = {columns.id, columns.prompt, *([columns.continuation] if scored else [])}
    try:
        if value.get(columns.prompt) is None:
            others = [str(name) for name in value if name != columns.prompt]
            got = f"only {', '.join(others)}" if others else "none"
            raise UsageError(f"a field {columns.prompt} in {where}", shortened(got), FIX)
        prompt = _text_or_ids(value[columns.prompt], where, columns.prompt)
        continuation = None
        if scored and value.get(columns.continuation) is not None:
            name = columns.continuation
            continuation = _text_or_ids(value[name], where, name)
            if isinstance(prompt, str) != isinstance(continuation, str):
                wanted = f"{columns.prompt} and {name} in {where} both as text or as token ids"
                raise UsageError(wanted, "one of each", FIX)
    except UsageError as error:
        return BadRow(where, row_id, error)
    return Row(where, row_id, prompt, continuation, frozenset(map(str, value)) - used)


def _id(value: object, where: str, name: str) -> RowId | None:
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise UsageError(f"a string or a whole number for {name} in {where}", _shown(value), FIX)


def _text_or_ids(value: object, where: str, name: str) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    raise UsageError(f"text or a list of token ids for {name} in {where}", _shown(value), FIX)


def _shown(value: object) -> str:
    """As JSON; what Parquet has beyond it as Python does."""
    try:
        return shown(value)
    except TypeError:
        return shown_by_python(value)
