"""What goes into the engine and what comes out: sampling parameters, requests, sequences, outputs.
No tensors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from hashlib import blake2b
from numbers import Integral, Real
from types import NoneType
from typing import NamedTuple

from gyrfalcon.bounds import SAMPLING, shown
from gyrfalcon.console.suggestion import known_names
from gyrfalcon.errors import GyrfalconError, NotFinite, NoTokenAllowed, RequestError
from gyrfalcon.structured import CompiledOutput, StructuredOutput

MOST_CANDIDATES = 256  # with a larger top_k the ranks exchange all logits
SHARED_TOP = 5  # most likely tokens that the KV cache remembers for each token of a scored prompt
NO_BIAS: Mapping[int, float] = {}
CORRECT = "correct the sampling parameters"


class FinishReason(Enum):
    """Why a sequence ended: end-of-text, a stop id or a stop string; its length limit; its caller
    aborted it or its deadline passed; or its own logits were NaN or infinite, or no token may follow.

    >>> FinishReason("length") is FinishReason.LENGTH
    True
    """

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"
    ERROR = "error"


@known_names(RequestError, "sampling parameters")
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How new tokens are chosen; the defaults are greedy.

    max_new_tokens: the most tokens to generate; 0 only scores the prompt.
    temperature: logits are divided by it; 0 is greedy.
    top_k: keep the k most likely tokens; 0 keeps all. Applied after the temperature.
    top_p: of these, keep the fewest whose probabilities sum to p.
    min_p: of these, keep those at least min_p times as likely as the most likely.
    repetition_penalty: above 1 discourages tokens that already occurred in prompt or output: divides
        their positive logits and multiplies their negative ones (Keskar et al. 2019).
    presence_penalty: subtracted once from the logit of each token that is in the output.
    frequency_penalty: subtracted from the logit of each generated token once per occurrence.
    logit_bias: token id → number added to its logit; -inf forbids the token.
    seed: makes sampling reproducible, whatever else is in the batch, on any number of ranks.
    n: number of independent samples of the prompt.
    logprobs: return the log-probability of every output token and those of this many most likely
        tokens; 0: only its own; None: none.
    prompt_logprobs: the same for every token of the prompt. Up to 5, they are remembered with the KV
        cache, and a prompt that begins like an earlier one that asked for them takes them over; with
        more, every token is computed.
    logprob_ids: return the log-probabilities of these token ids at every output position.
    stop: strings that end the text, which stops before them. They may contain special tokens, such
        as <|im_end|>, although the text shows none.
    stop_ids: token ids that end the text.
    ignore_eos: keep generating past the end of text that the model's files define.
    structured: what the text has to match, as long as no stop string, stop id or length ends it
        earlier; as it is, or as Engine.prepare() compiled it. Log-probabilities stay those of the model,
        among all tokens.
    min_tokens: before this many tokens nothing ends the text: what does by its id is not sampled, and stop
        strings in the text of these tokens do not count.

    >>> SamplingParams(max_new_tokens=64, temperature=0.7, top_p=0.9, seed=1).n
    1
    >>> SamplingParams(top_p=2)
    Traceback (most recent call last):
    gyrfalcon.errors.RequestError: wanted ...top_p...
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: NO_BIAS)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_ids: Iterable[int] = ()
    stop: str | Iterable[str] = ()
    stop_ids: Iterable[int] = ()
    ignore_eos: bool = False
    structured: StructuredOutput | CompiledOutput | None = None
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Reads iterables once, so that they may be iterators, and checks every value: a wrong one
        would fail in the middle of a step, which ends the engine.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _listed("stop", stop, str))
        object.__setattr__(self, "stop_ids", _listed("stop_ids", self.stop_ids, Integral))
        object.__setattr__(self, "logprob_ids", _listed("logprob_ids", self.logprob_ids, Integral))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        self._check_numbers()
        self._check_items()
        biases = {int(token): float(bias) for token, bias in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", biases)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError("True or False for `ignore_eos`", shown(self.ignore_eos), CORRECT)
        if not isinstance(self.structured, StructuredOutput | CompiledOutput | None):
            wanted = "StructuredOutput or None for `structured`"
            raise RequestError(wanted, shown(self.structured), CORRECT)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(self.stop)

    def _check_numbers(self) -> None:
        whole = {
            "max_new_tokens": self.max_new_tokens,
            "min_tokens": self.min_tokens,
            "top_k": self.top_k,
            "n": self.n,
        }
        whole_or_none = {
            "seed": self.seed,
            "logprobs": self.logprobs,
            "prompt_logprobs": self.prompt_logprobs,
        }
        numbers = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        for values, kinds, words, plain in (
            (whole, Integral, "a whole number", int),
            (whole_or_none, (Integral, NoneType), "a whole number or None", int),
            (numbers, Real, "a number", float),
        ):
            for name, value in values.items():
                if not is_number(value, kinds):
                    raise RequestError(f"{words} for `{name}`", shown(value), CORRECT)
                if value is not None and value not in SAMPLING[name]:
                    raise RequestError(f"`{name}` {SAMPLING[name].words}", shown(value), CORRECT)
                if value is not None:  # a Fraction or a number of numpy's is none to torch or JSON
                    object.__setattr__(self, name, plain(value))
        if self.min_tokens > self.max_new_tokens:
            wanted = f"`min_tokens` of at most {self.max_new_tokens}, which is `max_new_tokens`"
            raise RequestError(wanted, str(self.min_tokens), "lower it or raise `max_new_tokens`")

    def _check_items(self) -> None:
        checks = (
            ("`stop` strings that are not empty", self.stop, all(self.stop_strings)),
            ("valid Unicode in `stop`", self.stop, all(map(is_text, self.stop_strings))),
            (
                "`logit_bias` from -1e6 to 1e6, or -inf",
                self.logit_bias,
                all(-1e6 <= b <= 1e6 or b == -math.inf for b in self.logit_bias.values()),
            ),
        )
        for wanted, got, holds in checks:
            if not holds:
                raise RequestError(wanted, shown(got), CORRECT)


def is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether a value is one of these kinds of numbers; True and False, whole numbers to Python,
    are not.
    """
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_stop_ids(stop_ids: Iterable[int], vocab_size: int) -> None:
    """RequestError for an id outside the model's vocabulary."""
    for token_id in stop_ids:
        if not 0 <= token_id < vocab_size:
            wanted = f"`stop_ids` below {vocab_size}, the model's vocabulary"
            raise RequestError(wanted, str(token_id), "correct it")


def _listed(name: str, values: object, kind: type) -> tuple[object, ...]:
    """The values in a tuple; RequestError unless they are some of `kind`."""
    items = tuple(values) if isinstance(values, Iterable) else None
    if items is None or not all(is_number(item, kind) for item in items):
        word = "strings" if kind is str else "token ids"
        raise RequestError(f"{word} for `{name}`", shown(values), CORRECT)
    return items if kind is str else tuple(map(int, items))


def is_text(text: str) -> bool:
    """Whether it has no half of a surrogate pair, as an argument that is not UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _biases(biases: object) -> dict[int, float]:
    if isinstance(biases, Mapping) and all(
        is_number(token, Integral) and is_number(bias, Real) for token, bias in biases.items()
    ):
        return dict(biases)
    raise RequestError("a number for each token id in `logit_bias`", shown(biases), CORRECT)


class RowDraw(NamedTuple):
    """How the token of a row of logits is drawn: gf_draw of native/gyrfalcon.h."""

    temperature: float
    top_p: float
    min_p: float
    chance: float  # a uniform number in [0, 1)
    top_k: int


class SamplingMode(Enum):
    """Where the tokens of a request are found."""

    GREEDY = auto()  # among the most likely of every rank
    TOP_K = auto()  # drawn among at most MOST_CANDIDATES of every rank
    FULL_VOCAB = (
        auto()
    )  # from the logits of all tokens, which every rank gets, as of all that follow
    NUCLEUS = auto()  # the same, drawn among those that top_p and min_p alone keep
    UNFILTERED = auto()  # the same, drawn from all


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt on its way through the ranks: every rank receives it and handles it alike. What its
    parameters mean for every step is decided here, once.
    """

    id: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    end_ids: frozenset[int] = frozenset()  # each ends a sample
    keep_logits: bool = False  # return the logits after every prompt token
    single_steps: int = 0  # the last prompt tokens to compute one at a time, as in decoding
    priority: int = 0  # the lowest runs first
    cache_salt: str = ""  # it shares cache blocks with requests of the same salt alone
    changes_logits: bool = field(init=False)  # by biases or penalties
    constrained: bool = field(init=False)  # structured output says which tokens may follow
    has_min_tokens: bool = field(init=False)
    wants_logprobs: bool = field(init=False)
    wants_prompt_logits: bool = field(init=False)  # after every prompt token, not only the last
    shares_scores: bool = field(init=False)  # with prompts that begin alike: those of the prompt
    sampling_mode: SamplingMode = field(init=False)
    row_draw: RowDraw = field(init=False)  # but for the chance
    cache_root: bytes = field(init=False)  # what stands for the salt in digests of its blocks

    def __post_init__(self) -> None:
        params = self.params
        penalties = (
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty - 1,
        )
        changes_logits = bool(params.logit_bias) or any(penalties)
        decide = partial(object.__setattr__, self)  # a frozen dataclass's way to derive a field
        decide("changes_logits", changes_logits)
        decide("constrained", params.structured is not None)
        decide("has_min_tokens", params.min_tokens > 0)
        decide("wants_logprobs", params.logprobs is not None or bool(params.logprob_ids))
        decide("wants_prompt_logits", self.keep_logits or params.prompt_logprobs is not None)
        few = params.prompt_logprobs is not None and params.prompt_logprobs <= SHARED_TOP
        decide("shares_scores", few and not self.keep_logits)
        decide("sampling_mode", _sampling_mode(params, changes_logits))
        decide(
            "row_draw",
            RowDraw(params.temperature, params.top_p, params.min_p, 0.0, params.top_k),
        )
        salt = self.cache_salt.encode()
        decide(
            "cache_root",
            blake2b(salt, digest_size=16, person=b"cache salt").digest() if salt else b"",
        )


def _sampling_mode(params: SamplingParams, changes_logits: bool) -> SamplingMode:
    if params.temperature == 0:
        return SamplingMode.FULL_VOCAB if changes_logits else SamplingMode.GREEDY
    if not params.top_k:
        filtered = params.top_p < 1 or params.min_p > 0
        return SamplingMode.NUCLEUS if filtered else SamplingMode.UNFILTERED
    few = params.top_k <= MOST_CANDIDATES and not changes_logits
    return SamplingMode.TOP_K if few else SamplingMode.FULL_VOCAB


@dataclass(frozen=True, slots=True)
class Token:
    """A token and, on request, its log-probability under the model and the most likely tokens at its
    position; of a prompt's token also its rank: how many are at least as likely, itself included.

    >>> engine = Engine("nestling")
    >>> [output] = engine.generate("The falcon", SamplingParams(max_new_tokens=1, logprobs=5))
    >>> [token] = output.completions[0].logprobs
    >>> len(token.top), token.top[0] == (token.id, token.logprob)
    (5, True)
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first
    asked: tuple[tuple[int, float], ...] = ()  # the same for each of SamplingParams.logprob_ids
    rank: int | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample of a request while it runs: its tokens and how far they are cached."""

    request: Request
    index: int  # which of the request's n samples
    tokens: list[int]  # prompt, then output
    max_len: int  # tokens at which it ends at the latest
    arrival: int = 0  # its place in the order of arrival
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_cached: int = 0  # of them taken over from the cache when it was first admitted
    num_preemptions: int = 0
    num_accepted: int = 0  # of its tokens, draft tokens that were the ones picked
    blocks: list[int] = field(default_factory=list)  # cache blocks, in order
    num_shared: int = 0  # of them taken over from others, the first ones
    num_published: int = 0  # of them that others can find, the first ones
    digests: list[bytes] = field(default_factory=list)  # of full blocks, as far as they were needed
    is_finite: bool = True  # no NaN or infinity was in its logits: its blocks may serve others
    finish_reason: FinishReason | None = None
    prompt_len: int = field(init=False)
    priority: int = field(init=False)
    wants_every_row: bool = field(init=False)  # the logits after each of its prompt's tokens
    shares_scores: bool = field(init=False)  # which it makes of those logits

    def __post_init__(self) -> None:
        self.prompt_len = len(self.request.prompt_ids)
        self.priority = self.request.priority
        self.wants_every_row = self.index == 0 and self.request.wants_prompt_logits
        self.shares_scores = self.index == 0 and self.request.shares_scores

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.prompt_len :]


@dataclass(slots=True)  # one for each sequence and step: frozen, it takes three times as long
class Chunk:
    """The tokens [start, stop) of a sequence that one step computes.

    draft: tokens up to `stop` that are not the sequence's yet, but assumed to follow on them
        (speculative decoding). What follows each of them and the sequence's last is sampled.
    samples: whether the step yields a new token: the chunk reaches the sequence's end, or goes on
        with a token that is not known yet, and more are wanted.
    wants_every_row: whether the logits after each of its tokens are wanted: it is part of such a
        prompt.
    rows: the tokens, counted from `start`, whose logits are wanted: at least the last, which shows
        whether all that it attends to is finite.
    """

    sequence: Sequence
    start: int
    stop: int
    draft: list[int] = field(default_factory=list)
    samples: bool = field(init=False)
    wants_every_row: bool = field(init=False)
    rows: range = field(init=False)
    request: Request = field(init=False)

    def __post_init__(self) -> None:
        sequence, length = self.sequence, self.stop - self.start
        samples = self.stop >= len(sequence.tokens) and sequence.request.params.max_new_tokens > 0
        self.samples, self.request = samples, sequence.request
        self.wants_every_row = sequence.wants_every_row and self.start < sequence.prompt_len
        first = 0 if self.wants_every_row else max(length - 1 - len(self.draft), 0)
        self.rows = range(first, length)

    @property
    def may_end(self) -> bool:
        """Whether the token that it yields may end the sample."""
        return self.stop - self.sequence.prompt_len >= self.sequence.request.params.min_tokens


@dataclass(frozen=True, slots=True)
class NonFinite:
    """What a chunk yields whose logits are NaN or infinite."""

    position: int  # of the token that has such logits, 0 for the prompt's first

    def failure(self, sequence: Sequence) -> GyrfalconError:
        """What its sample ends with."""
        sample = f"request {sequence.request.id}, sample {sequence.index}"
        return NotFinite.logits(f"at position {self.position} of {sample}")


@dataclass(frozen=True, slots=True)
class NoneAllowed:
    """What a chunk yields where structured output, or biases beside it, allow no token."""

    position: int  # of the last token
    why: str = "biases or `min_tokens` forbid all that may"  # rank 0 knows what llguidance says

    def failure(self, sequence: Sequence) -> GyrfalconError:
        """What its sample ends with."""
        where = f"request {sequence.request.id}, sample {sequence.index}"
        wanted = f"a token that may follow at position {self.position} of {where}"
        return NoTokenAllowed(wanted, f"none: {self.why}", "simplify `structured`")


# What a step yields for a chunk; None where it samples no token and all is well.
ChunkResult = Token | NonFinite | NoneAllowed | None


@dataclass(slots=True)  # as a chunk
class StepOutput:
    """The output of one step for one sequence: a token (None when only the prompt was scored, or the
    sample failed) and, at its end, why it ended.
    """

    request_id: int
    index: int
    token: Token | None
    finish_reason: FinishReason | None
    num_cached_tokens: int  # of its prompt
    num_preemptions: int = 0  # so far
    why: GyrfalconError | str | None = None  # it failed, or its deadline passed
    num_accepted_tokens: int = 0  # of its output, draft tokens so far


@dataclass(frozen=True, slots=True)
class Delta:
    """The new text of a running sample after a step: never half a character or part of a stop
    string. The last delta of a sample has its finish reason and what these say; before, they are 0.

    error: one line that says why, where neither the text ended nor its caller aborted it: a deadline, or
        for ERROR which request, sample and position failed and what to do.
    failure: for ERROR, the error whose line that is: NotFinite, or NoTokenAllowed, which its caller can
        correct.
    num_cached_tokens: tokens of the prompt that were not computed, because an earlier prompt began
        alike.
    queued_seconds: from add() to the first step that computed the sample, or to its end before one.
    num_preemptions: how often its cache was taken for another, so that it started over.
    num_accepted_tokens: of its tokens, those that were drafted (`num_speculative_tokens`).
    prompt_logprobs: those that SamplingParams.prompt_logprobs asks for, with the first delta of the
        request's first sample.

    >>> first = next(Engine("nestling").stream("The falcon"))
    >>> first.index, first.finish_reason
    (0, None)
    """

    request_id: int
    index: int  # which of the request's n samples
    text: str
    token: Token | None  # None when only the prompt was scored, or the sample failed
    finish_reason: FinishReason | None
    error: str | None = None
    num_cached_tokens: int = field(default=0, compare=False)
    queued_seconds: float = field(default=0.0, compare=False)
    num_preemptions: int = field(default=0, compare=False)
    num_accepted_tokens: int = field(default=0, compare=False)
    prompt_logprobs: tuple[Token | None, ...] | None = None  # None for its first token
    failure: GyrfalconError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample. `output_ids` are the new tokens, a final end-of-text included. One that
    failed (FinishReason.ERROR) has those before it did, and in `error` one line that says which
    request, sample and position it was and what to do: that of `failure`, NotFinite or NoTokenAllowed.

    >>> params = SamplingParams(max_new_tokens=4, temperature=1, n=2, seed=0)
    >>> [output] = Engine("nestling").generate("The falcon", params)
    >>> [completion.index for completion in output.completions]
    [0, 1]
    """

    index: int
    output_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[Token, ...] | None
    error: str | None = None
    failure: GyrfalconError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request. The properties are those of its first completion.

    num_cached_tokens: tokens of the prompt that were not computed for its first sample, because an
        earlier prompt began alike. With `prompt_logprobs` these are tokens whose scores an earlier prompt
        left in the cache; always 0 with `prompt_logprobs` above 5.
    prompt_logprobs: None, too, where the first sample ended before all of them were known.
    queued_seconds: until the first step that computed its first sample.
    num_preemptions: how often the cache of one of its samples was taken for another request.
    num_accepted_tokens: new tokens of all samples that were drafted (`num_speculative_tokens`).

    Outputs that differ in these alone are equal.

    >>> [output] = Engine("nestling").generate("The falcon", SamplingParams(max_new_tokens=4))
    >>> output.text == output.completions[0].text
    True
    """

    prompt: str | None
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    # For the first token None: nothing comes before it.
    prompt_logprobs: tuple[Token | None, ...] | None
    num_cached_tokens: int = field(compare=False)
    queued_seconds: float = field(default=0.0, compare=False)
    num_preemptions: int = field(default=0, compare=False)
    num_accepted_tokens: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def output_ids(self) -> tuple[int, ...]:
        return self.completions[0].output_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.completions[0].finish_reason

    @property
    def error(self) -> str | None:
        return self.completions[0].error

    @property
    def failure(self) -> GyrfalconError | None:
        return self.completions[0].failure


def check_finite(*ended: Delta | Completion) -> None:
    """Raises why the first that failed did, for callers who have no use for part of a result."""
    for one in ended:
        if one.failure is not None:
            raise one.failure


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing, and what its prefix cache has saved since it was made. A sequence is
    one sample of a request.

    num_waiting: sequences that wait for room in the cache.
    num_running: sequences that hold cache.
    num_used_blocks, num_blocks: cache blocks that running sequences hold, and all there are.
    num_prompt_tokens: of the sequences that were admitted to the cache.
    num_cached_tokens: those of them that were not computed, because an earlier prompt began alike.
    num_waiting_requests: requests of which a sample waits.
    num_waiting_tokens: the tokens of the sequences that wait, those in the cache included.
    num_drafts, num_draft_tokens, num_accepted_tokens: drafts of speculative decoding, their tokens, and those
        of them that were the ones picked.

    >>> engine = Engine("nestling", block_size=8)
    >>> for _ in range(2):
    ...     [output] = engine.generate("Which bird of prey nests on rocks in the far north?")
    >>> stats = engine.stats()
    >>> stats.num_running, stats.num_cached_tokens == output.num_cached_tokens > 0
    (0, True)
    """

    num_waiting: int
    num_running: int
    num_used_blocks: int
    num_blocks: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_waiting_requests: int = 0
    num_waiting_tokens: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
