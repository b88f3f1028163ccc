"""Which replica gets a request. A router knows how many unfinished requests each has and what it sent where,
but neither caches nor clocks.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from gyrfalcon.plan.trace import TraceRequest

ROUND_ROBIN, LEAST_LOADED, PREFIX = "round-robin", "least-loaded", "prefix"
ROUTERS = (ROUND_ROBIN, LEAST_LOADED, PREFIX)


class Router(Protocol):
    """Chooses among replicas, by their index."""

    needs_loads: bool  # whether note() has to be called

    def choose(self, request: TraceRequest) -> int:
        """Who gets a request that arrives now."""

    def note(self, replica: int, num_unfinished: int) -> None:
        """A replica has this many unfinished requests now."""


class RoundRobin:
    """Each in turn."""

    needs_loads = False

    def __init__(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas
        self._next = 0

    def choose(self, request: TraceRequest) -> int:
        """The next one."""
        chosen, self._next = self._next, (self._next + 1) % self._num_replicas
        return chosen

    def note(self, replica: int, num_unfinished: int) -> None:
        """Does not matter."""


class LeastLoaded:
    """The one with the fewest unfinished requests; of several the one that was chosen longest ago."""

    needs_loads = True

    def __init__(self, num_replicas: int) -> None:
        self._entries = [(0, 0, index) for index in range(num_replicas)]  # (load, chosen at, index)
        self._heap = list(self._entries)
        self._num_chosen = 0

    def load(self, replica: int) -> int:
        """Unfinished requests of a replica."""
        return self._entries[replica][0]

    def least(self) -> int:
        """Who has the fewest."""
        while self._heap[0] != self._entries[self._heap[0][2]]:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def choose(self, request: TraceRequest) -> int:
        """The one with the fewest."""
        chosen = self.least()
        self.took(chosen)
        return chosen

    def took(self, replica: int) -> None:
        """A replica was chosen."""
        self._num_chosen += 1
        self._set((self.load(replica), self._num_chosen, replica))

    def note(self, replica: int, num_unfinished: int) -> None:
        """A replica has this many unfinished requests now."""
        _, chosen_at, _ = self._entries[replica]
        self._set((num_unfinished, chosen_at, replica))

    def _set(self, entry: tuple[int, int, int]) -> None:
        self._entries[entry[2]] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 4 * len(self._entries) + 64:
            self._heap = list(self._entries)
            heapq.heapify(self._heap)


class PrefixAware:
    """The one to which the longest known beginning of the prompt was sent last, unless it has as many
    unfinished requests as run at once and another has fewer; else the least loaded one.
    """

    needs_loads = True

    def __init__(self, num_replicas: int, max_sequences: int, most_pages: int) -> None:
        """`most_pages`: of beginnings that are remembered, such as all caches hold; the oldest go first."""
        self._loads = LeastLoaded(num_replicas)
        self._max_sequences = max_sequences
        self._most_pages = most_pages
        self._sent_to: OrderedDict[int, int] = OrderedDict()  # beginning → replica, newest last

    def choose(self, request: TraceRequest) -> int:
        """The one that is likely to hold most of the prompt, or the least loaded one."""
        beginnings = list(_beginnings(request.prefix_ids))
        known = (self._sent_to[one] for one in reversed(beginnings) if one in self._sent_to)
        chosen, least = next(known, None), self._loads.least()
        if chosen is None or self._is_full(chosen) > self._is_full(least):
            chosen = least
        self._loads.took(chosen)
        for one in beginnings:
            self._sent_to[one] = chosen
            self._sent_to.move_to_end(one)
        while len(self._sent_to) > self._most_pages:
            self._sent_to.popitem(last=False)
        return chosen

    def note(self, replica: int, num_unfinished: int) -> None:
        """A replica has this many unfinished requests now."""
        self._loads.note(replica, num_unfinished)

    def _is_full(self, replica: int) -> bool:
        return self._loads.load(replica) >= self._max_sequences


def make_router(name: str, num_replicas: int, max_sequences: int, num_pages: int) -> Router:
    """The router called `name`, one of ROUTERS; `num_pages`: of a trace that a replica's cache holds."""
    if name == ROUND_ROBIN:
        return RoundRobin(num_replicas)
    if name == LEAST_LOADED:
        return LeastLoaded(num_replicas)
    return PrefixAware(num_replicas, max_sequences, num_replicas * num_pages)


def _beginnings(pages: tuple[int, ...]) -> Iterator[int]:
    """A number for each beginning of the pages, the shortest first."""
    found = 0
    for page in pages:
        found = hash((found, page))
        yield found
