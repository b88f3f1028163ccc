"""How commands show results: sizes for people, and --json, one object to a file or to stdout alone."""

import json
import sys
from pathlib import Path

STDOUT = "-"


def write_json(result: object, target: str) -> None:
    """Writes one JSON object to the file `target`, or to standard output for "-"; paths become strings."""
    write_text(json_text(result, target, indent=2), target)


def json_text(result: object, target: str, indent: int | None = None) -> str:
    """JSON with a line end; letters stay as they are wherever `target` can take them."""
    plain = target == STDOUT and "utf" not in (sys.stdout.encoding or "utf").lower()
    return json.dumps(result, indent=indent, ensure_ascii=plain, default=_plain) + "\n"


def write_text(text: str, target: str) -> None:
    """Writes to the file `target`, or to standard output for "-"."""
    if target == STDOUT:
        sys.stdout.write(text)
    else:  # half a surrogate pair, as in a file name that is no UTF-8, becomes JSON's own \udcff
        Path(target).write_text(text, "utf-8", errors="backslashreplace")


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
