"""What a loss of power would leave of a disk: a file's bytes as of its last fsync, a folder's entries as
of its own. Records the fsyncs and renames of this process; simulates nothing that is finer.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Rename = Callable[[Path, Path], object]  # sees a rename just before it happens


class DurableDisk:
    """The durable state of every file and folder that was synchronised since recording began."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.before_rename: list[Rename] = []
        self._bytes: dict[int, bytes] = {}  # by inode
        self._entries: dict[int, dict[str, int]] = {}  # by inode: name → inode
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._note(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def recorded_rename(source: Path, target: Path) -> None:
            for see in self.before_rename:
                see(Path(source), Path(target))
            rename(source, target)

        def recorded_replace(source: Path, target: Path) -> None:
            for see in self.before_rename:
                see(Path(source), Path(target))
            replace(source, target)

        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "rename", recorded_rename)
        patch.setattr(os, "replace", recorded_replace)

    def left_of(self, path: Path) -> dict[str, bytes]:
        """The files that would survive in a folder which itself survives, by relative path."""
        return self._left_of(path.stat().st_ino)

    def keeps(self, path: Path) -> bool:
        """Whether the bytes of a file as it is now would be left, should its name be."""
        return self._bytes.get(path.stat().st_ino) == path.read_bytes()

    def _left_of(self, folder: int) -> dict[str, bytes]:
        left: dict[str, bytes] = {}
        for name, inode in self._entries.get(folder, {}).items():
            if inode in self._bytes:
                left[name] = self._bytes[inode]
            left |= {f"{name}/{file}": found for file, found in self._left_of(inode).items()}
        return left

    def _note(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self._entries[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._bytes[inode] = path.read_bytes()
