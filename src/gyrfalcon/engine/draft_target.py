"""How probable the acceptance of a token must be for its draft to pay, from the times of steps before. Pure:
knows no clock.
"""

from collections import deque
from collections.abc import Sequence as Seq

from gyrfalcon.engine.drafts import NEVER
from gyrfalcon.engine.step_target import theil_sen

MOST_STEPS = 16  # with drafts and without that are remembered
REDRAW = 8  # steps after which the line through them is drawn anew
TRIALS = 3  # steps with drafts before their times count
PROBABLE = 0.8
# Until there are times: what a step takes beside its tokens is assumed to equal this many of them.
FIXED_ROWS = 8
STALE = 64  # steps in which probable tokens did not pay, after which their times are forgotten


class DraftTarget:
    """Chooses drafts that give the most tokens a second.

    A step that only decodes takes `base + row × tokens`, drafts included: the Theil–Sen line through the last
    steps (see StepTarget). A draft token gives as many tokens as its acceptance is probable, so it pays where
    that, over `row`, is more than the step gives without it, over its time. Tokens are added in the order of
    their probability as long as that holds, which is the best choice of all.
    """

    def __init__(self) -> None:
        self._plain: deque[tuple[int, float]] = deque(maxlen=MOST_STEPS)  # tokens, seconds
        self._drafted: deque[tuple[int, float]] = deque(maxlen=MOST_STEPS)
        self._line: tuple[float, float] | None = None
        self._num_new = 0
        self._num_refused = 0

    def record(self, num_tokens: int, num_drafted: int, seconds: float) -> None:
        """Takes in how long a step without prompts took, and for how many tokens, draft tokens included."""
        (self._drafted if num_drafted else self._plain).append((num_tokens, seconds))
        self._num_new += 1

    def least_acceptance(self, num_sequences: int, acceptance: Seq[float]) -> float:
        """The probability from which on draft tokens pay in a step of this many sequences, given those of all
        that could be drafted; NEVER where none does.
        """
        if not acceptance or not num_sequences:
            return NEVER
        base, row = self._times(num_sequences)
        gain, seconds, least = float(num_sequences), base + row * num_sequences, NEVER
        for one in sorted(acceptance, reverse=True):
            if one * seconds <= gain * row:
                break
            gain, seconds, least = gain + one, seconds + row, one
        if least == NEVER and max(acceptance) >= PROBABLE:
            self._refused()
        return least

    def _times(self, num_sequences: int) -> tuple[float, float]:
        """Seconds of a step without tokens, and of each."""
        if len(self._drafted) < TRIALS or not self._plain:
            row = 1 / (num_sequences + FIXED_ROWS)
            return FIXED_ROWS * row, row
        if self._line is None or self._num_new >= REDRAW:
            self._line, self._num_new = theil_sen([*self._plain, *self._drafted]), 0
        return self._line

    def _refused(self) -> None:
        """Has drafts tried anew that have not paid for long: the machine may have been busy."""
        self._num_refused += 1
        if self._num_refused >= STALE:
            self._drafted.clear()
            self._line, self._num_refused = None, 0
