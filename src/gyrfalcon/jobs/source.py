"""Files of prompts, read row by row from any place on: JSONL, Parquet, or text with a prompt on each line.
Memory does not grow with them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.errors import UsageError
from gyrfalcon.files.foreign import open_foreign
from gyrfalcon.files.json_fields import parsed_json
from gyrfalcon.files.text import CHUNK_BYTES
from gyrfalcon.jobs.parquet_file import parquet_names, parquet_rows
from gyrfalcon.jobs.rows import FIX, BadRow, Columns, Row, read_row

JSONL, PARQUET, TEXT = "jsonl", "parquet", "text"
FORMATS = {".jsonl": JSONL, ".ndjson": JSONL, ".parquet": PARQUET, ".txt": TEXT, "": TEXT}
MOST_ROW_BYTES = 64 << 20  # of one line
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Start:
    """A place in a file: `offset` in bytes (in rows for Parquet), and the number of the row there, from 1."""

    offset: int = 0
    number: int = 1


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file; `name` is what its rows are called by, the same wherever the file lies."""

    path: Path
    name: str

    @property
    def format(self) -> str:
        return FORMATS[self.path.suffix.lower()]

    def digest(self) -> str:
        """The SHA-256 of its content."""
        total = hashlib.sha256()
        with open_foreign(self.path) as file:
            while chunk := file.read(CHUNK_BYTES):
                total.update(chunk)
        return total.hexdigest()


def source_files(path: str) -> list[SourceFile]:
    """The file, or the files in the folder in order of their names, but for hidden ones and others' marks
    such as _SUCCESS; UsageError for what is no such file.
    """
    place = Path(path)
    if not place.exists():
        do = path_meant(path, "check its path")
        raise UsageError("a file or folder of prompts", f"no such one at {path}", do)
    if not place.is_dir():
        return [_source_file(place, place.name)]
    files = sorted(one for one in place.iterdir() if one.is_file() and one.name[0] not in "._")
    if not files:
        raise UsageError(f"files of prompts in {path}", "none", "name another folder")
    return [_source_file(file, file.name) for file in files]


def rows_from(
    file: SourceFile, start: Start, columns: Columns, *, scored: bool
) -> Iterator[tuple[Start, Row | BadRow]]:
    """The rows from a place on, each with its own place."""
    if file.format == PARQUET:
        names = [columns.id, columns.prompt, *([columns.continuation] if scored else [])]
        for number, value in enumerate(parquet_rows(file.path, start.offset, names), start.offset):
            where = f"{file.name}:{number + 1}"
            yield Start(number, number + 1), read_row(value, where, columns, scored=scored)
        return
    for place, line in _lines(file.path, start):
        yield place, _line_row(file, f"{file.name}:{place.number}", line, columns, scored)


def unused_columns(file: SourceFile, columns: Columns, *, scored: bool) -> set[str]:
    """The columns of a Parquet file that nobody reads; rows of JSONL know their own."""
    used = {columns.id, columns.prompt, *([columns.continuation] if scored else [])}
    return set(parquet_names(file.path)) - used if file.format == PARQUET else set()


def _source_file(path: Path, name: str) -> SourceFile:
    if path.suffix.lower() not in FORMATS:
        wanted = "files of prompts that end in .jsonl, .parquet or .txt"
        raise UsageError(wanted, str(path), "convert or rename it")
    with open_foreign(path):
        return SourceFile(path, name)


def _lines(path: Path, start: Start) -> Iterator[tuple[Start, bytes | None]]:
    """The lines that are not blank, without their ends; None for one that is too long to be a prompt."""
    offset, number = start.offset, start.number
    with open_foreign(path) as file:
        file.seek(offset)
        while line := file.readline(MOST_ROW_BYTES):
            place, length = Start(offset, number), len(line)
            is_long = len(line) == MOST_ROW_BYTES and not line.endswith(b"\n")
            while is_long and (rest := file.readline(MOST_ROW_BYTES)):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            if is_long:
                yield place, None
            elif not line.isspace() and line != BOM:
                yield place, (line.removeprefix(BOM) if offset == 0 else line).rstrip(b"\r\n")
            offset, number = offset + length, number + 1


def _line_row(
    file: SourceFile, where: str, line: bytes | None, columns: Columns, scored: bool
) -> Row | BadRow:
    try:
        if line is None:
            raise UsageError(f"a row of at most {MOST_ROW_BYTES >> 20} MiB at {where}", "more", FIX)
        if file.format == JSONL:
            return read_row(parsed_json(line, where, FIX), where, columns, scored=scored)
        return Row(where, where, line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(where, where, UsageError(f"UTF-8 in {where}", str(error), "convert it"))
    except UsageError as error:
        return BadRow(where, where, error)
