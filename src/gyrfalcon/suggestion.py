"""What a misspelt word was probably meant to be."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

CUTOFF = 0.7  # of difflib's ratio: below, words are not near


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question that names the known word nearest to this one; `otherwise` where none is near."""
    near = get_close_matches(word, known, n=1, cutoff=CUTOFF)
    return f"did you mean {near[0]}?" if near else otherwise


def path_meant(path: str, otherwise: str, *words: str) -> str:
    """The same for a path: one of `words`, or what lies in the same folder under a name that is near."""
    place, names = Path(path), list[str]()
    with suppress(OSError):
        names = [entry.name for entry in place.parent.iterdir()]
    near = get_close_matches(place.name, names, n=1, cutoff=CUTOFF)
    beside = f"did you mean {place.with_name(near[0])}?" if near else otherwise
    return did_you_mean(path, words, beside)
