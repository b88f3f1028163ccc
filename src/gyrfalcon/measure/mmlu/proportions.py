"""Statistics of right answers: the interval of one run, and the difference between two."""

import math

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point
INTERVAL = "Wilson score, 95 %"


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); from 0 to 1 when nothing was asked."""
    if total == 0:
        return 0.0, 1.0
    share, weight = right / total, Z_95**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value: the probability that chance alone splits the discordant pairs at
    least this unevenly (McNemar 1947, by the binomial distribution with 1/2).
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    ways, sum_of_ways = 1, 0
    for count in range(fewer + 1):
        sum_of_ways += ways
        ways = ways * (total - count) // (count + 1)
    return min(1.0, sum_of_ways / (1 << total) * 2)
