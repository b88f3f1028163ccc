"""The page at /: its files, and the headers that keep it to itself. Knows nothing of models: the page asks
the API for everything, as any other client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time, and mostly hears 304
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, where it is served."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def page_files(folder: Path = FOLDER) -> list[PageFile]:
    """All files of the page that browsers ask for; what stands beside them, such as licences, stays."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in TYPES)
    return [_file(path, path.relative_to(folder).as_posix()) for path in found]


def page_routes(files: Sequence[PageFile]) -> list[Route]:
    """A route for each file."""
    return [_route(file) for file in files]


def _file(path: Path, name: str) -> PageFile:
    body = path.read_bytes()
    headers = {"content-type": TYPES[path.suffix], "etag": f'"{sha256(body).hexdigest()[:32]}"'}
    where = "/" if name == INDEX else f"/page/{name}"
    return PageFile(where, body, HEADERS | headers)


def _route(file: PageFile) -> Route:
    async def endpoint(request: Request) -> Response:
        if _has(request.headers.get("if-none-match", ""), file.headers["etag"]):
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, headers=file.headers)

    return Route(file.path, endpoint, methods=["GET"])


def _has(known: str, etag: str) -> bool:
    """Whether a browser's If-None-Match names this version."""
    return known.strip() == "*" or etag in (
        one.strip().removeprefix("W/") for one in known.split(",")
    )
