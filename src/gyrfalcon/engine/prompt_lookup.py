"""Prompt lookup: tokens that may follow in a text, because they followed when the same few tokens stood there
before (Saxena 2023, "Prompt Lookup Decoding"). Pure Python, the same on every rank.
"""

from collections.abc import Sequence as Seq
from itertools import accumulate, repeat
from operator import mul

SIZE = 2  # tokens that are looked up
MOST_OF_PROMPT = 8192  # its last tokens are read, in one step
ASSUMED_RATE = 0.5  # at which tokens found are the right ones, before any came
WEIGHT = 0.1  # of the newest token in that rate


class PromptLookup:
    """The n-grams of one text that grows; a token takes constant time.

    Each output token tells whether the one found for its place was right, drafted or not: so the rate of
    acceptance follows a text that begins or ceases to repeat itself.
    """

    def __init__(self, tokens: Seq[int], prompt_len: int) -> None:
        """`tokens` is read again whenever something is asked, and only ever gets longer."""
        self._tokens = tokens
        self._prompt_len = prompt_len
        self._num_read = max(0, prompt_len - MOST_OF_PROMPT)
        self._places: dict[tuple[int, ...], int] = {}  # n-gram → where it last ended
        self._found: int | None = None  # the place of what may follow next
        self._rate = ASSUMED_RATE

    def draft(self, most: int, least_acceptance: float) -> list[int]:
        """At most this many tokens that may follow, as long as all up to there are accepted with such a
        probability.
        """
        num = sum(one >= least_acceptance for one in self.acceptance(most))
        if self._found is None:
            return []
        known = self._tokens[self._found : self._found + num]
        return [known[place % len(known)] for place in range(num)]  # repeats what reaches the end

    def acceptance(self, most: int) -> list[float]:
        """For each of at most this many tokens that may follow the probability that it is accepted, and with
        it all before.
        """
        self._read()
        return [] if self._found is None else list(accumulate(repeat(self._rate, most), mul))

    def _read(self) -> None:
        """Takes in what is new. A text that goes on as it did before is followed, not looked up anew."""
        for place in range(self._num_read, len(self._tokens)):
            if self._found is not None:
                self._check(place, self._found)
            gram = tuple(self._tokens[max(place + 1 - SIZE, 0) : place + 1])
            if self._found is None:
                self._found = self._places.get(gram)
            self._places[gram] = place + 1
        self._num_read = len(self._tokens)

    def _check(self, place: int, found: int) -> None:
        """Whether the token at `place` is the one that was found for it; if so, the next one comes after."""
        is_right = self._tokens[found] == self._tokens[place]
        if place >= self._prompt_len:
            self._rate += WEIGHT * (is_right - self._rate)
        self._found = found + 1 if is_right else None
