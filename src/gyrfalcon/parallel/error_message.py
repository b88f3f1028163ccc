"""A rank's error as bytes in the store: the name of its class in errors.py, and its three parts.

Decoding looks up a class by name and runs nothing that the bytes contain: any process of this
machine can write to the store.
"""

import json

from gyrfalcon import errors
from gyrfalcon.errors import MOST_LETTERS, GyrfalconError, RankDied

MOST_BYTES = 100_000  # three parts of MOST_LETTERS take a third of it in the longest of escapes
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, GyrfalconError)
}


def encode_error(error: GyrfalconError) -> bytes:
    """The bytes of an error; its parts as long as they are shown."""
    parts = [part[: MOST_LETTERS + 1] for part in (error.wanted, error.got, error.do)]
    return json.dumps([type(error).__name__, *parts]).encode()


def decode_error(message: bytes) -> GyrfalconError:
    """The error of encode_error(); RankDied for any other bytes."""
    try:
        name, *parts = json.loads(message if len(message) <= MOST_BYTES else b"")
        if len(parts) == 3 and all(isinstance(part, str) for part in parts):
            return CLASSES[name](*parts)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return RankDied("the error of a rank that ended", "bytes that are none", "start again")
