"""Room: whether a waiting sequence has blocks and a place to run, and who would have to be preempted for it.
Decides nothing and changes nothing.
"""

from collections.abc import Sequence as Seq

from gyrfalcon.engine.prefix_cache import PrefixCache
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import Sequence

Running = dict[Sequence, None]  # those that hold cache, the most urgent first


class Room:
    """In a cache for sequences of at most `max_len` tokens, of which `most_running` run at once."""

    def __init__(
        self, allocator: BlockAllocator, cache: PrefixCache, max_len: int, most_running: int
    ) -> None:
        self._allocator, self._cache = allocator, cache
        self._max_len, self._most_running = max_len, most_running

    def is_for(self, sequence: Sequence, running: Running) -> bool:
        """Whether there is some for all tokens of a waiting sequence and one more."""
        if len(running) >= self._most_running:
            return False
        return self._num_short(sequence, self._cache.known(sequence)) <= 0

    def victims(self, new: Sequence, running: Running) -> list[Sequence]:
        """The last running sequences of a higher priority value that have to be preempted for a waiting
        one to have room beside what the others need for their next token; none where that does not
        help, or where it need not be.
        """
        victims: list[Sequence] = []
        known = self._cache.known(new)
        short = self._num_short(new, known) + sum(map(self._num_growing, running))
        num_released = self._allocator.released_with(known)
        for sequence in reversed(running):
            if short <= 0 and len(running) - len(victims) < self._most_running:
                return victims
            if sequence.priority <= new.priority:
                return []
            victims.append(sequence)
            short -= num_released(sequence.blocks) + self._num_growing(sequence)
        return victims if short <= 0 else []

    def _num_short(self, sequence: Sequence, known: Seq[int]) -> int:
        """How many blocks a waiting sequence lacks, beside those that are known."""
        blocks = self._allocator.blocks_for(min(len(sequence.tokens) + 1, self._max_len))
        available = self._allocator.num_free - self._allocator.num_unused(known)
        return blocks - len(known) - available

    def _num_growing(self, sequence: Sequence) -> int:
        """How many blocks a running sequence needs for its next token."""
        return max(0, self._allocator.blocks_for(len(sequence.tokens)) - len(sequence.blocks))
