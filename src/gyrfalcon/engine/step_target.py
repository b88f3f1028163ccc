"""How many prompt tokens a step may read so that it takes no longer than a target, from the times of steps
before it. Pure: knows no clock.
"""

from collections import Counter, deque
from collections.abc import Sequence as Seq
from itertools import combinations
from statistics import median

MOST_STEPS = 32  # of each kind that are remembered
REDRAW = 8  # steps after which a line through them is drawn anew; its cost is quadratic
MOST_GROWTH = 2  # from the largest number of prompt tokens in a step that kept the target
TRIALS = 3  # steps of other sizes that tell what is fixed
STALE = 256  # steps with prompt tokens after which that is tried again
SPREAD = 1.5  # of sizes that differ enough


class StepTarget:
    """Estimates what a step costs and how many prompt tokens keep it below a target.

    A step that only decodes takes `base + row × sequences`: the Theil–Sen line through the last ones (Sen,
    1968: the median slope of all pairs, then the median intercept). What one with prompt tokens takes
    beyond that is partly fixed, the intercept of such a line, as long as the last steps had different
    numbers of them; the rest, for each of these tokens, is the median of the last ones. A fifth of the
    steps may be interrupted without moving these far. Where the last steps were alike for long, a few have
    other numbers of tokens.
    """

    def __init__(self, target_seconds: float, most_tokens: int, least_tokens: int) -> None:
        """`most_tokens`: of a step, decoding ones included; `least_tokens`: of prompts, however long they
        take, so that their prefill ends.
        """
        self._target = target_seconds
        self._most = most_tokens
        self._least = least_tokens
        self._decoding: deque[tuple[int, float]] = deque(maxlen=MOST_STEPS)  # sequences, seconds
        self._mixed: deque[tuple[int, int, float]] = deque(maxlen=MOST_STEPS)  # and prompt tokens
        self._line = (0.0, 0.0)  # seconds of a step without sequences, and of each
        self._num_new = 0  # steps since it was drawn
        self._fixed = 0.0  # seconds that prompts add, however many tokens they are
        self._num_mixed = 0
        self._fixed_at = -STALE  # the number of the step that told

    def record(self, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        """Takes in how long a step took."""
        if num_prompt_tokens:
            self._mixed.append((num_prompt_tokens, num_decoding, seconds))
            self._num_mixed += 1
            if self._num_mixed % REDRAW == 0:
                self._draw_fixed()
        elif num_decoding:
            self._decoding.append((num_decoding, seconds))
            self._num_new += 1

    def prompt_tokens(self, num_decoding: int) -> int:
        """How many prompt tokens fit into a step in which this many sequences decode: whole multiples of
        `least_tokens`, at least one of it, and at most twice as many as kept the target in the last
        steps: whatever is estimated of decoding alone while others use the machine, too.
        """
        most = max(self._most - num_decoding, 1)
        fitting = min(self._fitting(num_decoding), float(most))
        whole = int(fitting) // self._least * self._least
        return min(max(whole, self._least), most)

    def _fitting(self, num_decoding: int) -> float:
        if not self._mixed:
            return self._least
        kept = max(
            (tokens for tokens, _, seconds in self._mixed if seconds <= self._target), default=0
        )
        most = MOST_GROWTH * max(kept, self._least) if kept else 0
        left = self._target - self._decoding_seconds(num_decoding)
        cost = median((seconds - self._fixed) / tokens for tokens, seconds in self._added())
        fitting = (left - self._fixed) / cost if cost > 0 else most
        return self._tried(min(most, fitting), left)

    def _tried(self, fitting: float, left: float) -> float:
        """What fits, or for a few steps half of it, where nobody knows what is fixed; of the fewest tokens
        twice as many, if those fit.
        """
        if self._num_mixed - self._fixed_at < STALE or len(self._mixed) < REDRAW:
            return fitting
        added, few = self._added(), fitting < 2 * self._least
        if few and median(seconds for _, seconds in added) > left:
            return fitting
        other = 2 * self._least if few else fitting / 2
        num_tried = sum(tokens >= other if few else tokens <= other for tokens, _ in added)
        return other if num_tried < TRIALS else fitting

    def _added(self) -> list[tuple[int, float]]:
        """Of the last steps, prompt tokens and the seconds that they added."""
        return [
            (tokens, seconds - self._decoding_seconds(decoding))
            for tokens, decoding, seconds in self._mixed
        ]

    def _draw_fixed(self) -> None:
        """Draws the line through the last steps with prompts, if they tell enough."""
        points = self._added()
        sizes = Counter(tokens for tokens, _ in points)
        [(_, num_alike)] = sizes.most_common(1)
        if len(points) - num_alike >= TRIALS and max(sizes) >= SPREAD * min(sizes):
            self._fixed = max(theil_sen(points)[0], 0.0)
            self._fixed_at = self._num_mixed

    def _decoding_seconds(self, num_decoding: int) -> float:
        """Seconds of a step without prompt tokens; 0 as long as none was timed, and where nothing decodes:
        what a step without sequences takes is unknown where always as many decode, and prompts alone pay for
        it.
        """
        if not num_decoding:
            return 0.0
        if self._num_new and (self._num_new >= REDRAW or len(self._decoding) < REDRAW):
            self._line, self._num_new = theil_sen(list(self._decoding)), 0
        base, row = self._line
        return base + row * num_decoding


def theil_sen(points: Seq[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope of a line through (x, y); the slope is 0 where all x are the same, and where it
    would be negative, since no step becomes shorter by a sequence.
    """
    slopes = [(y - v) / (x - u) for (x, y), (u, v) in combinations(points, 2) if x != u]
    slope = max(median(slopes), 0.0) if slopes else 0.0
    return median(y - slope * x for x, y in points), slope
