"""How commands show results: sizes for people, and --json, one object to a file or to stdout alone."""

import json
import sys
from pathlib import Path

STDOUT = "-"


def write_json(result: object, target: str) -> None:
    """Writes one JSON object to the file `target`, or to standard output for "-"; paths become strings."""
    text = json.dumps(result, indent=2, ensure_ascii=False, default=_plain) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, "utf-8")


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
