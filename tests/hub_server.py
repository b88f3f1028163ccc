"""A local stand-in for the Hugging Face hub: just enough of its interface for the real client library."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


@dataclass
class Hub:
    """Repositories as {name: {path: content}}, faults to show, and what was asked for."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    halved: set[str] = field(default_factory=set)  # paths whose next download breaks off half-way
    dies: bool = False  # whether the first such break is the end: all later downloads fail
    down: bool = False
    # (path, Range) of every download.
    sent: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answers on a free port of this machine until the block ends."""

    class Handler(_Handler):
        def __init__(self, *args: Any) -> None:
            self.hub = hub
            super().__init__(*args)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        kind, repo, revision, path = _asked(self.path)
        files = self.hub.repositories.get(repo)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if kind == "resolve":
            return self._file(files, path)
        if kind == "tree":
            return self._json([_entry(path, content) for path, content in files.items()])
        return self._json({"id": repo, "sha": COMMIT, "siblings": []})

    def _file(self, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        content, asked = files[path], self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.command == "GET":
            self.hub.sent.append((path, asked))
            if self.hub.down:
                return self._refuse(500, "")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{_blob(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET" and path in self.hub.halved:
            self.hub.halved.remove(path)
            self.hub.down = self.hub.dies
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(content[start:])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _asked(url: str) -> tuple[str, str, str, str]:
    """Kind of question, repository, revision and file of one request."""
    parts = unquote(urlsplit(url).path).removeprefix("/api/models").strip("/").split("/")
    parts += [""] * (4 - len(parts))
    return parts[2], "/".join(parts[:2]), parts[3], "/".join(parts[4:])


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
