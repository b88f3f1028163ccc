"""How commands show results: sizes for people, and --json, one object to a file or to stdout alone."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from gyrfalcon.files.output import OutputFile


def write_json(result: object, target: OutputFile) -> None:
    """Writes one JSON object; paths become strings."""
    target.write(json_text(result, target, indent=2))


def json_text(result: object, target: OutputFile, indent: int | None = None) -> str:
    """JSON with a line end; letters stay as they are wherever `target` can take them."""
    plain = target.is_stdout and "utf" not in (sys.stdout.encoding or "utf").lower()
    return json.dumps(result, indent=indent, ensure_ascii=plain, default=_plain) + "\n"


def goes_to_stdout(target: OutputFile | None) -> bool:
    """Whether a result takes standard output for itself, so that nothing else may be printed there."""
    return target is not None and target.is_stdout


def say_ready(description: str, notes: Iterable[str]) -> None:
    """Tells people on standard error what runs, and what they should know about how it was read."""
    for line in (f"ready: {description}", *(f"note: {note}" for note in notes)):
        print(line, file=sys.stderr)


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
    raise TypeError(f"{type(value).__name__} has no form in JSON")
