"""By when requests have to end. No clock: whoever has one tells the time."""

import heapq
import math

MOST_STALE = 64  # entries of requests that have ended, beside as many of those that have not


class Deadlines:
    """The deadlines of requests by number, in seconds of any clock."""

    def __init__(self) -> None:
        self.next_at = math.inf  # the first of them, or earlier
        self._of: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # some of it may have ended

    def set(self, request_id: int, deadline: float) -> None:
        """Notes when a request has to end."""
        self._of[request_id] = deadline
        heapq.heappush(self._heap, (deadline, request_id))
        self.next_at = self._heap[0][0]

    def drop(self, request_id: int) -> None:
        """Forgets a request, if it has a deadline: it has ended."""
        if self._of.pop(request_id, None) is None:
            return
        if len(self._heap) > 2 * len(self._of) + MOST_STALE:
            self._heap = [(deadline, one) for one, deadline in self._of.items()]
            heapq.heapify(self._heap)

    def pop_passed(self, now: float) -> list[int]:
        """The requests whose deadline has passed, the earliest first; forgets them."""
        passed = []
        while self._heap and self._heap[0][0] <= now:
            _, request_id = heapq.heappop(self._heap)
            if self._of.pop(request_id, None) is not None:
                passed.append(request_id)
        self.next_at = self._heap[0][0] if self._heap else math.inf
        return passed
