"""What waits for its first token, within bounds: a request that finds the queue full is refused before it
costs anything.
"""

from gyrfalcon.serve.errors import ApiError, queue_full

MOST_REQUESTS, MOST_TOKENS = 1024, 262_144


class Queue:
    """Samples that have no token yet, with the tokens of their prompts. A request of `n` samples counts
    `n` times. What finds nothing waiting is always taken. None: no bound.
    """

    def __init__(self, most_requests: int | None, most_tokens: int | None) -> None:
        self._most_requests, self._most_tokens = most_requests, most_tokens
        self.num_requests = self.num_tokens = 0

    def refuse_if_full(self) -> None:
        """ApiError 429 where no request whatever would be taken."""
        self._check(1, 1)

    def enter(self, num_requests: int, num_tokens: int) -> "Reservation":
        """Room for this many samples with this many tokens; ApiError 429 where there is none."""
        self._check(num_requests, num_tokens)
        reservation = Reservation(self)
        reservation.add(num_requests, num_tokens)
        return reservation

    def _check(self, num_requests: int, num_tokens: int) -> None:
        if not self.num_requests:
            return
        requests, tokens = self._most_requests, self._most_tokens
        if requests is not None and self.num_requests + num_requests > requests:
            raise self._full(f"{requests:,} requests", num_requests, num_tokens)
        if tokens is not None and self.num_tokens + num_tokens > tokens:
            raise self._full(f"{tokens:,} prompt tokens", num_requests, num_tokens)

    def _full(self, most: str, num_requests: int, num_tokens: int) -> ApiError:
        return queue_full(
            f"wanted a queue of at most {most}, got {self.num_requests:,} of "
            f"{self.num_tokens:,} tokens waiting and {num_requests:,} of {num_tokens:,} more; ask again later"
        )


class Reservation:
    """The room that one HTTP request takes in the queue. As a context: given back when the block fails."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._num_requests = self._num_tokens = 0

    def add(self, num_requests: int, num_tokens: int) -> None:
        """Takes more, or gives back what has begun, as negative numbers."""
        self._num_requests += num_requests
        self._num_tokens += num_tokens
        self._queue.num_requests += num_requests
        self._queue.num_tokens += num_tokens

    def resize(self, num_tokens: int) -> None:
        """What was an estimate is known; ApiError 429 where there is no room for it."""
        requests = self._num_requests
        self.leave()
        self._queue._check(requests, num_tokens)
        self.add(requests, num_tokens)

    def leave(self) -> None:
        """Gives back all that is left."""
        self.add(-self._num_requests, -self._num_tokens)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.leave()
