"""Short messages over a TCP connection of two ranks: JSON, one a line, checked field by field. Sending never
waits.
"""

import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

MOST_BYTES = 1 << 17  # unread of one message: an error as error_message.py writes it has 100,000
CHUNK = 1 << 16

Message = Sequence[object]


class ConnectionClosed(Exception):
    """The other end has closed the connection, or said what no rank says."""


class Connection:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._unread = b""
        self._unsent, self._sending = b"", threading.Lock()

    def fileno(self) -> int:
        """What select() takes."""
        return self._connection.fileno()

    def send(self, *message: object) -> None:
        """Sends what the connection takes, and the rest before the next message. An end that reads nothing
        any more will not miss the messages that are dropped; one that is closed is found by receive().
        """
        with self._sending, suppress(OSError):
            if len(self._unsent) <= MOST_BYTES:
                self._unsent += json.dumps(message).encode() + b"\n"
            self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def receive(self) -> list[Message]:
        """What has arrived since the last time; ConnectionClosed when no more can."""
        try:
            content = self._connection.recv(CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            raise ConnectionClosed from None
        if not content or len(self._unread) > MOST_BYTES:
            raise ConnectionClosed
        *lines, self._unread = (self._unread + content).split(b"\n")
        return [_decoded(line) for line in lines]

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def _decoded(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ConnectionClosed from None
    if isinstance(message, list) and message and isinstance(message[0], str):
        return message
    raise ConnectionClosed
