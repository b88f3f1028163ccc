"""A folder that appears whole or not at all: made beside its target, resumable, moved into place at the end.

CUT.partial/lock            held while somebody works here
CUT.partial/progress.json   what the folder is made from, and the files that are finished
CUT.partial/new/            the folder itself, renamed to CUT when it is whole
CUT.partial/old/            what was at CUT before, for the moment between two renames
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gyrfalcon.checkpoint.manifest import FileSum
from gyrfalcon.checkpoint.source import PARTIAL
from gyrfalcon.console.differences import differences
from gyrfalcon.console.format import counted
from gyrfalcon.console.interrupted import interrupts_tell
from gyrfalcon.errors import DISK_FULL, CheckpointError, DiskFull, UsageError, lack
from gyrfalcon.files.foreign import is_inside, read_json
from gyrfalcon.files.output import (
    check_folder,
    is_at,
    make_folder,
    remove_parts,
    replace_file,
    sync_folder,
)

REPLACEABLE = (
    "manifest.json",
    "config.json",
)  # overwriting takes a model's folder away, never another one


@dataclass(frozen=True, slots=True)
class Work:
    """What a folder is made from: the same fingerprint for the same work, its options in people's words."""

    fingerprint: str
    options: Mapping[str, object]


class Build:
    """The unfinished folder of `target`. Files count as finished once they are recorded."""

    def __init__(self, target: Path, partial: Path, work: Work, overwrite: bool) -> None:
        self.target = target
        self.folder = partial / "new"
        self.finished: dict[str, FileSum] = {}
        self._partial = partial
        self._fingerprint, self._options, self._overwrite = (
            work.fingerprint,
            work.options,
            overwrite,
        )
        self._whole = False
        self._settle_old()
        self._load()

    @property
    def is_published(self) -> bool:
        """Whether an earlier run was stopped after its very last step but one."""
        return self._whole and not self.folder.exists() and self.target.exists()

    @property
    def kept(self) -> str:
        """What a run that is broken off leaves for the next."""
        if not self.finished:
            return ""
        count = counted(len(self.finished), "file")
        return f"{count} finished and kept in {self._partial}; run the same command again to go on"

    def begin(self) -> None:
        """Removes every file that the recorded progress does not vouch for."""
        if not self.finished and self.folder.exists():
            shutil.rmtree(self.folder)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in self.finished:
                path.unlink()

    def reserve(self, num_bytes: int) -> None:
        """Raises DiskFull when the disk cannot take that much more."""
        available = shutil.disk_usage(self._partial).free
        if num_bytes > available:
            raise DiskFull(
                f"{num_bytes} B on the disk of {self.target}",
                f"{available} B",
                "free some space, run again",
            )

    def open_path(self, file: str) -> Path:
        """Where to write a file of the folder; its parents are made."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, file: str, content: bytes) -> None:
        """Writes a small file and records it."""
        with self.open_path(file).open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        self.finished[file] = FileSum(len(content), hashlib.sha256(content).hexdigest())

    def record(self, files: Mapping[str, FileSum]) -> None:
        """Notes files as finished: they lie on the disk, synchronised, and are not written again."""
        self.finished.update(files)
        self._save()

    def publish(self) -> None:
        """Moves the whole folder into place; the one before, if any, is there until this moment."""
        sync_tree(self.folder)
        self._whole = True
        self._save()
        if self.target.exists() and any(self.target.iterdir()):
            self.target.rename(self._partial / "old")
        self.folder.rename(self.target)
        sync_folder(self.target.parent)

    def clean(self) -> None:
        """Removes all that a published build leaves behind, but for the lock."""
        (self._partial / "progress.json").unlink()
        remove_parts(self._partial)
        shutil.rmtree(self._partial / "old", ignore_errors=True)

    def discard(self) -> None:
        """Removes all that was built, but for the lock."""
        (self._partial / "progress.json").unlink(missing_ok=True)
        remove_parts(self._partial)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> None:
        """Takes over the progress of the same work: the files it lists that are there in full length."""
        try:
            raw = read_json(self._partial / "progress.json")
        except CheckpointError:
            return
        files = raw.get("files")
        if raw.get("fingerprint") != self._fingerprint or not isinstance(files, dict):
            self._refuse_to_discard(raw)
            return
        self._whole = raw.get("whole") is True
        for file, entry in files.items():
            match entry:  # what is damaged is written again
                case {"bytes": int(size), "sha256": str(checksum)} if is_inside(file):
                    path = self.folder / file
                    if path.is_file() and path.stat().st_size == size:
                        self.finished[file] = FileSum(size, checksum)

    def _refuse_to_discard(self, raw: Mapping[str, object]) -> None:
        """UsageError for finished files of another work, unless they may be overwritten."""
        files, then = raw.get("files"), raw.get("options")
        if (
            self._overwrite
            or not isinstance(files, dict)
            or not isinstance(then, dict)
            or not files
        ):
            return
        told = differences(then, self._options, {})
        if not told:  # of a source that has changed since nothing can be used
            return
        raise UsageError(
            f"options as of the unfinished work in {self._partial}",
            f"others: that one had {told}",
            "run its command again to finish it, name another folder, or add `overwrite=True`",
        )

    def _save(self) -> None:
        files = {
            path: {"bytes": file.num_bytes, "sha256": file.sha256}
            for path, file in self.finished.items()
        }
        progress = {
            "fingerprint": self._fingerprint,
            "options": dict(self._options),
            "whole": self._whole,
            "files": files,
        }
        replace_file(self._partial / "progress.json", json.dumps(progress).encode())

    def _settle_old(self) -> None:
        """After a kill inside publish(): what was at the target goes back, unless the new folder is there."""
        old = self._partial / "old"
        if old.exists() and self.target.exists():
            shutil.rmtree(old)
        elif old.exists():
            old.rename(self.target)


@contextmanager
def build(sources: Iterable[Path], target: Path, what: Work, *, overwrite: bool) -> Iterator[Build]:
    """Opens or resumes the building of `target` from folders; one process at a time.

    Raises UsageError when the target may not be made there, DiskFull when the disk takes no more.
    """
    target = _without_links(target)
    for source in sources:
        _check_places(_without_links(source), target)
    partial = target.with_name(target.name + PARTIAL)
    try:
        with _locked(partial):
            work = Build(target, partial, what, overwrite)
            if not work.is_published:
                _check_target(target, overwrite)
                work.begin()
            try:
                with interrupts_tell(lambda: work.kept):
                    yield work
            except UsageError:  # the same work would end here every time
                work.discard()
                raise
            work.clean()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFull(
                f"room for {target}",
                f"{error.strerror} after {_num_bytes(partial)} B",
                "free some space, run the same command again: it goes on where it stopped",
            ) from None
        raise lack(error, f"to make {target}") or CheckpointError(
            f"to make {target}", str(error), "choose a folder that can be written"
        ) from None


def check_target(target: Path, overwrite: bool) -> None:
    """Raises UsageError where build() would refuse the target, before its source is opened or fetched."""
    target = _without_links(target)
    if not target.with_name(target.name + PARTIAL).exists():
        _check_target(target, overwrite)
    check_folder(target.parent, str(target))


def sync_tree(folder: Path) -> None:
    """sync_folder() for a folder and all below it."""
    for path in (*folder.rglob("*/"), folder):
        if path.is_dir():
            sync_folder(path)


def _without_links(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # the second before Python 3.13
        raise UsageError(
            f"a folder at {path}", "a link that leads to itself", "choose another folder"
        ) from None


def _check_places(source: Path, target: Path) -> None:
    if target == source or source in target.parents or target in source.parents:
        raise UsageError(f"a target outside of {source}", str(target), "choose another folder")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(
            "a folder that can be replaced as a whole",
            f"{target}, which you are in",
            "name another",
        )


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError("a folder as target", f"the file {target}", "choose another folder")
    names = {path.name for path in target.iterdir()}
    if names and not overwrite:
        raise UsageError(
            f"a new folder {target}",
            "one that is there already",
            "add `overwrite=True` or choose another",
        )
    if os.path.ismount(target):
        raise UsageError(
            "a folder inside of a mounted disk",
            f"{target}, the disk itself",
            "add a folder name to it",
        )
    if names and names.isdisjoint(REPLACEABLE):
        raise UsageError(
            "to overwrite a model's folder", f"{target}, which holds none", "choose another folder"
        )


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Holds the lock file; another holder is an error. A file that was removed meanwhile is no lock."""
    while True:
        make_folder(partial)
        try:
            file = (partial / "lock").open("wb")
        except FileNotFoundError:
            continue  # the holder finished between the two lines
        with file:
            _lock(file, partial)
            if not is_at(file, partial / "lock"):
                continue
            try:
                yield
            finally:
                _tidy(partial)
            return


def _lock(file: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"to be alone in {partial}",
            "another process that works there",
            "wait until it has finished",
        ) from None


def _tidy(partial: Path) -> None:
    """Takes the lock and its folder away when nothing else is left in it."""
    if [path.name for path in partial.iterdir()] == ["lock"]:
        (partial / "lock").unlink()
        with suppress(OSError):  # somebody may just have made another lock
            partial.rmdir()


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
