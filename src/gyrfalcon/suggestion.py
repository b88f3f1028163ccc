"""What a misspelt word was probably meant to be."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question that names the known word nearest to this one; `otherwise` where none is near."""
    near = get_close_matches(word, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else otherwise


def neighbours(path: str) -> list[str]:
    """What lies in the folder of a path, written as the path is."""
    with suppress(OSError):
        folder = Path(path).parent
        return [str(folder / entry.name) for entry in folder.iterdir()]
    return []
