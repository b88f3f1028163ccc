"""What the gate has found so far, as a file that is whole after every row, and may be gone on with."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORMAT, VERSION = "gyrfalcon-gpu-gate", 2
ROOT = Path(__file__).parent.parent
SOURCES = ("src/gyrfalcon", "benchmarks", "tests", "tools")
SAME = (
    "dry_run",
    "device",
    "sources",
    "torch",
    "triton",
)  # facts of runs that can be told together


class CannotResume(Exception):
    """The rows of a file are of something else; str() says what."""


class Document:
    """Facts, and the rows of every step."""

    def __init__(self, path: Path, facts: Mapping[str, Any], rows: dict[str, Any]) -> None:
        self.path, self.facts, self.rows = path, facts, rows

    @classmethod
    def begin(cls, path: Path, facts: Mapping[str, Any]) -> "Document":
        """An empty one, in place of what is there."""
        return cls(path, {**facts, "runs": [_run_of(facts)]}, {})

    @classmethod
    def resume(cls, path: Path, facts: Mapping[str, Any]) -> "Document":
        """The one in the file; CannotResume where it is of another device or source."""
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CannotResume(f"wanted {path} of an earlier run, got {error}") from error
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise CannotResume(f"wanted a {FORMAT} file of version {VERSION}, got {path}")
        others = [name for name in SAME if found.get(name) != facts[name]]
        if others:
            said = ", ".join(f"{name} {found.get(name)} (now {facts[name]})" for name in others)
            raise CannotResume(
                f"wanted rows of the same run, got {path} of {said}; begin a new file"
            )
        runs = [*found["runs"], _run_of(facts)]
        return cls(path, {**facts, "date": found["date"], "runs": runs}, found["rows"])

    def known(self, step: str) -> Mapping[str, Any]:
        """The rows of a step."""
        return dict(self.rows.get(step, {}))

    def add(self, step: str, row: str, found: Mapping[str, Any]) -> None:
        """Adds a row and writes the file, which is never half written."""
        self.rows.setdefault(step, {})[row] = dict(found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
        os.replace(partial, self.path)

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **self.facts, "rows": self.rows}

    def holds(self) -> bool:
        """Whether no row fails."""
        return all(
            row.get("passed") is not False for rows in self.rows.values() for row in rows.values()
        )


def _run_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"date": facts["date"], "command": facts["command"]}


def digest_of_sources() -> str:
    """Of all that the gate runs, where there may be no git."""
    found = hashlib.sha256()
    for path in _sources():
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    for folder in SOURCES:
        yield from sorted((ROOT / folder).rglob("*.py"))
