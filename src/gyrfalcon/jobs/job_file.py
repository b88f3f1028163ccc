"""job.json: a job's settings, its files of prompts and its plan."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gyrfalcon.errors import CheckpointError, GyrfalconError, UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.jobs.plan import Part, Plan
from gyrfalcon.jobs.source import SourceFile, Start
from gyrfalcon.jobs.task import Task

JOB = "job.json"
FORMAT, VERSION = "gyrfalcon-job", 1
LARGEST = 2.0**64
MOST_BYTES = 1 << 63  # of a file, as a system counts


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of prompts as it was when the plan was made."""

    path: str
    name: str
    num_bytes: int
    mtime_ns: int
    sha256: str

    def source(self) -> SourceFile:
        return SourceFile(Path(self.path), self.name)


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked (`settings`, see identity()), of which files, in which parts."""

    settings: Mapping[str, object]
    seed: int  # the one typed, or one drawn when the job began
    files: tuple[FileFacts, ...]
    plan: Plan

    @property
    def task(self) -> Task:
        return Task.from_json(self.settings, self.seed)

    @classmethod
    def begin(
        cls, settings: Mapping[str, object], files: Sequence[SourceFile], plan: Plan
    ) -> "Job":
        """A job on files as they are now."""
        seed = settings["seed"]
        drawn = random.SystemRandom().getrandbits(63)
        facts = tuple(map(_facts, files))
        return cls(settings, seed if isinstance(seed, int) else drawn, facts, plan)

    def reading(self, files: Sequence[SourceFile], folder: Path) -> "Job":
        """The job with its files where they lie now; UsageError unless these are the same."""
        do = "restore it, name another folder, or add `overwrite=True`"
        wanted = f"the prompts of the job in {folder}"
        then, now = [one.name for one in self.files], [one.name for one in files]
        if then != now:
            other = min(set(then) ^ set(now), default="one name")
            raise UsageError(wanted, f"others: {other} is not in both", do)
        for facts, file in zip(self.files, files, strict=True):
            found = file.path.stat()
            if (found.st_size, found.st_mtime_ns) == (facts.num_bytes, facts.mtime_ns):
                continue
            if found.st_size != facts.num_bytes or file.digest() != facts.sha256:
                raise UsageError(wanted, f"{file.path}, which has changed since", do)
        paths = [str(file.path.absolute()) for file in files]
        here = [replace(one, path=path) for one, path in zip(self.files, paths, strict=True)]
        return replace(self, files=tuple(here))

    def to_json(self) -> str:
        """For job.json; a part is its file, offset, first row and number of rows."""
        parts = [
            [part.file, part.start.offset, part.start.number, part.num_rows]
            for part in self.plan.parts
        ]
        document = {
            "format": FORMAT,
            "version": VERSION,
            "settings": dict(self.settings),
            "seed": self.seed,
            "files": [asdict(file) for file in self.files],
            "num_rows": self.plan.num_rows,
            "num_bad": self.plan.num_bad,
            "doubled": dict(self.plan.doubled),
            "parts": parts,
        }
        return json.dumps(document, ensure_ascii=True) + "\n"


def read_job(folder: Path) -> Job | None:
    """The job in a folder, None where there is none; UsageError for a file that is not ours."""
    path = folder / JOB
    if not path.exists():
        return None
    try:
        raw = Fields(read_json(path), str(path), LARGEST)
        found = (raw.need(str, "format"), raw.need(int, "version"))
        if found != (FORMAT, VERSION):
            raise UsageError(f"{FORMAT} {VERSION} in {path}", f"{found[0]} {found[1]}", "fix it")
        files = tuple(_read_file(one) for one in raw.objects("files"))
        parts = [_read_part(n, value, files) for n, value in enumerate(raw.items("parts"))]
        doubled = {name: str(first) for name, first in raw.inside("doubled").raw.items()}
        settings, seed = raw.inside("settings").raw, raw.need(int, "seed")
        return Job(settings, seed, files, Plan(parts, doubled, raw.count("num_bad")))
    except (GyrfalconError, ValueError, TypeError) as error:
        got = error.got if isinstance(error, GyrfalconError) else str(error)
        do = "name another folder, or delete this one to start over"
        raise UsageError(f"the job that {path} describes", got, do) from None


def _facts(file: SourceFile) -> FileFacts:
    try:
        found = file.path.stat()
    except OSError as error:
        raise CheckpointError(f"the file {file.path}", str(error.strerror), "check it") from None
    path = str(file.path.absolute())
    return FileFacts(path, file.name, found.st_size, found.st_mtime_ns, file.digest())


def _read_file(raw: Fields) -> FileFacts:
    return FileFacts(
        path=raw.need(str, "path"),
        name=raw.need(str, "name"),
        num_bytes=raw.count("num_bytes"),
        mtime_ns=raw.count("mtime_ns"),
        sha256=raw.need(str, "sha256"),
    )


def _read_part(number: int, value: object, files: Sequence[FileFacts]) -> Part:
    match value:
        case [int(file), int(offset), int(row), int(num_rows)]:
            places = (offset, row, num_rows)
            if file in range(len(files)) and all(one in range(MOST_BYTES) for one in places):
                return Part(number, file, Start(offset, row), num_rows)
    raise ValueError(f"part {number} is damaged")
