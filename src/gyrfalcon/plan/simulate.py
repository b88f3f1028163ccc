"""A simulated engine: the real scheduler, cache bookkeeping and step target, on a clock that predicted step
times move. As in the engine's own loop, what arrives or is given up during a step is heard after it.
"""

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

from gyrfalcon.engine.deadlines import Deadlines
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.engine.step_budget import StepBudget
from gyrfalcon.errors import CacheTooSmall
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.plan.simulate_steps import Call, Steps
from gyrfalcon.plan.step_load import StepTimes
from gyrfalcon.plan.trace import PAGE_TOKENS, TraceRequest
from gyrfalcon.request import Chunk, EngineStats, Request, SamplingParams, Sequence

NEVER = float("inf")
KEPT_TIMES = 4096  # of commits, before those that nobody needs are dropped


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """What an engine is given; as EngineConfig has it, but for the number of cache blocks.

    overlap: steps are launched before the tokens of the last ones are read, as on an accelerator.
    page_tokens: tokens of a prompt that one of a trace's `prefix_ids` stands for.
    arrival_seconds: of the host for a request that arrives, by which a step under way takes longer, and one
        after nothing was to be done begins later; on an accelerator the device computes meanwhile.
    """

    limits: StepLimits
    num_blocks: int
    block_size: int = 16
    reuse_prefixes: bool = True
    step_target: float | None = None
    overlap: bool = False
    page_tokens: int = PAGE_TOKENS
    arrival_seconds: float = 0.0

    def check(self) -> None:
        """CacheTooSmall where the cache cannot hold the longest sequence."""
        held = self.num_blocks * self.block_size
        if held < self.limits.max_len:
            wanted = f"a KV cache for {self.limits.max_len} tokens, the longest sequence"
            raise CacheTooSmall(wanted, f"one for {held}", "use more ranks or lower `context`")


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended; times in seconds after the start."""

    number: int
    request: TraceRequest
    admitted: float | None  # when the first step began that computed it; None: none did
    token_times: Seq[float]
    end: float
    num_cached_tokens: int  # of its prompt
    num_preemptions: int
    expired: bool  # its deadline passed


@dataclass(slots=True)
class Use:
    """What an engine has used since it began to count."""

    num_steps: int = 0
    busy_seconds: float = 0.0
    # The sum over all steps of their seconds × the blocks that sequences held.
    block_seconds: float = 0.0
    most_blocks: int = 0


@dataclass(slots=True)
class _Live:
    """A request that has not ended. Its tokens came with consecutive commits, unless it was preempted."""

    request: TraceRequest
    admitted: float | None = None
    num_preemptions: int = 0
    resumed: list[tuple[int, int]] = field(default_factory=list)  # (commit, tokens before it)

    def decodes(self, sequence: Sequence) -> bool:
        """Whether it has a token of its last admission."""
        return bool(self.resumed) and self.num_preemptions == sequence.num_preemptions


class SimulatedEngine:
    """One replica. `ended` is called with every request that ends, in the order of its own clock."""

    def __init__(
        self,
        settings: SimulatedSettings,
        times: StepTimes,
        ended: Callable[[Ended], object],
        one_by_one: bool = False,
    ) -> None:
        """one_by_one: never take several steps at once; all times are the same, it only takes longer."""
        settings.check()
        self.now = 0.0  # when the last call returned, or the next one begins
        self.use = Use()
        self._settings = settings
        self._ended = ended
        self._one_by_one = one_by_one
        allocator = BlockAllocator(
            settings.num_blocks, settings.block_size, settings.reuse_prefixes
        )
        self._scheduler = Scheduler(allocator, settings.limits)
        self._steps = Steps(self._scheduler, times, settings.overlap)
        self._budget = StepBudget(self._scheduler, settings.step_target, drafts=False)
        self._deadlines = Deadlines()
        self._call: Call | None = None  # the one under way
        self._inbox: list[Request] = []  # arrived during that
        self._lives: dict[int, _Live] = {}
        self._times: list[float] = []  # of the last commits
        self._num_dropped = 0  # of those before
        self._before = self._scheduler.stats()  # when it began to count
        self._most_times = KEPT_TIMES

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._lives)

    @property
    def next_change(self) -> float:
        """Before when nothing ends and nothing is decided, unless something arrives."""
        if self._call is not None:
            return self._call.ends[-1]
        return self.now if self._scheduler.has_work else NEVER

    def stats(self) -> EngineStats:
        """What it holds now, and has reused since it began to count."""
        found, before = self._scheduler.stats(), self._before
        return replace(
            found,
            num_prompt_tokens=found.num_prompt_tokens - before.num_prompt_tokens,
            num_cached_tokens=found.num_cached_tokens - before.num_cached_tokens,
        )

    def count_from(self, now: float) -> None:
        """Counts what is used from now on, after advance(now): of the step under way only the rest."""
        passed, held = 0.0 if self._call is None else now - self.now, self._used_blocks()
        self.use = Use(busy_seconds=-passed, block_seconds=-passed * held, most_blocks=held)
        self._before = self._scheduler.stats()

    def add(self, number: int, request: TraceRequest, now: float) -> None:
        """A request arrives, after advance(now)."""
        params = _params(request.output_tokens)
        ids = request.prompt_ids(number, self._settings.page_tokens)
        arrived = Request(number, ids, params, seed=0, priority=request.priority)
        self._lives[number] = _Live(request)
        if request.deadline is not None:
            self._deadlines.set(number, now + request.deadline)
        delay = 0.0 if self._settings.overlap else self._settings.arrival_seconds
        if self._call is None:
            self.now = max(self.now, now) + delay
            self._scheduler.add(arrived)
        else:
            self._inbox.append(arrived)
            del self._call.ends[1:], self._call.launched[1:]
            self._call.ends[0] += delay

    def advance(self, until: float) -> None:
        """Takes all steps that begin before `until`; that of one that ends later is under way then."""
        while True:
            if self._call is None:
                if not (self.now < until and self._scheduler.has_work):
                    return
                self._begin()
                continue
            num_passed = min(bisect_left(self._call.ends, until), len(self._call.ends) - 1)
            if num_passed:
                self._skip(self._call, num_passed)
            if self._call.ends[0] > until:
                return
            self._finish(self._call)

    def _begin(self) -> None:
        """What a call of the engine's step does first: it ends what is too late, then launches a batch."""
        now = self.now
        prompt_tokens = self._budget.prompt_tokens()
        if self._deadlines.next_at <= now:
            for number in self._deadlines.pop_passed(now):
                self._expire(number)
        call = self._steps.begin(prompt_tokens, now)
        assert call is not None or not self._scheduler.has_work, "it does not go on"
        for sequence in self._scheduler.admitted:
            self._lives[sequence.request.id].admitted = now
        if call is not None and not self._one_by_one and self._decode_alone(call.chunks):
            self._steps.repeat(call, self._deadlines.next_at)
        self._call = call

    def _decode_alone(self, chunks: Seq[Chunk]) -> bool:
        """Whether every running sequence decodes, and has done so before."""
        if not len(chunks) == self._scheduler.num_decoding == len(self._scheduler.running):
            return False
        lives = self._lives
        return all(lives[one.request.id].decodes(one.sequence) for one in chunks)

    def _skip(self, call: Call, num_calls: int) -> None:
        """Lets so many calls pass that are alike."""
        ends = call.ends[: num_calls + 1]
        used = self._used_blocks()
        taken = self._steps.skip(call, num_calls)
        for (start, end), number in zip(pairwise([self.now, *ends[:-1]]), taken, strict=True):
            self._note(end - start, used)
            used += number
            self._budget.record_step(0, len(call.chunks), end - start)
            self._budget.prompt_tokens()  # which looks at the times, as the engine does before a step
        self._times += ends[:-1]
        self.now = ends[-2]

    def _finish(self, call: Call) -> None:
        """What a call does last: it commits a batch; then what has arrived meanwhile is queued."""
        end, seconds = call.ends[0], call.ends[0] - self.now
        self._note(seconds, self._used_blocks())
        self.now, self._call = end, None
        chunks = self._steps.commit(call)
        self._budget.record(seconds)
        if chunks:
            self._take(chunks, end)
        for request in self._inbox:
            self._scheduler.add(request)
        self._inbox.clear()

    def _take(self, chunks: Seq[Chunk], now: float) -> None:
        """Notes who got a token, and who ended."""
        commit = self._num_dropped + len(self._times)
        self._times.append(now)
        for chunk in chunks:
            if not chunk.samples:
                continue
            sequence, live = chunk.sequence, self._lives[chunk.request.id]
            if not live.decodes(sequence):
                num_before = len(sequence.tokens) - sequence.prompt_len - 1
                live.resumed.append((commit, num_before))
                live.num_preemptions = sequence.num_preemptions
            if sequence.finish_reason is not None:
                self._end(sequence, now)
        if len(self._times) > self._most_times:
            self._drop_times()

    def _end(self, sequence: Sequence, now: float) -> None:
        number = sequence.request.id
        live = self._lives.pop(number)
        self._deadlines.drop(number)
        times = self._token_times(live, len(sequence.tokens) - sequence.prompt_len)
        figures = (sequence.num_cached, sequence.num_preemptions)
        self._ended(Ended(number, live.request, live.admitted, times, now, *figures, expired=False))

    def _expire(self, number: int) -> None:
        """Ends a request whose deadline has passed; what tokens it had does not matter any more."""
        live = self._lives.pop(number)
        for output in self._scheduler.end(number):
            figures = (output.num_cached_tokens, output.num_preemptions)
            gone = (live.request, live.admitted, (), self.now)
            self._ended(Ended(number, *gone, *figures, expired=True))

    def _token_times(self, live: _Live, num_tokens: int) -> list[float]:
        """When each of its tokens came."""
        found: list[float] = []
        for (commit, before), (_, after) in pairwise([*live.resumed, (0, num_tokens)]):
            start = commit - self._num_dropped
            found += self._times[start : start + after - before]
        return found

    def _drop_times(self) -> None:
        """Forgets the times of commits that gave nothing to a request that has not ended."""
        begun = [live.resumed[0][0] for live in self._lives.values() if live.resumed]
        oldest = min(begun, default=self._num_dropped + len(self._times))
        del self._times[: oldest - self._num_dropped]
        self._num_dropped = oldest
        self._most_times = KEPT_TIMES + 2 * len(self._times)

    def _used_blocks(self) -> int:
        return self._settings.num_blocks - self._scheduler.allocator.num_free

    def _note(self, seconds: float, num_blocks: int) -> None:
        use = self.use
        use.num_steps += seconds > 0
        use.busy_seconds += seconds
        use.block_seconds += seconds * num_blocks
        use.most_blocks = max(use.most_blocks, num_blocks)


@lru_cache(4096)
def _params(output_tokens: int) -> SamplingParams:
    """Greedy, up to a length: checked once for all requests that are alike."""
    return SamplingParams(max_new_tokens=output_tokens, ignore_eos=True)
