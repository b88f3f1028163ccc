"""Finds ids that several rows have, among any number of rows, in memory that does not grow with them: digests
are spread over buckets, which go to temporary files when they grow, and each bucket is sorted alone.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b

import numpy as np

from gyrfalcon.jobs.rows import RowId

NUM_BUCKETS = 256
BUCKET_BYTES = 256 << 10  # held in memory of each: 64 MiB in all, two million rows
ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("file", ">u4"), ("number", ">u8")])


class Doubled:
    """Takes the ids of rows in order; rows() then gives those whose id an earlier row has."""

    def __init__(self) -> None:
        self._files = ExitStack()
        enter = self._files.enter_context
        self._buckets = [
            enter(tempfile.SpooledTemporaryFile(BUCKET_BYTES))  # noqa: SIM115  # closed in close()
            for _ in range(NUM_BUCKETS)
        ]

    def add(self, row_id: RowId, file: int, number: int) -> None:
        """The id of a row, its file and its number in there."""
        digest = blake2b(json.dumps(row_id).encode(), digest_size=16).digest()
        entry = digest + file.to_bytes(4, "big") + number.to_bytes(8, "big")
        self._buckets[digest[0]].write(entry)

    def rows(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """The rows whose id occurred before, each with the first row of that id: file and number."""
        for bucket in self._buckets:
            bucket.seek(0)
            entries = np.sort(np.frombuffer(bucket.read(), ENTRY), order=ENTRY.names)
            same = (entries["high"][1:] == entries["high"][:-1]) & (
                entries["low"][1:] == entries["low"][:-1]
            )
            first = 0
            for number in np.flatnonzero(same):  # equal to the entry after it
                if number == 0 or not same[number - 1]:
                    first = int(number)
                yield _place(entries[number + 1]), _place(entries[first])

    def close(self) -> None:
        """Removes the temporary files."""
        self._files.close()


def _place(entry: np.void) -> tuple[int, int]:
    return int(entry["file"]), int(entry["number"])
