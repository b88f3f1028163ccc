"""The interval by which benchmarks/checkouts.py judges."""

from importlib import import_module

import pytest

checkouts = import_module("checkouts")


# Conover's table for the median at 95 %.
@pytest.mark.parametrize(("count", "first", "last"), [(6, 1, 6), (15, 4, 12), (25, 8, 18)])
def test_the_interval_of_a_median_lies_between_the_ranks_of_the_table(
    count: int, first: int, last: int
) -> None:
    assert checkouts.interval(list(range(count, 0, -1))) == (first, last)


def test_too_few_pairs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        checkouts.main(["old", "new", "--pairs", "5"])
    assert "wanted --pairs of at least 6, got 5" in capsys.readouterr().err
