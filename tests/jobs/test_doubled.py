"""Ids that several rows have are found whatever is held in memory and whatever kind they are."""

import random
from contextlib import closing

import pytest

from gyrfalcon.jobs import doubled
from gyrfalcon.jobs.doubled import Doubled


@pytest.mark.parametrize("bucket_bytes", [100, doubled.BUCKET_BYTES])  # on the disk, in memory
def test_each_row_with_the_id_of_an_earlier_one_is_found(
    bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubled, "BUCKET_BYTES", bucket_bytes)
    which = random.Random(5)
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    first: dict[str | int, tuple[int, int]] = {}
    with closing(Doubled()) as ids:
        for number in range(6000):
            row_id = which.choice((number, str(number), f"q{which.randrange(500)}"))
            place = (number // 4000, number)
            if row_id in first:
                expected[place] = first[row_id]
            first.setdefault(row_id, place)
            ids.add(row_id, *place)
        assert dict(ids.rows()) == expected
    assert len(expected) > 1000


def test_a_number_and_its_text_are_two_ids() -> None:
    with closing(Doubled()) as ids:
        ids.add(7, 0, 1)
        ids.add("7", 0, 2)
        assert list(ids.rows()) == []
        ids.add(7, 1, 1)
        assert list(ids.rows()) == [((1, 1), (0, 1))]
