"""An HTTP request as the ingress hands it to a replica, and what comes back: an Accepted, a Start, then the
body's bytes as they come.
"""

from dataclasses import dataclass

from starlette.types import Scope

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request whose body has been read. `avoided`: replicas that failed to answer it, by their ids."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    avoided: tuple[str, ...] = ()

    @property
    def scope(self) -> Scope:
        """The request as ASGI has it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.raw_path,
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


@dataclass(frozen=True, slots=True)
class Accepted:
    """A replica has taken the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class Start:
    """How an answer begins."""

    status: int
    headers: Headers


Part = Accepted | Start | bytes


def forwarded(scope: Scope, body: bytes) -> Forwarded:
    """The request of an ASGI scope."""
    path = scope["path"]
    raw_path = scope.get("raw_path") or path.encode("utf-8", "replace")
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
    return Forwarded(
        scope["method"], path, bytes(raw_path), bytes(scope["query_string"]), headers, body
    )
