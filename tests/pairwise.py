"""Fewer cases than all combinations: every two values meet in one."""

from collections.abc import Sequence
from itertools import combinations, product

Pair = tuple[tuple[int, int], tuple[int, int]]  # two axes, each with the index of a value


def pairwise(*axes: Sequence[object]) -> list[tuple[object, ...]]:
    """Cases of one value an axis, such that any two values of two axes are together in at least one.

    A fault that one value or two of them bring out is found as by all combinations; always the same cases.
    """
    cases = list(product(*(range(len(axis)) for axis in axes)))
    missing = {pair for case in cases for pair in _pairs(case)}
    chosen = []
    while missing:
        best = max(cases, key=lambda case: sum(pair in missing for pair in _pairs(case)))
        missing.difference_update(_pairs(best))
        chosen.append(best)
    return [tuple(axis[i] for axis, i in zip(axes, case, strict=True)) for case in chosen]


def _pairs(case: tuple[int, ...]) -> list[Pair]:
    return list(combinations(enumerate(case), 2))
