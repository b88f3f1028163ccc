"""Parses one HTTP/1.1 response as its bytes arrive (RFC 9112). Knows nothing of sockets."""

import re

from gyrfalcon.load.failures import CLOSED, HTTP, Failure

MOST_HEAD_BYTES = 32_768  # of a status line, its headers, or what follows the last chunk
MOST_SIZE_BYTES = 1024  # of a chunk's size line: it may carry extensions
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?")
CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")
NO_BODY = (204, 304)


class Response:
    """One response: feed() it bytes until it is `complete`."""

    def __init__(self) -> None:
        self.status: int | None = None  # None: the head has not come
        self.headers: dict[str, str] = {}  # names in lower case
        self.complete = False
        self.keeps_alive = False  # whether the connection can take another request afterwards
        self._rest = b""  # not parsed yet
        # Body bytes to come, of the chunk or of all; None: until the end.
        self._left: int | None = None
        self._chunked = False
        self._in_trailer = False

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def feed(self, data: bytes) -> list[bytes]:
        """The parts of the body in `data`; Failure where it is not HTTP."""
        if self.status is None:
            data = self._head(self._rest + data)
            if self.status is None:
                return []
        if self.complete:
            if data:  # bytes that nobody asked for: the next answer could not be told apart
                self.keeps_alive = False
            return []
        return self._chunks(data) if self._chunked else self._plain(data)

    def end(self) -> None:
        """The connection was closed: Failure unless the answer ends with it."""
        if self.status is not None and not self._chunked and self._left is None:
            self.complete = True
        if not self.complete:
            when = "before the answer" if self.status is None else "in the middle of the answer"
            raise Failure(CLOSED, when)

    def _head(self, data: bytes) -> bytes:
        """Reads the head where it is whole; what follows it."""
        while True:
            end = data.find(b"\r\n\r\n")
            if (len(data) if end < 0 else end) > MOST_HEAD_BYTES:
                raise Failure(HTTP, f"headers of more than {MOST_HEAD_BYTES:,} bytes")
            if end < 0:
                self._check_beginning(data)
                self._rest = data
                return b""
            head, data = data[:end], data[end + 4 :]
            status = self._read_head(head)
            if status >= 200:
                self._rest = b""
                self.status = status
                self._plan_body()
                return data

    def _check_beginning(self, data: bytes) -> None:
        if not data[:7] == b"HTTP/1."[: len(data)]:
            raise Failure(HTTP, f"no HTTP/1 answer: {data[:40].decode('latin-1')}")

    def _read_head(self, head: bytes) -> int:
        line, *lines = head.split(b"\r\n")
        found = STATUS_LINE.fullmatch(line)
        if found is None:
            raise Failure(HTTP, f"no HTTP/1 answer: {line[:40].decode('latin-1')}")
        self.headers = {}
        for field in lines:
            name, colon, value = field.partition(b":")
            if not colon:
                raise Failure(HTTP, f"no header: {field[:40].decode('latin-1')}")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        connection = self.headers.get("connection", "").lower()
        self.keeps_alive = found[1] == b"1" and "close" not in connection
        return int(found[2])

    def _plan_body(self) -> None:
        coding = self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Failure(HTTP, f"compressed, unasked: {self.headers['content-encoding']}")
        if self.status in NO_BODY:
            self.complete = True
        elif coding == "chunked":
            self._chunked, self._left = True, 0
        elif coding:
            raise Failure(HTTP, f"transfer encoding {coding}")
        elif length is not None:
            if not re.fullmatch(r"\d{1,15}", length, re.ASCII):
                raise Failure(HTTP, f"content length {length}")
            self._left = int(length)
            self.complete = self._left == 0
        else:
            self.keeps_alive = False

    def _plain(self, data: bytes) -> list[bytes]:
        if self._left is not None:
            if len(data) > self._left:
                self.keeps_alive = False
            data = data[: self._left]
            self._left -= len(data)
            self.complete = self._left == 0
        return [data] if data else []

    def _chunks(self, data: bytes) -> list[bytes]:
        """`_left` counts the line end behind a chunk, too."""
        data, at, parts = self._rest + data, 0, list[bytes]()
        while at < len(data) and not self._in_trailer:
            if self._left:
                at = self._take(data, at, parts)
                continue
            end = data.find(b"\r\n", at, at + MOST_SIZE_BYTES)
            if end < 0:
                if len(data) - at >= MOST_SIZE_BYTES:
                    raise Failure(HTTP, "a chunk without its size")
                break
            found = CHUNK_SIZE.fullmatch(data, at, end)
            if found is None:
                raise Failure(HTTP, f"chunk size {data[at : min(end, at + 40)].decode('latin-1')}")
            size, at = int(found[1], 16), end + 2
            self._left, self._in_trailer = size + 2, not size
        self._rest = data[at:]
        if self._in_trailer:
            self._trailer()
        return parts

    def _take(self, data: bytes, at: int, parts: list[bytes]) -> int:
        """Adds what there is of the chunk to `parts`; where the next bytes begin."""
        assert self._left is not None
        end = at + self._left
        if end > len(data):
            end = len(data)
            body_end = min(at + self._left - 2, end)
        else:
            body_end = end - 2
            if not data.endswith(b"\n", at, end) or data[max(body_end, at) : end - 1] not in (
                b"\r",
                b"",
            ):
                raise Failure(HTTP, "a chunk that is longer than its size")
        if body_end > at:
            parts.append(data[at:body_end])
        self._left -= end - at
        return end

    def _trailer(self) -> None:
        """Headers behind the last chunk, up to an empty line, mean nothing to us."""
        is_empty = self._rest.startswith(b"\r\n")
        end = 2 if is_empty else self._rest.find(b"\r\n\r\n") + 4
        if is_empty or end >= 4:
            self.complete = True
            self.keeps_alive &= len(self._rest) == end
        elif len(self._rest) > MOST_HEAD_BYTES:
            raise Failure(HTTP, f"headers of more than {MOST_HEAD_BYTES:,} bytes")
