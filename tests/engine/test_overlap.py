"""Overlap: launched before the last tokens are read, steps give what they give one after the other;
what is computed for nothing is as little as can be."""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import cache_of, make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of, fetch
from gyrfalcon.engine import sampler
from gyrfalcon.engine.overlap import Overlap, stepper
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.group import Vocabulary, solo
from gyrfalcon.request import Chunk, Delta, FinishReason, Request, Sequence, Token

Sample = tuple[int, int]  # request id and sample
LOADS = 20  # random loads
ENDLESS = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def token_bytes(folder: Path) -> int:
    """What one token takes in the cache."""
    with make_engine(folder, block_size=1) as engine:
        return cache_of(engine, 1)


def look_ahead(engine: Engine) -> Engine:
    """The engine with the steps it would take on an accelerator."""
    engine._take_step = Overlap(engine._core).step
    return engine


class Launches:
    """Notes what happens in which order: steps launched, with how many sequences, and tokens read."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.num_rows = 0
        run, numbers = engine._core.model_runner, itertools.count(1)

        def launched(batch: Batch, pool: KVPool) -> Tensor:
            self.number = next(numbers)
            self.events.append(f"launch {self.number}")
            self.num_rows += len(batch.rows)
            return run(batch, pool)

        def fetched(found: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
            number, result = self.number, fetch(found, check)

            def read() -> Tensor:
                self.events.append(f"read {number}")
                return result()

            return read

        engine._core.model_runner = launched
        patch.setattr("gyrfalcon.engine.overlap.fetch", fetched)


def finish(engine: Engine) -> list[Delta]:
    pieces = []
    while engine.has_work:
        pieces += engine.step()
    return pieces


def test_a_step_is_launched_before_the_tokens_of_the_last_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_engine(folder) as engine:
        launches = Launches(look_ahead(engine), monkeypatch)
        engine.add([30, 31], replace(ENDLESS, max_new_tokens=4))
        finish(engine)
    assert launches.events == [
        "launch 1",
        *("launch 2", "read 1", "launch 3", "read 2", "launch 4", "read 3"),
        "read 4",
    ]


def test_a_more_urgent_request_takes_the_place_of_one_that_is_under_way(folder: Path) -> None:
    prompts = random_prompt(5), random_prompt(7)
    with make_engine(folder, max_sequences=1) as engine:
        alone = [output.output_ids for output in engine.generate(prompts, ENDLESS)]
        unhurried = look_ahead(engine).add(prompts[0], ENDLESS, priority=1)
        deltas = [delta for _ in range(4) for delta in engine.step()]
        urgent = engine.add(prompts[1], ENDLESS)
        deltas += finish(engine)
    ended = [delta.request_id for delta in deltas if delta.finish_reason is not None]
    assert ended == [urgent, unhurried]
    for number, expected in zip((unhurried, urgent), alone, strict=True):
        tokens = [delta.token for delta in deltas if delta.request_id == number]
        assert [token.id for token in tokens if token is not None] == list(expected)


def test_what_a_token_ends_is_computed_once_more_and_what_its_length_ends_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_engine(folder) as engine:
        [output] = engine.generate([30, 31], ENDLESS)
        last = output.output_ids[5]
        assert last not in output.output_ids[:5]
        launches = Launches(look_ahead(engine), monkeypatch)
        [by_length] = engine.generate([30, 31], replace(ENDLESS, max_new_tokens=6))
        counts = [launches.num_rows]
        [by_id] = engine.generate([30, 31], replace(ENDLESS, stop_ids=[last]))
        counts.append(launches.num_rows)
        [by_max_len] = engine.generate([30] * 59, replace(ENDLESS, max_new_tokens=100))
        counts.append(launches.num_rows)
    assert by_length.output_ids == by_id.output_ids == output.output_ids[:6]
    assert by_id.finish_reason is FinishReason.STOP
    assert len(by_max_len.output_ids) == 5
    assert counts == [6, 6 + 7, 6 + 7 + 5]


@pytest.mark.parametrize(
    "needs",
    [
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(temperature=1.0, frequency_penalty=0.5),
        SamplingParams(presence_penalty=0.5),
        SamplingParams(logit_bias={40: 1.0}),
        SamplingParams(logprobs=0),
        SamplingParams(logprob_ids=[5]),
    ],
    ids="repetition frequency presence bias logprobs logprob_ids".split(),
)
def test_tokens_that_the_host_has_a_part_in_are_read_at_once(
    needs: SamplingParams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(needs, max_new_tokens=5, ignore_eos=True, seed=1)
    with make_engine(folder) as engine:
        expected = engine.generate([[30, 31], [40]], [params, ENDLESS])
        launches = Launches(look_ahead(engine), monkeypatch)
        assert engine.generate([[30, 31], [40]], [params, ENDLESS]) == expected
    # Both together, then the one that needs nothing alone.
    assert launches.events[:6] == [*(f"launch {number}" for number in range(1, 7))]
    assert launches.events[6:9] == ["launch 7", "read 6", "launch 8"]


def test_new_requests_join_a_generation_under_way(folder: Path) -> None:
    prompts = [random_prompt(length) for length in (5, 9, 30, 2)]
    with make_engine(folder, max_batch_tokens=16) as engine:
        expected = [output.output_ids for output in engine.generate(prompts, ENDLESS)]
        look_ahead(engine)
        for joined_after in range(4):
            pieces = []
            for prompt in prompts:
                engine.add(prompt, ENDLESS)
                for _ in range(joined_after):
                    pieces += engine.step()
            pieces += finish(engine)
            found: dict[int, list[int]] = {}
            for piece in pieces:
                assert piece.token is not None
                found.setdefault(piece.request_id, []).append(piece.token.id)
            assert [tuple(found[request]) for request in sorted(found)] == expected


def test_logits_that_are_not_finite_are_told_one_step_later(folder: Path) -> None:
    with make_engine(folder) as engine:
        [output] = engine.generate([30, 31], ENDLESS)
        look_ahead(engine)
        engine.add([30, 31], ENDLESS)
        engine.step()
        engine.step()
        run = engine._core.model_runner
        engine._core.model_runner = lambda batch, pool: run(batch, pool) * math.nan
        assert len(engine.step()) == 1  # launched, but this is the token before
        [failed] = engine.step()
        assert failed.finish_reason is FinishReason.ERROR
        assert "position 3 of request 1, sample 0" in str(failed.error)
        engine._core.model_runner = run
        assert engine.generate([30, 31], ENDLESS) == [output]


def test_the_logits_of_a_step_computed_for_nothing_may_be_anything(folder: Path) -> None:
    with make_engine(folder) as engine:
        [output] = engine.generate([30, 31], ENDLESS)
        look_ahead(engine)
        run, numbers = engine._core.model_runner, itertools.count(1)
        engine._core.model_runner = lambda batch, pool: (
            run(batch, pool) * (math.nan if next(numbers) == 4 else 1.0)
        )
        [ended] = engine.generate([30, 31], replace(ENDLESS, stop_ids=[output.output_ids[2]]))
        assert ended.output_ids == output.output_ids[:3]
        assert engine.generate([30, 31], ENDLESS) == [output]


def test_an_accelerator_is_looked_ahead_on_and_the_cpu_is_not(folder: Path) -> None:
    with make_engine(folder) as engine:
        core = engine._core
        assert stepper(core) == core.step
        core.device = device_of(torch.device("cuda"))
        step = stepper(core)
        assert step.__func__ is Overlap.step  # type: ignore[attr-defined]  # a bound method's


class NothingRead(TorchDispatchMode):
    """Fails where a number of a tensor is asked for, or a size that depends on numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split("::")[1] in (
            "_local_scalar_dense",
            "nonzero",
            "_unique2",
            "unique_dim",
        ):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


def test_choosing_reads_nothing_on_the_host_unless_logits_are_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unread(self: Tensor) -> None:
        raise AssertionError("tolist waits for the device")

    monkeypatch.setattr(Tensor, "tolist", unread)
    monkeypatch.setattr(Cpu, "on_host", False)
    logits = torch.randn(5, 50)

    def choose(*params: SamplingParams) -> None:
        requests = [Request(0, (1, 2), one, 0) for one in params]
        chunks = [Chunk(Sequence(one, 0, [1, 2], 64), 0, 2) for one in requests]
        with NothingRead():  # type: ignore[no-untyped-call]  # torch's has no types
            sampler.choose(logits[: len(chunks)], chunks, Vocabulary.shared(50, solo()))

    drawn = SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    choose(SamplingParams(), drawn, replace(drawn, top_k=0), SamplingParams(), drawn)
    with pytest.raises(AssertionError, match="waits for the device"):
        choose(replace(drawn, repetition_penalty=2.0))


class Load:
    """Requests of every kind, for an engine of any size: who comes when, who is given up when."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.settings = dict(
            max_batch_tokens=draw.choice([1, 13, 64, 512]),
            max_sequences=draw.choice([1, 3, 64]),
            block_size=draw.choice([1, 4, 16]),
        )
        self.cache_len = draw.choice([64, 80, 10_000])  # the longest sequence has 64
        self.prompts = [random_prompt(draw.randint(1, 40)) for _ in range(8)]
        self.params = [_random_params(draw) for _ in self.prompts]
        self.pauses = [draw.choice([0, 0, 1, 2, 5]) for _ in self.prompts]
        self.given_up_after = [draw.choice([0, 0, 1, 2, 4]) for _ in self.prompts]  # pieces; 0: not

    def engine(self, folder: Path, token_bytes: int) -> Engine:
        return make_engine(folder, cache_memory=self.cache_len * token_bytes, **self.settings)

    def pieces(self, engine: Engine) -> dict[Sample, list[Delta]]:
        """What each sample got, requests coming and being given up under way."""
        found: dict[Sample, list[Delta]] = defaultdict(list)
        first = None
        for prompt, params, pause in zip(self.prompts, self.params, self.pauses, strict=True):
            number = engine.add(prompt, params)
            first = number if first is None else first
            for _ in range(pause):
                self._take(engine, found, first)
        while engine.has_work:
            self._take(engine, found, first or 0)
        return found

    def _take(self, engine: Engine, found: dict[Sample, list[Delta]], first: int) -> None:
        for piece in engine.step():
            number = piece.request_id - first
            found[number, piece.index].append(replace(piece, request_id=number))
            if self.params[number].n == 1 and len(found[number, 0]) == self.given_up_after[number]:
                engine.abort(piece.request_id)


def _random_params(draw: random.Random) -> SamplingParams:
    plain = draw.random() < 0.6
    return SamplingParams(
        max_new_tokens=draw.choice([0, 1, 2, 9, 20, 100]),
        temperature=draw.choice([0.0, 0.0, 0.8, 1.5]),
        top_k=draw.choice([0, 3, 40]),
        top_p=draw.choice([1.0, 0.9]),
        min_p=draw.choice([0.0, 0.02]),
        seed=draw.randrange(1000),
        n=draw.choice([1, 1, 3]),
        stop_ids=draw.sample(range(509), draw.choice([0, 30, 100])),
        stop=draw.choice([(), (), ("e", "th")]),
        ignore_eos=draw.random() < 0.5,
        repetition_penalty=1.0 if plain else draw.choice([1.0, 1.2]),
        frequency_penalty=0.0 if plain else draw.choice([0.0, 0.3]),
        logit_bias={} if plain else draw.choice([{}, {7: -math.inf, 50: 2.0}]),
        logprobs=None if plain else draw.choice([None, 0, 2]),
        prompt_logprobs=None if plain else draw.choice([None, 1]),
    )


def without_logprobs(token: Token | None) -> int | None:
    return None if token is None else token.id


def told(pieces: dict[Sample, list[Delta]]) -> dict[Sample, list[object]]:
    """Tokens, texts and ends."""
    return {
        sample: [(without_logprobs(one.token), one.text, one.finish_reason) for one in own]
        for sample, own in pieces.items()
    }


def logprobs(tokens: Iterable[Token | None]) -> list[float]:
    """All that are told with the tokens."""
    numbers = []
    for token in tokens:
        if token is not None and token.logprob is not None:
            numbers += [token.logprob, *(logprob for _, logprob in (*token.top, *token.asked))]
    return numbers


@pytest.mark.parametrize("seed", range(LOADS))
def test_random_loads_give_what_they_give_step_by_step(
    seed: int, folder: Path, token_bytes: int
) -> None:
    load = Load(seed)
    with load.engine(folder, token_bytes) as plain, load.engine(folder, token_bytes) as ahead:
        expected, found = load.pieces(plain), load.pieces(look_ahead(ahead))
        assert told(found) == told(expected)
        tokens = (piece.token for sample in expected for piece in found[sample])
        those = (piece.token for sample in expected for piece in expected[sample])
        assert logprobs(tokens) == pytest.approx(logprobs(those), abs=1e-4)
        ours, theirs = (one.generate(load.prompts, load.params) for one in (ahead, plain))
        assert [one.output_ids for one in ours] == [one.output_ids for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            scores = logprobs(one.prompt_logprobs or ())
            assert scores == pytest.approx(logprobs(other.prompt_logprobs or ()), abs=1e-4)
        allocator = ahead._core.scheduler.allocator
        assert allocator.num_free == allocator.num_blocks


def test_random_loads_contain_every_kind_of_end_and_decision(
    folder: Path, token_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would prove little if hardly anything of this happened in it."""
    seen: Counter[object] = Counter()
    next_after, preempt = Scheduler.next_after, Scheduler._preempt

    def noted_next_after(
        self: Scheduler, chunks: Seq[Chunk], least_acceptance: float
    ) -> list[Chunk]:
        following = next_after(self, chunks, least_acceptance)
        seen["ahead" if following else "read first"] += 1
        seen["dropped"] += sum(chunk.sequence.finish_reason is not None for chunk in chunks)
        return following

    def noted_preempt(self: Scheduler, sequence: Sequence) -> None:
        seen["preempted"] += 1
        preempt(self, sequence)

    monkeypatch.setattr(Scheduler, "next_after", noted_next_after)
    monkeypatch.setattr(Scheduler, "_preempt", noted_preempt)
    for seed in range(LOADS):
        load = Load(seed)
        with load.engine(folder, token_bytes) as engine:
            for own in load.pieces(look_ahead(engine)).values():
                ends_by_string = own[-1].finish_reason is FinishReason.STOP and own[-1].text
                seen["stop string" if ends_by_string else own[-1].finish_reason] += 1
    ends = [FinishReason.STOP, FinishReason.LENGTH, "stop string", None]  # None: given up
    decisions = ["ahead", "read first", "dropped", "preempted"]
    assert min(seen[kind] for kind in (*ends, *decisions)) > 10, seen


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_look_ahead_together(world_size: int, folder: Path) -> None:
    load = Load(3)

    def program(engine: Engine) -> dict[Sample, list[object]]:
        return told(load.pieces(look_ahead(engine)))

    with make_engine(folder) as alone:
        expected = told(load.pieces(alone))
    assert on_engines(world_size, folder, program, max_len=64) == expected
