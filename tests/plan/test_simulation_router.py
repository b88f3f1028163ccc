"""Routers: who gets a request, and what that does to a simulation of several replicas."""

from simulations import ROOMY, ByLoad, drawn_trace

from gyrfalcon.plan.router import ROUTERS, LeastLoaded, PrefixAware, RoundRobin
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.trace import TraceRequest

ANY = TraceRequest(0.0, 8, 1)


def with_pages(*pages: int) -> TraceRequest:
    return TraceRequest(0.0, 4 * len(pages), 1, pages)


def test_round_robin_takes_each_in_turn() -> None:
    router = RoundRobin(3)
    assert [router.choose(ANY) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_least_loaded_is_chosen_and_of_equals_the_one_that_waited_longest() -> None:
    router = LeastLoaded(3)
    assert [router.choose(ANY) for _ in range(4)] == [0, 1, 2, 0]
    router.note(0, 2)
    router.note(1, 1)
    router.note(2, 1)
    assert router.choose(ANY) == 1
    router.note(1, 2)
    router.note(0, 0)
    assert router.choose(ANY) == 0


def test_notes_of_loads_do_not_pile_up() -> None:
    router = LeastLoaded(2)
    for number in range(10_000):
        router.note(0, number)
    assert len(router._heap) < 100
    assert router.choose(ANY) == 1


def test_a_prompt_goes_where_most_of_it_was_sent_last() -> None:
    router = PrefixAware(3, max_sequences=4, most_pages=100)
    assert router.choose(with_pages(1, 2, 3)) == 0
    assert router.choose(with_pages(9)) == 1
    router.note(0, 3)
    assert router.choose(with_pages(1, 2, 4)) == 0
    assert router.choose(with_pages(2, 1)) == 2  # begins otherwise
    assert router.choose(with_pages(9, 1, 2)) == 1


def test_a_full_replica_is_spared_while_another_has_room() -> None:
    router = PrefixAware(2, max_sequences=4, most_pages=100)
    router.choose(with_pages(1, 2))
    router.note(0, 4)
    assert router.choose(with_pages(1, 2)) == 1
    router.note(1, 4)
    router.note(0, 5)
    assert router.choose(with_pages(1, 2)) == 1  # the last it was sent to; both are full


def test_the_oldest_beginnings_are_forgotten() -> None:
    router = PrefixAware(2, max_sequences=4, most_pages=2)
    for page in (1, 2, 3):
        router.choose(with_pages(page))
    router.note(0, 2)
    router.note(1, 3)
    assert router.choose(with_pages(2)) == 1
    assert router.choose(with_pages(1)) == 0  # forgotten: the least loaded


def test_a_router_that_knows_prefixes_makes_more_hits() -> None:
    trace = [
        TraceRequest(number, 40, 4, tuple(10 * (number % 20 // 10) + page for page in range(10)))
        for number in range(0, 200, 3)
    ]
    hits = [Simulation(ROOMY, ByLoad(), 7, one).run(trace).replicas.hit_share for one in ROUTERS]
    assert max(hits) == hits[-1] > 0.8
    assert hits[0] < hits[-1] - 0.1


def test_least_loaded_queues_less_than_round_robin() -> None:
    trace = [one for one in drawn_trace(8, 300, 60.0) if one.deadline is None]
    queued = {}
    for router in ("round-robin", "least-loaded"):
        found = Simulation(ROOMY, ByLoad(), 4, router).run(trace)
        assert found.finished == len(trace)
        assert found.first_token_ms is not None
        queued[router] = found.first_token_ms.p90
    assert queued["least-loaded"] < queued["round-robin"]
