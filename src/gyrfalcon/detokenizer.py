"""Turns ids into text as soon as it is certain: whole characters only, no beginnings of stop strings."""

import codecs
from collections.abc import Sequence

from gyrfalcon.errors import RequestError
from gyrfalcon.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence, piece by piece: joined, flush() included, they are the whole text decoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes; none for special tokens."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left when no id follows: U+FFFD for half a character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopFinder:
    """Looks for stop strings in a text that arrives in pieces; the first to be complete ends the text.

    Of several that end with the same character the longest counts. How the text is cut never matters.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("stop strings with text", "an empty one", "leave it out")
        self._matches = [_Match(stop) for stop in stops]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was found: nothing follows one."""
        if self._stopped:
            return "", True
        seen = self._held + text
        for end in range(len(self._held) + 1, len(seen) + 1):
            found = max((match.advance(seen[end - 1]) for match in self._matches), default=0)
            if found:
                self._held, self._stopped = "", True
                return seen[: end - found], True
        safe = len(seen) - max((match.len for match in self._matches), default=0)
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """The text held back, which no stop string claims when nothing follows."""
        held, self._held = self._held, ""
        return held


class _Match:
    """How much of one stop string the text seen so far ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.len = 0
        self.borders = [0]  # [i]: the longest proper end of stop[: i + 1] that is also its beginning
        for letter in stop[1:]:
            self.borders.append(self._longer(self.borders[-1], letter))

    def advance(self, letter: str) -> int:
        """Takes the next letter of the text; returns the stop string's length when it is complete, else 0."""
        self.len = self._longer(self.len, letter)
        return self.len if self.len == len(self.stop) else 0

    def _longer(self, matched: int, letter: str) -> int:
        while matched and self.stop[matched] != letter:
            matched = self.borders[matched - 1]
        return matched + (self.stop[matched] == letter)
