"""Cases in which every two values meet."""

from itertools import combinations, product

import pytest
from pairwise import pairwise


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (3, 4, 2), (12, 7, 3), (2, 2, 4, 3)])
def test_every_two_values_of_two_axes_meet(sizes: tuple[int, ...]) -> None:
    axes = [[f"{axis}{i}" for i in range(size)] for axis, size in enumerate(sizes)]
    cases = pairwise(*axes)
    assert set(cases) <= set(product(*axes))
    for first, second in combinations(range(len(axes)), 2):
        met = {(case[first], case[second]) for case in cases}
        assert met == set(product(axes[first], axes[second]))


def test_a_grid_of_three_axes_is_the_product_of_its_two_longest() -> None:
    assert len(pairwise(range(12), range(7), range(3))) == 84
    assert len(pairwise(range(6), range(6), range(6))) <= 42
