"""Any load in any machine: the scheduler keeps its promises, which `Machine` checks at every step."""

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import Machine, continuation, request

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.request import Request

# The same examples on every machine; none is left over from another run.
BOUNDED = settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Arrival:
    """A request, after so many steps; after as many more one of the samples alive is aborted."""

    request: Request
    steps_before: int
    aborted_after: int | None
    which: int


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Caches from one that just holds the longest sequence on, steps from one token on."""
    block_size, max_len = draw(st.integers(1, 4)), draw(st.sampled_from([3, 16, 40]))
    least = -(-max_len // block_size)
    limits = StepLimits(
        max_len=max_len,
        max_batch_tokens=draw(st.sampled_from([1, 4, 10, 24, 24])),
        max_sequences=draw(st.sampled_from([1, 3, 8, 8])),
        most_overtaken=draw(st.integers(0, 3)),
    )
    num_blocks = draw(st.integers(least, 2 * least))
    most_drafted = draw(st.sampled_from([0, 0, 1, 3, 7]))
    return Machine(limits, num_blocks, block_size, most_drafted, draw(st.sampled_from([0.0, 0.6])))


@st.composite
def arrivals(draw: st.DrawFn, max_len: int) -> list[Arrival]:
    found = []
    for number in range(draw(st.integers(6, 12))):
        least, most = draw(st.sampled_from([(1, 3), (max_len // 4, max_len // 2), (1, max_len)]))
        prompt_len = draw(st.integers(max(least, 1), most))
        own = request(
            number,
            prompt_len,
            max_new_tokens=0
            if prompt_len == max_len
            else draw(st.sampled_from([0, 1, 4, 100, 100])),
            n=draw(st.sampled_from([1, 1, 1, 3])),
            beginning=draw(st.sampled_from([None, 0, 0, 1])),
            priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
            cache_salt=draw(st.sampled_from(["", "", "", "salt"])),
            single_steps=draw(st.sampled_from([0, 0, 0, 2])),
            prompt_logprobs=draw(st.sampled_from([None, None, None, 0])),
            ignore_eos=draw(st.sampled_from([True, True, False])),
            stop_ids=draw(st.sampled_from([(), (), (3, 4, 5)])),
        )
        aborted_after = draw(st.sampled_from([None, None, None, 0, 5]))
        found.append(
            Arrival(
                own, draw(st.sampled_from([0, 0, 1, 3])), aborted_after, draw(st.integers(0, 9))
            )
        )
    return found


@BOUNDED
@given(st.data())
def test_any_load_keeps_every_promise_and_gives_each_sample_its_own_tokens(
    data: st.DataObject,
) -> None:
    own = data.draw(machines(), label="machine")
    load = data.draw(arrivals(own.limits.max_len), label="load")
    budgets = data.draw(
        st.lists(st.sampled_from([1, 3, 8, 24]), min_size=1, max_size=4), label="prompt tokens"
    )
    num_steps, aborted = 0, set()

    def step(count: int) -> None:
        nonlocal num_steps
        for _ in range(count):
            if own.scheduler.has_work:
                own.step(budgets[num_steps % len(budgets)])
                num_steps += 1

    for arrival in load:
        step(arrival.steps_before)
        own.add(arrival.request)
        if arrival.aborted_after is not None:
            step(arrival.aborted_after)
            if own.alive:
                own.end(sample := [*own.alive][arrival.which % len(own.alive)])
                aborted.add(sample)
    while own.scheduler.has_work:
        step(1)
        assert num_steps < 10_000, "it does not end"
    samples = {
        (one.request.id, index): one.request
        for one in load
        for index in range(one.request.params.n)
    }
    assert sorted([*own.finished, *aborted]) == sorted(samples), "not one answer each"
    assert own.allocator.num_free == own.num_blocks
    for number, index in own.finished:
        repeats = own.most_drafted > 0
        expected = continuation(samples[number, index], index, own.limits.max_len, repeats)
        assert own.outputs[number, index] == expected


def test_drafts_and_preemptions_meet() -> None:
    """The loads above would prove little of drafts if there were hardly any."""
    own = Machine(StepLimits(max_len=60, max_batch_tokens=24, max_sequences=8), 22, 4, 5)
    load = [request(number, 5 + number, max_new_tokens=45, n=2) for number in range(3)]
    for one in load:
        own.add(one)
    own.finish()
    for one in load:
        for index in range(2):
            expected = continuation(one, index, own.limits.max_len, repeats=True)
            assert own.outputs[one.id, index] == expected
    stats = own.scheduler.stats()
    assert own.num_drafted == stats.num_draft_tokens > stats.num_accepted_tokens > 50
    assert own.num_preempted > 2
