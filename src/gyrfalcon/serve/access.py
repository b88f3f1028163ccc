"""Who may ask: the Host header, API keys, and the number that a request has in the log."""

import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gyrfalcon.serve.answers import REASON, error_response
from gyrfalcon.serve.errors import ApiError

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
PROBES = ("/health", "/health/live")
CALLER = "gyrfalcon.caller"  # in the scope of a request
GONE = 499  # as nginx says: the client left before its answer began


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of who sent a request: its number in the log, and what keeps the cached prompts of one
    API key from those of the others, where there are several.
    """

    number: str
    cache_salt: str | None


class Gate:
    """Stands before the application: refuses unknown hosts and keys, numbers and logs
    requests. `keys` empty: everybody may ask. `hosts` None: whatever the Host header says.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        hosts: Collection[str] | None,
        open_paths: Collection[str],
        refused: Callable[[int, str], None],
    ) -> None:
        """`open_paths` need no key; `refused` hears the status of every error and its reason."""
        self._app = app
        self._secret = secrets.token_bytes()
        self._keys = [sha256(key.encode()).digest() for key in keys]
        self._hosts = None if hosts is None else set(map(_name, hosts))
        self._open_paths, self._refused = frozenset(open_paths), refused
        self.num_answering = 0  # requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers, begin = Headers(scope=scope), time.monotonic()
        number, status = _number(headers), GONE

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        self.num_answering += 1
        try:
            error = self._error(scope["path"], headers)
            scope[CALLER] = Caller(number, self._salt(headers))
            app = self._app if error is None else error_response(error)
            await app(scope, receive, numbered)
        except Exception:
            log.exception("%s %s %s", number, scope["method"], scope["path"])
            if status == GONE:
                await error_response(unexpected())(scope, receive, numbered)
        finally:
            self.num_answering -= 1
            if scope["path"] not in PROBES:
                if status >= 400 and status != GONE:
                    self._refused(status, scope.get(REASON, "other"))
                seconds = time.monotonic() - begin
                path = scope["raw_path"].decode("ascii", "replace")[:80]
                log.info("%s %s %s %d %.3f s", number, scope["method"], path, status, seconds)

    def _error(self, path: str, headers: Headers) -> ApiError | None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may go by the other one, and take what follows for another client's request.
            message = "wanted a body with Content-Length or Transfer-Encoding, got both; send one"
            return ApiError(400, message, headers={"Connection": "close"})
        if self._hosts is not None and _host(headers) not in self._hosts:
            message = f"wanted a Host header that is served, got {headers.get('host', '')[:80]!r}"
            return ApiError(403, f"{message}; start the server with --allowed-host", code="host")
        if self._keys and path not in self._open_paths and self._key(headers) is None:
            message = "wanted a valid API key as Authorization: Bearer KEY, got "
            message += "another" if "authorization" in headers else "none"
            challenge = {"WWW-Authenticate": "Bearer"}
            return ApiError(401, message, code="invalid_api_key", headers=challenge)
        return None

    def _key(self, headers: Headers) -> bytes | None:
        """The digest of the request's key, if it is one of ours. Compares with every key in the same time,
        whichever it is.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = sha256(key.strip().encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        return digest if scheme.lower() == "bearer" and any(matches) else None

    def _salt(self, headers: Headers) -> str | None:
        key = self._key(headers) if len(self._keys) > 1 else None
        return None if key is None else hmac.digest(self._secret, key, "sha256").hex()


def unexpected() -> ApiError:
    """What a caller is told of a fault of the server."""
    return ApiError(500, "wanted an answer, got an error in the server; see its log")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_hosts(host: str, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """The Host headers that are served: those asked for, on loopback its own names, too. Elsewhere all,
    unless some were asked for: probes and routers send a pod's address.
    """
    if is_loopback(host):
        own = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return (*LOOPBACK_HOSTS, own, *allowed)
    return tuple(allowed) or None


def _host(headers: Headers) -> str:
    """The name in the Host header."""
    return _name(headers.get("host", ""))


def _name(host: str) -> str:
    """A host without its port and the root's dot, with which a name is the same (RFC 1034, 3.1)."""
    return re.sub(r"(?<=\w)\.$", "", re.sub(r":\d*$", "", host)).lower()


def _number(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
