"""Server-sent events: bytes → the data of each event. Names, ids and comments (pings) are skipped."""

from gyrfalcon.load.failures import EVENT, Failure

MOST_EVENT_BYTES = 1 << 20


class Events:
    """The events of one stream."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of a line that has not ended
        self._data = list[bytes]()  # lines of an event that has not ended
        self._num_bytes = 0  # of these lines

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that end in `part`; Failure for one without an end."""
        if self._is_one_event(part):
            return [part[6:-2]]
        found = list[bytes]()
        if b"\n" not in part:
            self._rest += part
            self._check(len(self._rest))
            return found
        *lines, rest = (bytes(self._rest) + part if self._rest else part).split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if line in (b"", b"\r"):
                self._end(found)
            elif line.startswith(b"data:"):
                self._add(line)
        return found

    def end(self) -> list[bytes]:
        """What the last event holds where the blank line behind it is missing."""
        return self.feed(b"\n\n")

    def _is_one_event(self, part: bytes) -> bool:
        """Whether it is what servers send most: one line of data and a blank one."""
        is_whole = part.startswith(b"data: ") and part.endswith(b"\n\n") and part.count(b"\n") == 2
        return is_whole and part[-3:-2] != b"\r" and not self._rest and not self._data

    def _add(self, line: bytes) -> None:
        self._data.append(line[5:].removesuffix(b"\r").removeprefix(b" "))
        self._num_bytes += len(line)
        self._check(self._num_bytes)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > MOST_EVENT_BYTES:
            raise Failure(EVENT, f"more than {MOST_EVENT_BYTES:,} bytes long")

    def _end(self, found: list[bytes]) -> None:
        if self._data:
            found.append(b"\n".join(self._data))
            self._data, self._num_bytes = [], 0
