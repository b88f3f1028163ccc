"""Reads all prompts once before any work: finds the rows from which no result can come, and where each part
begins.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from gyrfalcon.console.format import counted
from gyrfalcon.errors import GyrfalconError, UsageError
from gyrfalcon.jobs.doubled import Doubled
from gyrfalcon.jobs.rows import BadRow, Row
from gyrfalcon.jobs.source import SourceFile, Start, rows_from, unused_columns
from gyrfalcon.jobs.task import STOP, RowEncoder, Task

MOST_SHOWN = 3  # bad rows in an error
MOST_DOUBLED = 10_000  # ids that are kept as errors: more are no accident


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one file that one worker does at a time."""

    number: int
    file: int  # its place among the files
    start: Start
    num_rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts, and what the first reading found. `doubled`: rows with the id of another, and that one."""

    parts: Sequence[Part]
    doubled: Mapping[str, str]
    num_bad: int
    unused: Sequence[str] = ()  # fields that nobody reads

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)


def make_plan(
    files: Sequence[SourceFile], encode: RowEncoder, seen: Callable[[int], object]
) -> Plan:
    """Checks every row, calling `seen` for each. UsageError for bad ones, unless errors are to be written."""
    task = encode.task
    parts: list[Part] = []
    bad: list[GyrfalconError] = []
    num_bad, unused = 0, set[str]()
    with closing(Doubled()) as ids:
        for index, file in enumerate(files):
            unused |= unused_columns(file, task.columns, scored=task.scores)
            begin, count = Start(), 0
            for place, row in rows_from(file, Start(), task.columns, scored=task.scores):
                if count == task.part_rows:
                    parts.append(Part(len(parts), index, begin, count))
                    count = 0
                begin, count = (begin, count + 1) if count else (place, 1)
                ids.add(row.id, index, place.number)
                if isinstance(row, Row):
                    unused |= row.unused
                if error := _error(row, encode):
                    num_bad += 1
                    bad += [error] if len(bad) < MOST_SHOWN else []
                seen(1)
            if count:
                parts.append(Part(len(parts), index, begin, count))
        doubled = _doubled(ids, files, task)
    if not parts:
        raise UsageError(f"a prompt in {_names(files)}", "none", "write one")
    num_bad += len(doubled)
    bad += [doubled_id(where, first) for where, first in doubled.items()]
    if bad and task.on_error == STOP:
        raise _refused(bad, num_bad, files)
    return Plan(parts, doubled, num_bad, sorted(unused))


def doubled_id(where: str, first: str) -> UsageError:
    """The error of a row whose id an earlier row has."""
    return UsageError(f"an id of its own for {where}", f"that of {first}", "give it another")


def _error(row: Row | BadRow, encode: RowEncoder) -> GyrfalconError | None:
    if isinstance(row, BadRow):
        return row.error
    try:
        encode(row)
    except GyrfalconError as error:
        return error
    return None


def _doubled(ids: Doubled, files: Sequence[SourceFile], task: Task) -> dict[str, str]:
    found: dict[str, str] = {}
    for row, first in ids.rows():
        (where, number), (first_where, first_number) = row, first
        found[f"{files[where].name}:{number}"] = f"{files[first_where].name}:{first_number}"
        if len(found) > MOST_DOUBLED:
            wanted = f"at most {MOST_DOUBLED:,} rows in {_names(files)} with an id that another has"
            do = f"correct the field {task.columns.id}, or name another"
            raise UsageError(wanted, f"more, {next(iter(found))} among them", do)
    return found


def _refused(
    bad: Sequence[GyrfalconError], num_bad: int, files: Sequence[SourceFile]
) -> UsageError:
    shown = "; ".join(f"wanted {error.wanted}, got {error.got}" for error in bad[:MOST_SHOWN])
    more = f"; and {num_bad - MOST_SHOWN} more" if num_bad > MOST_SHOWN else ""
    return UsageError(
        f"prompts without an error in {_names(files)}",
        f"{counted(num_bad, 'bad row')}: {shown}{more}",
        "correct them, name other fields (--prompt-field and its like), or add --on-error write to have each "
        "error in place of a result",
    )


def _names(files: Sequence[SourceFile]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].path}{more}"
