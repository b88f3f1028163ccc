"""The folder of a job: its plan, its parts, and who works on which.

OUT/job.json            what is asked, of which prompts, and where each part begins
OUT/part-000017.jsonl   a finished part: one line for each row, in order
OUT/sums/               of each finished part: rows, tokens, bytes, SHA-256
OUT/claims              locks: see `claims`
OUT/log                 when which worker began and finished a part
OUT/result.json         once all parts are finished and agree with their sums

A part appears whole or not at all: written under another name and synchronised before it is renamed, its sums
before that, the folder after.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from gyrfalcon.console.differences import differences
from gyrfalcon.errors import DISK_FULL, CheckpointError, DiskFull, GyrfalconError, UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.files.output import check_folder, make_folder, remove_parts, replace_file
from gyrfalcon.jobs.claims import PRESENT, SETUP, Claims
from gyrfalcon.jobs.identity import OPTION_NAMES
from gyrfalcon.jobs.job_file import JOB, Job, read_job
from gyrfalcon.jobs.plan import Part, Plan
from gyrfalcon.jobs.source import SourceFile

RESULT, SUMS, CLAIMS, LOG = "result.json", "sums", "claims", "log"
GO_ON = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class PartSums:
    """What a finished part holds."""

    num_rows: int
    num_errors: int
    num_prompt_tokens: int
    num_tokens: int  # scored or generated
    num_bytes: int
    sha256: str


class JobFolder:
    """A job that has its plan, as one worker sees it."""

    def __init__(self, path: Path, job: Job, claims: Claims) -> None:
        self.path, self.job, self.claims = path, job, claims

    def part_path(self, part: Part) -> Path:
        return self.path / f"part-{part.number:06d}.jsonl"

    def sums(self, part: Part) -> PartSums | None:
        """Those of a finished part; None where it is not finished."""
        with suppress(GyrfalconError, OSError):
            found = _read_sums(self._sums_path(part))
            if self.part_path(part).stat().st_size == found.num_bytes:
                return found
        return None

    def write(self, part: Part, content: bytes, sums: PartSums) -> None:
        """Puts a part on the disk; it counts as finished once both names are there."""
        with disk_errors(self.path):
            replace_file(self._sums_path(part), json.dumps(asdict(sums)).encode())
            replace_file(self.part_path(part), content)

    def is_whole(self, part: Part, sums: PartSums) -> bool:
        """Whether a finished part still is what was written. One that is not is removed."""
        with self.part_path(part).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sums.sha256:
                return True
        self.part_path(part).unlink()
        return False

    def result(self) -> dict[str, object] | None:
        """The result of a job that was finished; None before."""
        try:
            return read_json(self.path / RESULT)
        except CheckpointError:
            return None

    def forget_result(self) -> None:
        """Removes the result of a job of which a part was lost or damaged since."""
        with disk_errors(self.path):
            (self.path / RESULT).unlink(missing_ok=True)

    def finish(self, result: Mapping[str, object]) -> None:
        """Writes the result, the last file of all."""
        with disk_errors(self.path):
            remove_parts(self.path)
            replace_file(self.path / RESULT, (json.dumps(result, indent=2) + "\n").encode())

    def log(self, text: str) -> None:
        """Appends a line with the time to the log, in one write, so that workers' lines do not mix."""
        line = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n"
        with disk_errors(self.path), (self.path / LOG).open("ab", buffering=0) as file:
            file.write(line.encode())

    def _sums_path(self, part: Part) -> Path:
        return self.path / SUMS / f"part-{part.number:06d}.json"


def _read_sums(path: Path) -> PartSums:
    raw = Fields(read_json(path), str(path))
    counts = {name: raw.count(name) for name in PartSums.__slots__ if name != "sha256"}
    found = PartSums(**counts, sha256=raw.need(str, "sha256"))
    raw.refuse_unread()
    return found


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """An OSError in here is one line about the folder."""
    try:
        yield
    except OSError as error:
        got = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise DiskFull(f"room for {folder}", got, f"free some space, {GO_ON}") from None
        raise UsageError(f"to write to {folder}", got, f"make it writable, {GO_ON}") from None


@contextmanager
def open_job(
    out: str,
    settings: Mapping[str, object],
    files: Sequence[SourceFile],
    plan: Callable[[], Plan],
    say: Callable[[str], object],
    *,
    overwrite: bool,
) -> Iterator[JobFolder]:
    """The job in a folder, begun or gone on with. The first worker makes the plan while others wait.

    UsageError for a folder of another job, or of none; a job that was not even planned leaves nothing.
    """
    folder = check_folder(out, "OUT")
    _refuse_foreign(folder)
    with disk_errors(folder):
        make_folder(folder)
    with _set_up(folder, say) as claims:
        if overwrite:
            _discard(folder, claims)
        job = read_job(folder)
        try:
            if job is None:
                job = Job.begin(settings, files, plan())
                with disk_errors(folder):
                    replace_file(folder / JOB, job.to_json().encode())
            _check_same(folder, job, settings)
            job = job.reading(files, folder)
        except BaseException:
            _leave_nothing(folder)
            raise
        claims.take(PRESENT, shared=True, wait=True)
        claims.release(SETUP)
        yield JobFolder(folder, job, claims)


def join_job(folder: Path, files: Sequence[SourceFile]) -> JobFolder:
    """A job that has its plan, for a worker that only does parts; UsageError where there is none."""
    job = read_job(folder)
    if job is None:
        raise UsageError(f"a job in {folder}", "none", "begin it first")
    return JobFolder(folder, job.reading(files, folder), Claims(folder / CLAIMS))


@contextmanager
def _set_up(folder: Path, say: Callable[[str], object]) -> Iterator[Claims]:
    """Holds the lock under which a job is planned or discarded."""
    while True:
        with closing(Claims(folder / CLAIMS)) as claims:
            if not claims.take(SETUP):
                say(f"waiting for {claims.owner(SETUP)}, which checks the prompts")
                claims.take(SETUP, wait=True)
            if not claims.is_in_place:  # whoever held it found nothing to do, and left nothing
                folder.mkdir(parents=True, exist_ok=True)
                continue
            yield claims
            return


def _refuse_foreign(folder: Path) -> None:
    """UsageError for a folder that holds something, but no job."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    own = {name for name in names if name in (JOB, CLAIMS) or name.startswith(f".{JOB}")}
    if JOB not in names and (foreign := names - own):
        wanted = f"a new folder or the one of this job for {folder}"
        raise UsageError(wanted, f"one with {min(foreign)}", "name another folder")


def _discard(folder: Path, claims: Claims) -> None:
    """Removes a job; its plan last, so that it can be done again. UsageError while others work on it."""
    if not claims.take(PRESENT):
        wanted = f"{folder} for this worker alone, to discard what is in it"
        do = "wait for it, or leave --overwrite out to share the work"
        raise UsageError(wanted, "others at work in it", do)
    for path in (*folder.glob("part-*.jsonl"), folder / RESULT, folder / LOG):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / SUMS, ignore_errors=True)
    remove_parts(folder)
    (folder / JOB).unlink(missing_ok=True)


def _leave_nothing(folder: Path) -> None:
    """Removes a folder without a plan."""
    if not (folder / JOB).exists():
        with suppress(OSError):
            remove_parts(folder)
            os.unlink(folder / CLAIMS)
            folder.rmdir()


def _check_same(folder: Path, job: Job, settings: Mapping[str, object]) -> None:
    """UsageError that names the options that differ."""
    if differing := differences(job.settings, settings, OPTION_NAMES):
        raise UsageError(
            f"options as of the job in {folder}",
            f"others: that one had {differing}",
            "run its command again to go on with it, name another folder, or add `overwrite=True`",
        )


def sums_of(lines: Iterable[bytes], counts: Sequence[int]) -> tuple[bytes, PartSums]:
    """The content of a part, and its sums; `counts` are its rows, errors, prompt tokens and tokens."""
    content = b"".join(lines)
    rows, errors, prompt_tokens, tokens = counts
    digest = hashlib.sha256(content).hexdigest()
    return content, PartSums(rows, errors, prompt_tokens, tokens, len(content), digest)
