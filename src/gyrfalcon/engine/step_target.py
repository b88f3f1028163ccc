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
    beyond that is told by the last such steps; by others where nothing decodes, which pay for the base
    themselves: it cannot be told from the rows where as many sequences decode all the time.
    """

    def __init__(self, target_seconds: float, most_tokens: int, least_tokens: int) -> None:
        """`most_tokens`: of a step, decoding ones included; `least_tokens`: of prompts, however long they
        take, so that their prefill ends.
        """
        self._target = target_seconds
        self._most = most_tokens
        self._least = least_tokens
        self._decoding: deque[tuple[int, float]] = deque(maxlen=MOST_STEPS)  # sequences, seconds
        self._line = (0.0, 0.0)  # seconds of a step without sequences, and of each
        self._num_new = 0  # steps since it was drawn
        self._alone, self._beside = PromptCost(least_tokens), PromptCost(least_tokens)

    def record(self, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        """Takes in how long a step took."""
        if num_prompt_tokens:
            added = seconds - self._decoding_seconds(num_decoding)
            self._cost(num_decoding).record(num_prompt_tokens, added, seconds <= self._target)
        elif num_decoding:
            self._decoding.append((num_decoding, seconds))
            self._num_new += 1

    def prompt_tokens(self, num_decoding: int) -> int:
        """How many prompt tokens fit into a step in which this many sequences decode: whole multiples of
        `least_tokens`, at least one of it, and at most twice as many as kept the target in the last such
        steps: whatever is estimated of decoding while others use the machine, too.
        """
        most = max(self._most - num_decoding, 1)
        left = self._target - self._decoding_seconds(num_decoding)
        fitting = min(self._cost(num_decoding).fitting(left), float(most))
        whole = int(fitting) // self._least * self._least
        return min(max(whole, self._least), most)

    def _cost(self, num_decoding: int) -> "PromptCost":
        return self._beside if num_decoding else self._alone

    def _decoding_seconds(self, num_decoding: int) -> float:
        """Seconds of a step without prompt tokens; 0 as long as none was timed, and where nothing decodes."""
        if not num_decoding:
            return 0.0
        if self._num_new and (self._num_new >= REDRAW or len(self._decoding) < REDRAW):
            self._line, self._num_new = theil_sen(list(self._decoding)), 0
        base, row = self._line
        return base + row * num_decoding


class PromptCost:
    """What prompt tokens add to a step, from the last steps with some: partly a fixed time, the intercept of
    a Theil–Sen line, as long as these had different numbers of tokens; the rest, for each token, is their
    median. A fifth of the steps may be interrupted without moving these far. Where the last steps were alike
    for long, a few have other numbers of tokens.
    """

    def __init__(self, least_tokens: int) -> None:
        self._least = least_tokens
        self._steps: deque[tuple[int, float]] = deque(maxlen=MOST_STEPS)  # tokens, seconds added
        self._kept: deque[int] = deque(maxlen=MOST_STEPS)  # tokens, 0 where the target was missed
        self._num_steps = 0
        self._fixed = 0.0  # seconds, however many tokens they are
        self._fixed_at = -STALE  # the number of the step that told

    def record(self, num_tokens: int, added: float, is_kept: bool) -> None:
        """Takes in what a step took beyond its decoding, and whether it kept the target."""
        self._steps.append((num_tokens, added))
        self._kept.append(num_tokens * is_kept)
        self._num_steps += 1
        if self._num_steps % REDRAW == 0:
            self._draw_fixed()

    def fitting(self, seconds: float) -> float:
        """How many tokens fit into a step that has so much time for them."""
        if not self._steps:
            return self._least
        most = MOST_GROWTH * max(self._kept)
        cost = median((added - self._fixed) / tokens for tokens, added in self._steps)
        fitting = (seconds - self._fixed) / cost if cost > 0 else most
        return self._tried(min(most, fitting), seconds)

    def _tried(self, fitting: float, left: float) -> float:
        """What fits, or for a few steps half of it, where nobody knows what is fixed; of the fewest tokens
        twice as many, if those fit.
        """
        if self._num_steps - self._fixed_at < STALE or len(self._steps) < REDRAW:
            return fitting
        few = fitting < 2 * self._least
        if few and median(added for _, added in self._steps) > left:
            return fitting
        other = 2 * self._least if few else fitting / 2
        num_tried = sum(tokens >= other if few else tokens <= other for tokens, _ in self._steps)
        return other if num_tried < TRIALS else fitting

    def _draw_fixed(self) -> None:
        """Draws the line through the last steps, if they tell enough."""
        sizes = Counter(tokens for tokens, _ in self._steps)
        [(_, num_alike)] = sizes.most_common(1)
        if len(self._steps) - num_alike >= TRIALS and max(sizes) >= SPREAD * min(sizes):
            self._fixed = max(theil_sen(list(self._steps))[0], 0.0)
            self._fixed_at = self._num_steps


def theil_sen(points: Seq[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope of a line through (x, y); the slope is 0 where all x are the same, and where it
    would be negative, since no step becomes shorter by a sequence.
    """
    slopes = [(y - v) / (x - u) for (x, y), (u, v) in combinations(points, 2) if x != u]
    slope = max(median(slopes), 0.0) if slopes else 0.0
    return median(y - slope * x for x, y in points), slope
