"""What a loss of power leaves below a folder, on a disk that keeps an order of its own: of each file the
bytes of its last fsync, of each folder the names of its own, and any part of what came later. A rename is
whole or was not.
"""

import os
import random
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Names = dict[str, "Node"]
# How much of what was not synchronised is there all the same: nothing, half of it by chance, all names but no
# bytes (a file that was renamed before its fsync is there, and empty).
SHARES = (0.0, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Node:
    """One file or folder, whose inode another may get later."""

    number: int
    is_folder: bool


@dataclass(frozen=True, slots=True)
class _Change:
    """Of a name in a folder, since that was synchronised."""

    folder: Node
    name: str
    old: Node | None
    new: Node | None


class DurableState:
    """What of a folder's content has been synchronised. It begins empty."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._nodes: dict[int, Node] = {}  # by inode, of what lies there now
        self._bytes: dict[Node, bytes] = {}
        self._names: dict[Node, Names] = {}
        self._number = 0

    def synchronise(self, path: str) -> None:
        """Notes the fsync of a file or folder."""
        with suppress(FileNotFoundError):  # a temporary file without a name
            node = self._node(path)
            if node.is_folder:
                self._synchronise_names(node, dict(self._listed(path)))
            else:
                self._bytes[node] = Path(path).read_bytes()

    def _synchronise_names(self, folder: Node, now: Names) -> None:
        """With the other end of each rename, which is as durable."""
        before, self._names[folder] = self._names.get(folder, {}), now
        for names in self._names.values():
            for name, node in list(names.items()):
                if names is not now and node in now.values():
                    del names[name]
        gone = set(before.values()) - set(now.values())
        for node, (_, names) in self._live().items() if gone else ():
            moved = {name: one for name, one in names.items() if one in gone}
            self._names.setdefault(node, {}).update(moved)

    def inode(self, path: str) -> int | None:
        """Of what is at a path and gone without that name."""
        with suppress(OSError):
            found = os.lstat(path)
            return found.st_ino if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1 else None
        return None

    def forget(self, inode: int) -> None:
        """Notes that what had an inode is gone."""
        self._nodes.pop(inode, None)

    def left(self, share: float, chance: random.Random) -> "dict[str, bytes | None]":
        """What is there after a loss of power, by relative path; None for a folder."""
        names, live = {node: dict(found) for node, found in self._names.items()}, self._live()
        changes = [
            _Change(node, name, before.get(name), found.get(name))
            for node, (_, found) in live.items()
            if node.is_folder
            for before in (self._names.get(node, {}),)
            for name in sorted(before.keys() | found.keys())
            if before.get(name) != found.get(name)
        ]
        for group in _linked(changes):
            if chance.random() < share:
                for change in group:
                    _apply(names.setdefault(change.folder, {}), change)
        content: dict[str, bytes | None] = {}
        for path, node in _walk(names, self._node(self._root)):
            content[path] = None
            if not node.is_folder:
                content[path] = self._kept(node, live.get(node), share, chance)
        return content

    def _kept(
        self, node: Node, live: "tuple[str, Names] | None", share: float, chance: random.Random
    ) -> bytes:
        durable = self._bytes.get(node, b"")
        if live is None or share in (0.0, 1.0) or chance.random() < share:
            return durable
        now = Path(live[0]).read_bytes()
        return durable if now == durable else now[: chance.randrange(len(now) + 1)]

    def _live(self) -> "dict[Node, tuple[str, Names]]":
        """All that lies there: its path and, of a folder, its names."""
        found: dict[Node, tuple[str, Names]] = {}
        paths = [self._root]
        while paths:
            path = paths.pop()
            node = self._node(path)
            names = dict(self._listed(path)) if node.is_folder else {}
            found[node] = path, names
            paths += [f"{path}/{name}" for name in names]
        return found

    def _listed(self, folder: str) -> "Iterator[tuple[str, Node]]":
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # another thread's
                yield name, self._node(f"{folder}/{name}")

    def _node(self, path: str) -> Node:
        found = os.lstat(path)
        node = self._nodes.get(found.st_ino)
        if node is None:
            self._number += 1
            node = self._nodes[found.st_ino] = Node(self._number, stat.S_ISDIR(found.st_mode))
        return node


def _linked(changes: "list[_Change]") -> "list[list[_Change]]":
    """Those of one rename together: where one node loses a name and gets another."""
    groups: list[tuple[set[Node], list[_Change]]] = []
    for change in changes:
        nodes, together = {node for node in (change.old, change.new) if node}, [change]
        apart = []
        for group in groups:
            if nodes & group[0]:
                nodes |= group[0]
                together = [*group[1], *together]
            else:
                apart.append(group)
        groups = [*apart, (nodes, together)]
    return [together for _, together in groups]


def _apply(names: Names, change: _Change) -> None:
    if change.new is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.new


def _walk(names: Mapping[Node, Names], folder: Node) -> "Iterator[tuple[str, Node]]":
    """Every path below a folder, each folder before what is in it."""
    for name, node in names.get(folder, {}).items():
        yield name, node
        if node.is_folder:
            yield from ((f"{name}/{path}", below) for path, below in _walk(names, node))


def put(root: Path, content: "Mapping[str, bytes | None]") -> None:
    """Makes a folder's content."""
    for name, found in content.items():
        if found is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(found)
