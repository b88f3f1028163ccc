"""API keys: where they come from, and what one looks like."""

import os
from collections.abc import Sequence

from gyrfalcon.errors import UsageError
from gyrfalcon.files.text import contents, decoded

API_KEY = "GYRFALCON_API_KEY"  # a variable of the environment


def all_keys(path: str | None) -> tuple[str, ...]:
    """The key in the environment and those of a file, if there are any."""
    of_file = [] if path is None else keys_of_file(path)
    return checked_keys([os.environ.get(API_KEY, ""), *of_file])


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Each key once; UsageError for one that clients would not all send alike."""
    found = tuple(dict.fromkeys(key for key in map(str.strip, keys) if key))
    if not all(key.isascii() and key.isprintable() for key in found):
        got, do = "one with others", "choose a key that every client sends alike"
        raise UsageError("API keys of printable ASCII characters", got, do)
    return found


def keys_of_file(path: str) -> list[str]:
    """One a line; lines that begin with # are comments."""
    lines = map(str.strip, decoded(contents(path), path).splitlines())
    found = [line for line in lines if line and not line.startswith("#")]
    do = "write one a line"
    if not found:
        raise UsageError(f"a key in {path}", "none", do)
    if any(len(key.split()) > 1 for key in found):
        raise UsageError(f"keys without spaces in {path}", "one with a space", do)
    return found
