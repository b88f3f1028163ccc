"""Files of prompts, and jobs that need no model, for the tests of jobs."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gyrfalcon.jobs.folder import PartSums, open_job, sums_of
from gyrfalcon.jobs.job_file import Job
from gyrfalcon.jobs.plan import Part, Plan
from gyrfalcon.jobs.source import Start, rows_from, source_files
from gyrfalcon.jobs.task import SCORE, Task
from gyrfalcon.jobs.work import work


def write_rows(path: Path, rows: Iterable[Mapping[str, object] | str]) -> Path:
    """A JSONL file; a string stands as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def written(out: Path) -> list[dict[str, Any]]:
    """All rows of a job's finished parts, in order."""
    parts = sorted(out.glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text("utf-8").splitlines()]


def plain_plan(source: Path, part_rows: int) -> Plan:
    """The plan of a file of good rows, made without a model."""
    [file] = source_files(str(source))
    places = [place for place, _ in rows_from(file, Start(), Task(SCORE).columns, scored=True)]
    starts = range(0, len(places), part_rows)
    parts = [
        Part(number, 0, places[first], len(places[first : first + part_rows]))
        for number, first in enumerate(starts)
    ]
    return Plan(parts, {}, 0)


def lengths_of(job: Job, part: Part) -> tuple[bytes, PartSums]:
    """In a model's place: the number of letters of each prompt."""
    rows = rows_from(job.files[part.file].source(), part.start, job.task.columns, scored=True)
    lines = []
    for _, (_, row) in zip(range(part.num_rows), rows, strict=False):
        lines.append(json.dumps({"id": row.id, "length": len(row.prompt)}).encode() + b"\n")  # type: ignore[union-attr]  # all are good
    return sums_of(lines, (part.num_rows, 0, 0, 0))


def run_lengths(
    source: Path, out: Path, part_rows: int = 4, begin: Callable[[Part], object] = lambda part: None
) -> dict[str, object]:
    """One worker of a job that writes the length of each prompt; calls `begin` with each part."""
    settings: dict[str, object] = {**Task(SCORE, part_rows=part_rows).to_json(), "seed": None}
    plan, files = (lambda: plain_plan(source, part_rows)), source_files(str(source))
    with open_job(str(out), settings, files, plan, print, overwrite=False) as folder:

        def answer(part: Part) -> tuple[bytes, PartSums]:
            begin(part)
            return lengths_of(folder.job, part)

        return work(folder, answer, lambda rows: None, print)
