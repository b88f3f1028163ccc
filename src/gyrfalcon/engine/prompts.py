"""What callers pass as prompts and parameters → token ids and parameters that a step can take, checked."""

import math
import operator
from collections.abc import Iterable, Mapping, Set
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from gyrfalcon.bounds import REQUEST, shown
from gyrfalcon.config import ModelConfig
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import PromptTooLong, RequestError
from gyrfalcon.request import SamplingParams, check_stop_ids, is_number, is_text
from gyrfalcon.structured import CompiledOutput
from gyrfalcon.text.detokenizer import StopStrings
from gyrfalcon.text.tokenizer import Tokenizer

Prompt = str | Seq[int]
Params = SamplingParams | None
GREEDY = SamplingParams()
MOST_SALT = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as it was given, if that was text, its ids, its parameters, and when it runs: see
    Engine.add(). `compiled` is its structured output, `stops`
    are its stop strings.
    """

    text: str | None
    ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    timeout: float | None = None
    cache_salt: str = ""
    bounded: bool = False  # refused where the queue is full
    compiled: CompiledOutput | None = None
    stops: StopStrings | None = None

    @property
    def num_tokens(self) -> int:
        """Of all its samples, which are queued one by one."""
        return len(self.ids) * self.params.n


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """A text or a list of ids is one prompt; a list of texts or of lists of ids is many."""
    if isinstance(prompts, Tensor):
        raise RequestError("texts or lists of token ids", "a tensor", "use generate_ids()")
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes | Mapping | Set) or not isinstance(prompts, Iterable):
        raise RequestError("texts or lists of token ids", shown(prompts), "pass one or a list")
    items = list(prompts)
    if items and is_number(items[0], Integral):
        return [items]  # type: ignore[list-item]  # narrowing a list by its first item is beyond mypy
    return items  # type: ignore[return-value]


def ids_of(prompt: Seq[int]) -> tuple[int, ...]:
    """The ids as plain numbers; numpy's and torch's whole numbers are taken, no others are rounded.
    True and False are no ids.
    """
    with suppress(TypeError):
        if not isinstance(prompt, bytes | Mapping | Set):
            items = tuple(prompt)
            if not _has_flags(items):
                return tuple(map(operator.index, items))
    raise RequestError("a text or a list of whole token ids", shown(prompt), "pass one of these")


def _has_flags(items: Seq[object]) -> bool:
    kinds = set(map(type, items))
    return bool in kinds or (
        Tensor in kinds and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in items)
    )


def params_of(params: Params) -> SamplingParams:
    """One set of parameters; none at all are greedy ones."""
    if params is None:
        return GREEDY
    if isinstance(params, SamplingParams):
        return params
    do = "pass SamplingParams(temperature=0.7), say"
    if isinstance(params, Mapping):
        do = "pass SamplingParams(**…) of it"
    raise RequestError("SamplingParams", shown(params), do)


def params_of_each(params: Params | Iterable[Params], prompts: Seq[Prompt]) -> list[SamplingParams]:
    """A set for each prompt, from one for all or a list."""
    if params is None or isinstance(params, SamplingParams | Mapping | str):
        return [params_of(params)] * len(prompts)  # type: ignore[arg-type]  # refuses what is none
    if not isinstance(params, Iterable):
        return [params_of(params)]
    each = [params_of(one) for one in params]
    if len(each) != len(prompts):
        wanted = f"parameters for {len(prompts)} prompts"
        raise RequestError(wanted, str(len(each)), "pass one set or one for each")
    return each


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest sequence that an engine takes, and what it was asked for."""

    max_len: int
    config: EngineConfig
    model_config: ModelConfig

    def advice(self, first: str) -> str:
        """What to do about a longer one: `first`, or what makes `max_len` longer."""
        positions, rotary = self.model_config.max_positions, self.model_config.rope is not None
        if self.max_len < (self.config.max_len or positions):
            return f"{first} or raise `cache_memory`"
        return first if rotary and self.max_len == positions else f"{first} or raise `max_len`"

    def encode(self, text: str, tokenizer: Tokenizer, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a prompt. One that is far too long is PromptTooLong by the number of its
        bytes, before it takes time and memory.
        """
        least = tokenizer.least_tokens(text)
        if least > self.max_len:
            wanted = f"a prompt of at most {self.max_len} tokens"
            raise PromptTooLong(wanted, f"{least} or more", self.advice("shorten it"))
        return tokenizer.encode(text, add_special_tokens)

    def check(self, asked: Asked) -> None:
        """Raises PromptTooLong for a prompt that leaves no room for a token."""
        longest = self.max_len - min(1, asked.params.max_new_tokens)
        if len(asked.ids) > longest:
            wanted = f"a prompt of at most {longest} tokens"
            raise PromptTooLong(wanted, str(len(asked.ids)), self.advice("shorten it"))


def check(asked: Asked, vocab_size: int, tokenizer: Tokenizer | None) -> None:
    """Raises RequestError for what a model of such a vocabulary cannot take."""
    params = asked.params
    if not asked.ids:
        raise RequestError("a prompt of at least one token", "an empty one", "write a prompt")
    given = (*asked.ids, *params.logit_bias, *params.logprob_ids)
    foreign = [token for token in given if token not in range(vocab_size)]
    if foreign:
        text = tokenizer.decode(foreign[:1], skip_special=False) if tokenizer else ""
        raise RequestError(
            f"token ids below {vocab_size}",
            f"{foreign[0]} {text}".rstrip(),
            "use the model's own tokenizer, and no token that the model lacks",
        )
    check_stop_ids(params.stop_ids, vocab_size)
    if list(params.logit_bias.values()).count(-math.inf) == vocab_size:
        raise RequestError("a token that may follow", "all forbidden", "allow one in `logit_bias`")
    if params.stop_strings and tokenizer is None:
        raise RequestError(
            "a tokenizer for stop strings", "none beside the model", "use `stop_ids`"
        )


def whole_of(name: str, number: int) -> int:
    """A count that a method takes."""
    if is_number(number, Integral) and number >= 0:
        return int(number)
    raise RequestError(f"a whole number of 0 or more for {name}", shown(number), "pass such")


def priority_of(priority: int) -> int:
    """A priority as a plain number; RequestError for what is none."""
    bounds = REQUEST["priority"]
    if is_number(priority, Integral) and priority in bounds:
        return int(priority)
    wanted = f"a whole number {bounds.words} for `priority`"
    raise RequestError(wanted, shown(priority), "correct it; the lowest runs first")


def timeout_of(timeout: float | None) -> float | None:
    """Seconds, or None for as long as it takes; RequestError for anything else."""
    bounds = REQUEST["timeout"]
    if timeout is None:
        return None
    if is_number(timeout, Real) and timeout in bounds:
        return float(timeout)
    wanted = f"a number of seconds {bounds.words}, or None, for `timeout`"
    raise RequestError(wanted, shown(timeout), "correct it")


def salt_of(cache_salt: str | None) -> str:
    """What cache blocks are hashed with, "" for nothing; RequestError for what is no text."""
    if cache_salt is None:
        return ""
    if isinstance(cache_salt, str) and is_text(cache_salt) and 0 < len(cache_salt) <= MOST_SALT:
        return cache_salt
    wanted = f"a text of 1 to {MOST_SALT:,} characters, or None, for `cache_salt`"
    raise RequestError(wanted, shown(cache_salt), "correct it")


def rows(input_ids: Tensor, real: Tensor) -> list[list[int]]:
    """The real tokens of each row of [batch, seq]."""
    return [row[mask].tolist() for row, mask in zip(input_ids.cpu(), real, strict=True)]
