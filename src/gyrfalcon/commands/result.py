"""Where a command's whole result goes with --json: one object to a file, or to standard output alone."""

import json
import sys
from pathlib import Path

STDOUT = "-"


def write_json(result: object, target: str) -> None:
    """Writes one JSON object to the file `target`, or to standard output for "-"."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, "utf-8")
