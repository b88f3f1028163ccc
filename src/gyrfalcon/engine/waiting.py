"""The sequences that wait for cache, and how much that is. Pure bookkeeping; their order is PromptQueue's."""

from collections import Counter
from collections.abc import Iterator

from gyrfalcon.request import Sequence


class Waiting:
    """A set of sequences, with counts of their requests and tokens."""

    def __init__(self) -> None:
        self._sequences: dict[Sequence, None] = {}
        self._samples: Counter[int] = Counter()  # of requests by id
        self.num_sequences = 0
        self.num_tokens = 0

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def num_requests(self) -> int:
        """Requests of which at least one sample waits."""
        return len(self._samples)

    def add(self, sequence: Sequence) -> None:
        """Takes in one that arrived or was preempted."""
        self._sequences[sequence] = None
        self._samples[sequence.request.id] += 1
        self.num_sequences += 1
        self.num_tokens += len(sequence.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Takes out one that was admitted or has ended."""
        del self._sequences[sequence]
        self._samples[sequence.request.id] -= 1
        if not self._samples[sequence.request.id]:
            del self._samples[sequence.request.id]
        self.num_sequences -= 1
        self.num_tokens -= len(sequence.tokens)
