"""The sequences that wait for cache, in the order in which they are to be admitted. Pure bookkeeping, which
also counts what waits.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from gyrfalcon.request import Sequence


class WaitingQueue:
    """Those of the lowest priority value first, of these first come first."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[Sequence, None]] = {}  # by priority; none is empty
        self._samples: Counter[int] = Counter()  # of requests by id
        self.num_sequences = 0
        self.num_tokens = 0

    def __iter__(self) -> Iterator[Sequence]:
        for priority in sorted(self._levels):
            yield from self._levels[priority]

    @property
    def num_requests(self) -> int:
        """Requests of which at least one sample waits."""
        return len(self._samples)

    def append(self, sequence: Sequence) -> None:
        """Queues a sequence behind all of its priority."""
        level = self._levels.setdefault(sequence.request.priority, OrderedDict())
        level[sequence] = None
        self._samples[sequence.request.id] += 1
        self.num_sequences += 1
        self.num_tokens += len(sequence.tokens)

    def put_back(self, sequence: Sequence) -> None:
        """Queues a preempted sequence before all of its priority."""
        self.append(sequence)
        self._levels[sequence.request.priority].move_to_end(sequence, last=False)

    def first(self) -> Sequence:
        """The sequence to admit next; there has to be one."""
        return next(iter(self._levels[min(self._levels)]))

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is."""
        request = sequence.request
        del self._levels[request.priority][sequence]
        if not self._levels[request.priority]:
            del self._levels[request.priority]
        self._samples[request.id] -= 1
        if not self._samples[request.id]:
            del self._samples[request.id]
        self.num_sequences -= 1
        self.num_tokens -= len(sequence.tokens)
