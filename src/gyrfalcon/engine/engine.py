"""Engine: prompts in, text out. Read this page first: it follows a request from its prompt to its
last piece of text.
"""

import itertools
import random
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Unpack

import torch
from torch import Tensor

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.load import effective_quant
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.checkpoint.tokenizer import ends_of, load_tokenizer, no_tokenizer
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.format import counted
from gyrfalcon.device.dtypes import WORD_OF_DTYPE
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.device.protocol import Device
from gyrfalcon.engine.build import build_core, longest_sequence
from gyrfalcon.engine.deadlines import Deadlines
from gyrfalcon.engine.live import Live
from gyrfalcon.engine.overlap import stepper
from gyrfalcon.engine.prompts import (
    Asked,
    Longest,
    Params,
    Prompt,
    as_prompts,
    check,
    ids_of,
    params_of,
    params_of_each,
    priority_of,
    rows,
    salt_of,
    timeout_of,
    whole_of,
)
from gyrfalcon.engine.queue_bound import refuse_if_full
from gyrfalcon.engine.rank_messages import Add, End, Step, decode_step, encode, encode_engine
from gyrfalcon.engine.step_budget import StepBudget
from gyrfalcon.engine.tensors import real_tokens
from gyrfalcon.engine.turns import Turns
from gyrfalcon.engine.worker import follow
from gyrfalcon.engine_config import EngineConfig, EngineSettings, config_of
from gyrfalcon.errors import (
    GyrfalconError,
    PromptTooLong,
    RankDied,
    RequestError,
)
from gyrfalcon.parallel import launch
from gyrfalcon.parallel.error_message import decode_error, encode_error
from gyrfalcon.parallel.interrupts import watched_interrupts
from gyrfalcon.parallel.ranks import Ranks
from gyrfalcon.parallel.shards import share_of
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.request import (
    Delta,
    EngineStats,
    Request,
    RequestOutput,
    SamplingParams,
    StepOutput,
    check_finite,
)
from gyrfalcon.structured import CompiledOutput, StructuredOutput
from gyrfalcon.text.detokenizer import StopStrings, TextStream
from gyrfalcon.text.grammar import Grammars
from gyrfalcon.text.tokenizer import Tokenizer

STOPS_KEPT = 64  # sets of stop strings whose tables are kept


class Engine:
    """A model ready to generate, on as many ranks as it was asked for. Close it, or use it in a
    `with`.

    Any thread may call it; calls take turns step by step, and what they ask for runs side by side.
    Under torchrun every rank makes the same calls in the same order, so one thread at a time. A
    forked process must make its own.

    >>> with Engine("nestling") as engine:
    ...     [output] = engine.generate("The falcon", SamplingParams(max_new_tokens=4))
    >>> len(output.output_ids), output.finish_reason.value
    (4, 'length')
    """

    def __init__(
        self,
        model: str | Path | EngineConfig,
        joined: Ranks | None = None,
        **settings: Unpack[EngineSettings],
    ) -> None:
        """Opens the model and starts the ranks, unless they have `joined` already and run this same
        program. `settings` are those of EngineConfig, which may come instead of model and settings.
        Raises GyrfalconError when something does not fit.

        >>> engine = Engine("nestling", world_size=1, max_len=64)
        >>> engine = Engine(EngineConfig(model="nestling", max_len=64))  # the same
        >>> engine.max_len
        64
        """
        config = config_of(model, settings)
        folder = resolve_model(config.model)
        checkpoint = open_checkpoint(folder, config.adapter, config.dtype)
        world_size = joined.size if joined else _world_size(config, checkpoint)
        share_of(checkpoint.config, world_size, 0)
        longest_sequence(config, checkpoint)
        config = replace(
            config,
            quant=effective_quant(checkpoint, config.quant),
            block_size=kind_for(config.device).block_size(config.block_size),
        )
        self.config = config
        self.model_config: ModelConfig = checkpoint.config
        self.adapter_name = checkpoint.adapter_name
        self._tokenizer = load_tokenizer(checkpoint)
        self._ends = ends_of(checkpoint, self._tokenizer)
        # Of long strings the tables take milliseconds, and many prompts may share them.
        self._stops = lru_cache(STOPS_KEPT)(partial(StopStrings, tokenizer=self._tokenizer))
        self._grammars = Grammars(self._tokenizer, self.model_config.vocab_size, self._ends.ids)
        self.notes = (*checkpoint.notes, *self._ends.notes)
        self._live: dict[int, Live] = {}
        self._added: deque[Delta] = deque()  # what step() has still to return
        self._given_up: deque[int] = deque()  # requests to abort in the next step
        self._ids = itertools.count()
        self._deadlines = Deadlines()
        self._ranks = joined or launch.start(
            world_size,
            kind_for(config.device),
            partial(follow, config, folder),
            encode_engine(config),
            config.rank_timeout,
        )
        self._heartbeat = self._ranks.rank_info.group.heartbeat
        self._turns = Turns(self._ranks)
        # Seconds; rank 0 alone looks at the clock.
        self._now: Callable[[], float] = monotonic if self.is_first_rank else lambda: 0.0
        weakref.finalize(self, self._turns.close_for_good)  # where nobody closes it
        with watched_interrupts(self._ranks.watch), self._turns.all_ranks():
            self._core = build_core(config, checkpoint, self._ranks.rank_info)
            self._core.check = self._ranks.check
            self._take_step = stepper(self._core)
            self._budget = StepBudget.of(config, self._core.scheduler)
            self._seeds = random.Random(self._ranks.agree(_seed_bytes(config.seed)))

    def __repr__(self) -> str:
        how = "ended" if self._turns.are_over else self.description
        return f"Engine({self.config.model_name!r}: {how})"

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._ranks.size

    @property
    def description(self) -> str:
        """Where and how the model runs, in a few words."""
        quantised = "" if self.config.quant == "none" else f", quantised to {self.config.quant}"
        ranks, dtype = counted(self.world_size, "rank"), WORD_OF_DTYPE[self.dtype] + quantised
        adapter = f", adapter {self.adapter_name}" if self.adapter_name else ""
        return f"{ranks} on {self.hardware}, {dtype}{adapter}, cache for {self.cache_len} tokens"

    @property
    def device(self) -> torch.device:
        """The device of this process's rank."""
        return self._core.device.torch_device

    @property
    def hardware(self) -> Device:
        """The same, and what it can do."""
        return self._core.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._core.pool.layers[0].k.dtype

    @property
    def is_first_rank(self) -> bool:
        """False only in the other processes that torchrun started: they compute the same and should
        not print.
        """
        return self._ranks.rank_info.group.rank == 0

    @property
    def max_len(self) -> int:
        """The longest sequence, prompt and new tokens together."""
        return self._core.scheduler.limits.max_len

    @property
    def _longest(self) -> Longest:
        return Longest(self.max_len, self.config, self.model_config)

    @property
    def cache_len(self) -> int:
        """Tokens that the KV cache holds, of all running sequences together."""
        pool = self._core.pool
        return pool.num_blocks * pool.block_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; CheckpointError when its folder has none."""
        if self._tokenizer is None:
            raise no_tokenizer()
        return self._tokenizer

    @property
    def has_work(self) -> bool:
        """Whether a request is still running or waiting, or step() has something to return."""
        return bool(self._live or self._added)

    @property
    def stalled_seconds(self) -> float:
        """For how long no rank has moved though there is work; 0 while all goes well or nothing is to be
        done. With several ranks, `rank_timeout` of it ends them. Any thread may ask.
        """
        return self._ranks.stalled_seconds

    def check_ranks(self) -> None:
        """Raises RankDied when a rank has ended or stood still, as a step would.

        >>> Engine("nestling").check_ranks()
        """
        self._ranks.check()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a prompt. One that is far too long is PromptTooLong by the number of its
        bytes, before it takes time and memory.

        >>> engine = Engine("nestling")
        >>> engine.tokenizer.decode(engine.encode("The falcon"))
        'The falcon'
        """
        return self._longest.encode(text, self.tokenizer, add_special_tokens)

    def length_advice(self, first: str) -> str:
        """What to do about a sequence that is longer than max_len: `first`, or what makes that longer.

        >>> Engine("nestling", max_len=64).length_advice("shorten it")
        'shorten it or raise `max_len`'
        """
        return self._longest.advice(first)

    def add(
        self,
        prompt: Prompt,
        params: Params = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> int:
        """Queues a prompt, text or token ids, for step(); returns the request's number. Raises
        RequestError or PromptTooLong, and QueueFull when as much waits as the config allows. Structured
        output is compiled first, unless prepare() or check() did that: it may take half a second.

        Requests of a lower `priority` begin before those of a higher one, and preempt them where there is
        no room: these start over later, with their text kept. Of equals the shortest prompt is prefilled
        first, but at most 16 overtake an older one, and what runs goes on. A request that has not ended
        `timeout` seconds from now ends in the next step with FinishReason.ABORTED, what text it has, and
        an `error`. It shares cached prefixes only with requests of the same `cache_salt`.

        >>> engine = Engine("nestling")
        >>> number = engine.add("The falcon", SamplingParams(max_new_tokens=3))
        >>> sum(len(engine.step()) for _ in range(3))
        3
        """
        asked = self._asked(prompt, params, priority, timeout, cache_salt, bounded=True)
        return self._queue(asked, self._added).request.id

    def prepare(self, params: SamplingParams) -> SamplingParams:
        """The same parameters, with structured output compiled for this engine and its first mask
        computed, so that add(), stream() and generate() take them without delay; any others as they are.
        Any thread may call it, a server's worker before it adds the request: it waits for no step.

        Raises, in the words of llguidance, RequestError for what that refuses and for what takes more
        than half a second or 1 GiB; QueueFull when ten seconds pass before other threads' are compiled;
        UsageError where llguidance is not installed. Requests that share what was prepared once share
        its limits, too: prepare each anew unless compiling takes long and they are one user's.

        >>> params = SamplingParams(structured=StructuredOutput(choice=["yes", "no"]))
        >>> engine = Engine("nestling")
        >>> number = engine.add("Is it a bird?", engine.prepare(params))
        """
        own = params_of(params)
        if own.structured is None:
            return own
        return replace(own, structured=self._compiled(self._ends.added_to(own), own.structured))

    def check(self, prompt: Prompt, params: Params = None) -> SamplingParams:
        """Raises what add() would for this prompt, RequestError or PromptTooLong, and queues nothing;
        returns what prepare() would, for add().

        >>> engine = Engine("nestling")
        >>> engine.check([30, 31, 32], SamplingParams(max_new_tokens=3)).max_new_tokens
        3
        """
        own, compiled = params_of(params), self._asked(prompt, params).compiled
        return own if compiled is None else replace(own, structured=compiled)

    def step(self) -> list[Delta]:
        """Computes one batch on all ranks; returns the new text of every sequence of an add() that
        got a token or ended. On an accelerator that is what the batch before gave.

        What steps for stream() and generate() gave to them comes first, without another batch; what
        a batch gives to requests of those goes to their own callers. A sample whose logits are NaN or
        infinite ends with FinishReason.ERROR and its `error`; all others go on.

        >>> engine = Engine("nestling")
        >>> number, text = engine.add("The falcon", SamplingParams(max_new_tokens=3)), ""
        >>> while engine.has_work:
        ...     for delta in engine.step():
        ...         text += delta.text
        """
        deltas: list[Delta] = []
        try:
            with self._turns.taken():
                if self._live and not self._added:
                    self._step()
                deltas += self._added
                self._added.clear()
        except KeyboardInterrupt:  # held until now; whoever goes on gets them
            self._added.extendleft(reversed(deltas))
            raise
        return deltas

    def abort(self, request_id: int) -> None:
        """Cancels a request; nothing happens when it has ended.

        >>> engine = Engine("nestling")
        >>> engine.abort(engine.add("The falcon"))
        >>> engine.has_work
        False
        """
        with self._turns.taken():
            self._abort(request_id)

    def stream(
        self,
        prompt: Prompt,
        params: Params = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> Generator[Delta, None, None]:
        """The deltas of one prompt's text as they come; leaving the loop cancels the request.

        Streams can be read side by side: steps for one go on with the others. Raises RequestError,
        PromptTooLong or QueueFull at once, and in the loop what a step does. The last delta of a sample
        that failed has FinishReason.ERROR and its `error`. The other arguments are those of add(), the
        `timeout` from when the loop begins.

        >>> engine = Engine("nestling")
        >>> for delta in engine.stream("The falcon", SamplingParams(max_new_tokens=3)):
        ...     print(delta.text, end="", flush=True)  # doctest: +SKIP
        """
        return self._streamed(
            self._asked(prompt, params, priority, timeout, cache_salt, bounded=True)
        )

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: Params | Iterable[Params] = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Runs one prompt or many, with one set of parameters or one for each, greedy without;
        returns outputs in their order. Raises RequestError or PromptTooLong before any step.
        The other arguments are those of add(), for every prompt.

        A sample whose logits are NaN or infinite ends alone, with FinishReason.ERROR, its tokens up to
        there, and an `error`: one prompt that fails takes no other's output with it.

        >>> engine = Engine("nestling")
        >>> one, other = engine.generate(["a", "b"], SamplingParams(temperature=0.7, seed=1, n=2))
        >>> [len(output.completions) for output in (one, other)]
        [2, 2]
        """
        many = as_prompts(prompts)
        each = params_of_each(params, many)
        asked = [
            self._asked(prompt, one, priority, timeout, cache_salt)
            for prompt, one in zip(many, each, strict=True)
        ]
        return [live.output() for live in self._run(asked)]

    def generate_ids(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, max_new_tokens: int = 16
    ) -> Tensor:
        """The guide's tensors: greedy continuation, prompt included; rows that end early are filled
        with generation_config.json's pad_token_id, else with what ends a text.

        input_ids int64 [batch, seq]; attention_mask [batch, seq] of 0 and 1, or additive float
        [batch, 1, seq, seq], causal plus whole padding columns. Returns int64 [batch, seq +
        max_new_tokens]. Raises NotFinite when a row failed, since a tensor has no place for its error.

        >>> engine = Engine("nestling")
        >>> engine.generate_ids(torch.tensor([[30, 31, 32]]), max_new_tokens=4).shape
        torch.Size([1, 7])
        """
        params = SamplingParams(max_new_tokens=max_new_tokens)
        prompts = rows(input_ids, real_tokens(input_ids, attention_mask))
        longest = max(map(len, prompts)) + max_new_tokens
        if longest > self.max_len:
            wanted = f"at most {self.max_len} tokens, new ones included"
            raise PromptTooLong(wanted, str(longest), self.length_advice("ask for fewer"))
        asked = [self._asked(prompt, params) for prompt in prompts]
        new = torch.full((len(prompts), max_new_tokens), self._ends.fill)
        for row, live in zip(new, self._run(asked), strict=True):
            check_finite(*live.output().completions)
            tokens = live.output().output_ids
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return torch.cat([input_ids.cpu().long(), new], dim=1)

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, single_steps: int = 0
    ) -> Tensor:
        """The logits after every token, float32 [batch, seq, vocab], on the CPU; 0 at padding. NaN and
        infinity come back as they are.

        Masks as in generate_ids(). The last `single_steps` tokens are computed one at a time, as in
        decoding.

        >>> engine = Engine("nestling")
        >>> list(engine.logits(torch.tensor([[30, 31, 32]])).shape)[:2]
        [1, 3]
        """
        steps = whole_of("single_steps", single_steps)
        real = real_tokens(input_ids, attention_mask)
        params = SamplingParams(max_new_tokens=0)
        asked = [self._asked(prompt, params) for prompt in rows(input_ids, real)]
        out = torch.zeros(*real.shape, self.model_config.vocab_size)
        lives = self._run(asked, keep_logits=True, single_steps=steps)
        for row, mask, live in zip(out, real, lives, strict=True):
            row[mask] = torch.cat(live.prompt_logits).cpu()
        return out

    def stats(self) -> EngineStats:
        """How many sequences wait and run, how full the KV cache is, and how many prompt tokens it has
        saved. Waits for no step of another thread.

        >>> engine = Engine("nestling")
        >>> [output] = engine.generate("The falcon", SamplingParams(max_new_tokens=4))
        >>> engine.stats().num_running, engine.stats().num_used_blocks
        (0, 0)
        """
        return self._core.scheduler.stats()

    def prompt_progress(self) -> list[tuple[int, int, int]]:
        """How far each prompt is that is being prefilled: its request, the tokens whose keys and values are
        in the cache, and all of its tokens. Waits for no step of another thread.

        >>> engine = Engine("nestling", max_batch_tokens=4)
        >>> number = engine.add([5] * 9)
        >>> _ = engine.step()
        >>> engine.prompt_progress() == [(number, 4, 9)]
        True
        """
        return self._core.scheduler.prompt_progress()

    def close(self) -> None:
        """Ends the ranks this engine started, and with EngineClosed what other threads have it do.
        Nothing happens when it is closed, or in a forked process.

        >>> engine = Engine("nestling")
        >>> engine.close()
        >>> engine.generate("The falcon")
        Traceback (most recent call last):
        gyrfalcon.errors.EngineClosed: wanted a working engine, got one that was closed; make a new one
        """
        self._turns.close()
        self._grammars.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _streamed(self, asked: Asked) -> Generator[Delta, None, None]:
        live = self._queue(asked, deque())
        try:
            waiting = deque([live])
            while waiting:
                self._advance(waiting)
                while live.unread:
                    yield live.unread.popleft()
        finally:
            self._cancel([live])

    def _run(
        self, asked: Seq[Asked], keep_logits: bool = False, single_steps: int = 0
    ) -> list[Live]:
        """Queues prompts and steps until all have ended; an error or interruption cancels
        them all.
        """
        lives: list[Live] = []
        try:
            for one in asked:
                lives.append(self._queue(one, deque(maxlen=0), keep_logits, single_steps))
            waiting = deque(lives)
            while self._advance(waiting):
                pass
        finally:
            self._cancel(lives)
        return lives

    def _advance(self, waiting: deque[Live]) -> bool:
        """A step, unless one for another thread has brought something; False when all have ended. Looks
        at the first alone, so that a step's cost does not grow with their number.
        """
        with self._turns.taken():
            if waiting and waiting[0].num_unfinished and not waiting[0].unread:
                self._step()
            while waiting and not waiting[0].num_unfinished:
                waiting.popleft()
            return bool(waiting)

    def _cancel(self, lives: Seq[Live]) -> None:
        """Aborts what has not ended, in a finalizer, too. Where every rank runs the same program, each may
        come here at another time: rank 0 tells all with the next step.
        """
        for live in lives:
            if live.num_unfinished and not self._ranks.run_one_program:
                self._turns.later(partial(self._abort, live.request.id))
            elif live.num_unfinished and self.is_first_rank:
                self._given_up.append(live.request.id)

    def _asked(
        self,
        prompt: Prompt,
        params: Params,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
        bounded: bool = False,
    ) -> Asked:
        """What can be run; raises RequestError or PromptTooLong for what cannot, and if `bounded`
        QueueFull, of a long text before it takes time to tokenise.
        """
        own, when = (
            self._ends.added_to(params_of(params)),
            (priority_of(priority), timeout_of(timeout), salt_of(cache_salt)),
        )
        if isinstance(prompt, str):
            if bounded and self._tokenizer is not None:
                self._refuse_if_full(self._tokenizer.least_tokens(prompt))
            asked = Asked(prompt, tuple(self.encode(prompt)), own, *when, bounded)
        else:
            asked = Asked(None, ids_of(prompt), own, *when, bounded)
        if bounded:
            self._refuse_if_full(asked.num_tokens)
        self._longest.check(asked)
        check(asked, self.model_config.vocab_size, self._tokenizer)
        asked = replace(asked, stops=self._stops(own.stop_strings))
        if own.structured is None:
            return asked
        compiled = self._compiled(own, own.structured)
        plain = replace(own, structured=compiled.structured)
        return replace(asked, params=plain, compiled=compiled)

    def _compiled(
        self, params: SamplingParams, structured: StructuredOutput | CompiledOutput
    ) -> CompiledOutput:
        """Structured output compiled on rank 0; every rank raises what that raises."""
        if not self._end_ids(params):
            wanted = "a token that ends the text of structured output"
            raise RequestError(wanted, "none", "leave `ignore_eos` out or pass `stop_ids`")
        if not self.is_first_rank:
            if refused := self._ranks.agree(b""):
                raise decode_error(refused)
            return self._grammars.elsewhere(structured)
        refused = encode_error(
            RankDied("rank 0 to compile a grammar", "one that failed", "try again")
        )
        try:
            compiled, refused = self._grammars.compiled(structured), b""
        except GyrfalconError as error:
            refused = encode_error(error)
            raise
        finally:
            self._ranks.agree(refused)
        return compiled

    def _refuse_if_full(self, num_tokens: int) -> None:
        refuse_if_full(self.config, self.stats(), num_tokens)

    def _queue(
        self,
        asked: Asked,
        unread: deque[Delta],
        keep_logits: bool = False,
        single_steps: int = 0,
    ) -> Live:
        params, lives, now = asked.params, list[Live](), self._now()
        try:
            with self._turns.taken():
                if asked.bounded:
                    self._refuse_if_full(asked.num_tokens)
                request = Request(
                    id=next(self._ids),
                    prompt_ids=asked.ids,
                    params=params,
                    seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
                    end_ids=self._end_ids(params),
                    keep_logits=keep_logits,
                    single_steps=single_steps,
                    priority=asked.priority,
                    cache_salt=asked.cache_salt,
                )
                own = (self._tokenizer, asked.stops)
                streams = [TextStream(request, index, *own) for index in range(params.n)]
                lives.append(Live(request, asked.text, streams, unread, asked.timeout, now))
                self._live[request.id] = lives[0]
                if asked.timeout is not None and self.is_first_rank:
                    self._deadlines.set(request.id, now + asked.timeout)
                if asked.compiled is not None and self.is_first_rank:
                    self._core.token_masks.add(request.id, self._grammars.of(asked.compiled))
                self._handle(Add(request))
        except BaseException:  # a Ctrl-C that was held, too: nobody knows the request
            self._cancel(lives)
            raise
        return lives[0]

    def _end_ids(self, params: SamplingParams) -> frozenset[int]:
        """What ends a text by its id. Special tokens are not in the text: a stop string that is one
        is found by its id.
        """
        ends = () if params.ignore_eos else self._ends.ids
        special = [self.tokenizer.special_id(stop) for stop in params.stop_strings]
        return frozenset((*ends, *params.stop_ids, *(i for i in special if i is not None)))

    # What follows is done in a turn.

    def _step(self) -> None:
        """Computes one batch on all ranks and hands each caller the outputs of its requests."""
        with self._turns.all_ranks():
            now = self._now()
            self._heartbeat.step += 1
            self._heartbeat.before_step = self._heartbeat.counter.value
            step = self._decided(now)
            for end in step.ends:
                self._expire(end, now)
            for request_id in step.aborts:
                self._abort(request_id)
            outputs = self._take_step(step.prompt_tokens, step.least_acceptance)
            if self._budget is not None:
                self._budget.record(self._now() - now)
            for sequence in self._core.scheduler.admitted:
                self._live[sequence.request.id].admitted_at[sequence.index] = now
            for output in outputs:
                if self._budget is None or not self._has_ended(output):
                    self._deliver(output, now)

    def _decided(self, now: float) -> Step:
        """What rank 0 decides of the next step: it tells the other ranks."""
        group = self._ranks.rank_info.group
        if group.rank > 0:
            return decode_step(group.broadcast())
        passed = self._deadlines.pop_passed(now) if self._deadlines.next_at <= now else ()
        aborts = self._take_given_up() if self._given_up else ()
        ends = tuple(map(End, passed))
        step = Step(self._core.scheduler.limits.max_batch_tokens, ends, aborts)
        if self._budget is not None:
            most, least = self._budget.prompt_tokens(), self._budget.least_acceptance()
            step = replace(step, prompt_tokens=most, least_acceptance=least)
        if group.size > 1:
            group.broadcast(encode(step))
        return step

    def _take_given_up(self) -> tuple[int, ...]:
        """The requests that have lost their caller since the last step."""
        return tuple(self._given_up.popleft() for _ in range(len(self._given_up)))

    def _expire(self, end: End, now: float) -> None:
        """Ends a request whose deadline has passed, as every rank does in this step."""
        error = f"deadline of {self._live[end.request_id].timeout:g} s passed"
        for output in self._core.handle(end):
            self._deliver(replace(output, why=error), now)

    def _has_ended(self, output: StepOutput) -> bool:
        """Whether a stop string ended the sample with another token of the same step."""
        live = self._live.get(output.request_id)
        return live is None or live.streams[output.index].finish_reason is not None

    def _deliver(self, output: StepOutput, now: float) -> None:
        """A sample's new text; retires the request when this ends its last sample."""
        live = self._live[output.request_id]
        delta = live.streams[output.index].push(output.token, output.finish_reason, output.why)
        if delta.finish_reason is not None:
            delta = live.ended(delta, output, now)
        if live.owes_scores and output.index == 0:
            delta = live.scored(delta, self._core.prompt_scores(output.request_id))
        live.unread.append(delta)
        if delta.finish_reason is not None and output.finish_reason is None:
            # A stop string ended it, and the ranks do not know text.
            self._handle(End(output.request_id, output.index))
        if not live.num_unfinished:
            live.prompt_logits = self._core.pop_prompt_logits(output.request_id)
            self._core.token_masks.forget(output.request_id)
            del self._live[output.request_id]
            self._deadlines.drop(output.request_id)

    def _abort(self, request_id: int) -> None:
        live = self._live.pop(request_id, None)
        if live is None:
            return
        self._deadlines.drop(request_id)
        for output in self._handle(End(request_id)):
            delta = live.streams[output.index].push(None, output.finish_reason)
            live.unread.append(live.ended(delta, output, self._now()))
        if live.unread is self._added:
            others = [delta for delta in self._added if delta.request_id != request_id]
            self._added.clear()
            self._added.extend(others)
        self._core.pop_prompt_logits(request_id)
        self._core.token_masks.forget(request_id)

    def _handle(self, message: Add | End) -> list[StepOutput]:
        with self._turns.all_ranks():
            if self._ranks.led:
                self._ranks.tell(encode(message))
            return self._core.handle(message)


def _world_size(config: EngineConfig, checkpoint: Checkpoint) -> int:
    torchrun = Torchrun.found()
    own = checkpoint.world_size or 1 if torchrun is None else torchrun.world_size
    return config.world_size or own


def _seed_bytes(seed: int | None) -> bytes:
    return random.SystemRandom().randbytes(8) if seed is None else str(seed).encode()
