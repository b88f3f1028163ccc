"""Why a request failed: a kind that is counted, and one printable line that says what came."""

import errno
import os
import ssl

CONNECT = "connect"  # refused, unreachable, unknown host
TLS = "tls"
TIMEOUT = "timeout"
STATUS = "status"  # an HTTP status other than 200
REDIRECT = "redirect"
CLOSED = "closed"  # before the answer was complete
HTTP = "http"  # bytes that are not HTTP
NOT_A_STREAM = "not a stream"  # another content type, such as an HTML page
EVENT = "event"  # an event that is not what the API defines
ERROR_EVENT = "error event"  # the server reports an error within the stream
LOCAL = "local"  # this machine has no more files or ports
KINDS = (
    CONNECT,
    TLS,
    TIMEOUT,
    STATUS,
    REDIRECT,
    CLOSED,
    HTTP,
    NOT_A_STREAM,
    EVENT,
    ERROR_EVENT,
    LOCAL,
)

REFUSALS = (429, 503)  # statuses of a server that has no room
MOST_LETTERS = 160  # of a reason
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.ENOMEM)


class Failure(Exception):
    """A request that did not get its whole answer."""

    def __init__(self, kind: str, reason: str, status: int | None = None) -> None:
        assert kind in KINDS
        self.kind, self.reason, self.status = kind, one_line(reason), status
        super().__init__(kind, self.reason, status)

    def __str__(self) -> str:
        status = f"HTTP {self.status}" if self.status else self.kind
        return f"{status}: {self.reason}" if self.reason else status

    @property
    def is_refusal(self) -> bool:
        """Whether the server said that it has no room."""
        return self.status in REFUSALS


def one_line(text: str) -> str:
    """A server's words, printable, on one line and cut short."""
    line = " ".join(text[: 4 * MOST_LETTERS].split())
    line = "".join(letter if letter.isprintable() else "�" for letter in line)
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…"


def connect_failure(error: OSError) -> Failure:
    """Why there is no connection, in the words of the system or the TLS library."""
    words = _words(error)
    if isinstance(error, ssl.SSLError):
        return tls_failure(error)
    if error.errno in OUT_OF:
        return Failure(LOCAL, words)
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return Failure(CLOSED, words)
    return Failure(CONNECT, words)


def lost_failure(error: Exception) -> Failure:
    """Why a connection broke."""
    if isinstance(error, ssl.SSLError):
        return tls_failure(error)
    return Failure(CLOSED, _words(error))


def tls_failure(error: ssl.SSLError) -> Failure:
    """What the TLS library says."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure(TLS, error.verify_message or str(error))
    return Failure(TLS, (error.reason or str(error)).replace("_", " ").lower())


def _words(error: Exception) -> str:
    """The system's words alone: asyncio's name the address, which is another one each time."""
    number = error.errno if isinstance(error, OSError) else None
    return str(error) if number is None or number <= 0 else os.strerror(number)
