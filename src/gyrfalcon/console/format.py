"""How commands show results: readable sizes, and --json, one object to a file or alone to stdout."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from gyrfalcon.files.output import OutputFile


def write_json(result: object, target: OutputFile) -> None:
    """Writes one JSON object; paths become strings."""
    target.write(json_text(result, target, indent=2))


def json_text(result: object, target: OutputFile, indent: int | None = None) -> str:
    """JSON with a final newline; non-ASCII is escaped only where `target` cannot encode it."""
    plain = target.is_stdout and "utf" not in (sys.stdout.encoding or "utf").lower()
    return json.dumps(result, indent=indent, ensure_ascii=plain, default=_plain) + "\n"


def goes_to_stdout(target: OutputFile | None) -> bool:
    """Whether the result owns standard output, so that nothing else may be printed there."""
    return target is not None and target.is_stdout


def show_result(result: object, lines: Iterable[str], json: OutputFile | None) -> None:
    """Writes the result as JSON where asked, and prints the lines unless JSON goes to standard output."""
    if json is not None:
        write_json(result, json)
    if not goes_to_stdout(json):
        print("\n".join(lines))


def say_ready(description: str, notes: Iterable[str]) -> None:
    """Prints to standard error what runs, and notes on how the model was read."""
    for line in (f"ready: {description}", *map(note_line, notes)):
        print(line, file=sys.stderr)


def note_line(note: str) -> str:
    """A note on how the model was read, as it is printed."""
    return f"note: {printable(note)}"


def printable(text: str) -> str:
    """A text on one line; what would command a terminal instead of being shown is escaped, as \\x1b."""
    words = " ".join(text.split())
    if words.isprintable():
        return words
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in words)


def counted(count: int, noun: str) -> str:
    """1 → "1 question", 1234 → "1234 questions"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown_bytes(num_bytes: int) -> str:
    """1234567 → "1.2 MB"; units are powers of 1000."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
