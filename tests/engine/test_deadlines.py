"""Deadlines are told once, the earliest first, and only of requests that have not ended."""

import random

from gyrfalcon.engine.deadlines import Deadlines


def test_passed_deadlines_are_told_once_the_earliest_first() -> None:
    deadlines = Deadlines()
    for request_id, deadline in ((0, 5.0), (1, 3.0), (2, 4.0), (3, 9.0)):
        deadlines.set(request_id, deadline)
    assert deadlines.pop_passed(2.9) == []
    assert deadlines.pop_passed(5.0) == [1, 2, 0]
    assert deadlines.pop_passed(5.0) == []
    assert deadlines.pop_passed(100.0) == [3]


def test_random_requests_are_told_as_a_plain_table_has_them() -> None:
    draw, deadlines = random.Random(0), Deadlines()
    table: dict[int, float] = {}
    for now in range(5_000):
        if draw.random() < 0.7:
            table[now] = now + draw.choice([1.0, 40.0, 3_000.0])
            deadlines.set(now, table[now])
        if table and draw.random() < 0.5:
            ended = draw.choice([*table])
            del table[ended]
            deadlines.drop(ended)
        deadlines.drop(-1)  # has none
        passed = sorted((at, one) for one, at in table.items() if at <= now)
        assert (deadlines.next_at <= now) or not passed
        assert deadlines.pop_passed(now) == [one for _, one in passed]
        assert deadlines.next_at > now
        for _, one in passed:
            del table[one]


def test_deadlines_of_requests_that_ended_take_no_room() -> None:
    deadlines = Deadlines()
    for request_id in range(10_000):
        deadlines.set(request_id, 1e9)
        deadlines.drop(request_id)
    assert len(deadlines._heap) < 100
