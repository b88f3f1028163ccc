"""How well a model predicts a text: a sliding window scores every token but the first once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import UsageError
from gyrfalcon.request import SamplingParams, check_finite
from gyrfalcon.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) are read; those from `first` on are scored, given all before them."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The cost of a text. The first token is context only, and its bytes do not count."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.num_tokens)

    @property
    def bits_per_token(self) -> float:
        return self.nats / math.log(2) / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes


def windows(num_tokens: int, window: int, stride: int) -> list[Window]:
    """Windows of at most `window` tokens, `stride` apart; each but the first scores only the tokens
    that the one before did not reach, so each has at least `window` - `stride` tokens before it.
    """
    found = [Window(0, 1, min(window, num_tokens))]
    while found[-1].stop < num_tokens:
        start, first = found[-1].start + stride, found[-1].stop
        found.append(Window(start, first, min(start + window, num_tokens)))
    return found


def check_window(window: int, stride: int, max_len: int) -> None:
    """UsageError unless 1 <= stride < window <= max_len."""
    if not 2 <= window <= max_len:
        raise UsageError(f"a window of 2 to {max_len} tokens", str(window), "change `window`")
    if not 1 <= stride < window:
        wanted = f"a stride of 1 to {window - 1}, so that every token has one before it"
        raise UsageError(wanted, str(stride), "change `stride`")


def perplexity(
    engine: Engine, text: str, window: int, stride: int, seen: Callable[[int], object]
) -> Perplexity:
    """Scores a text; calls `seen` with the number of newly scored tokens after each window.

    UsageError for a window that does not fit and a text of fewer than two tokens.
    """
    check_window(window, stride, engine.max_len)
    ids = text_ids(engine.tokenizer, text)
    if len(ids) < 2:
        raise UsageError("a text of at least 2 tokens", str(len(ids)), "score a longer one")
    return Perplexity(
        nats=_nats(engine, ids, windows(len(ids), window, stride), seen),
        num_tokens=len(ids) - 1,
        num_bytes=len(text.encode()) - _bytes_read(engine.tokenizer, ids[0]),
    )


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, after a begin token where the tokenizer adds one."""
    return [*tokenizer.begin_ids, *tokenizer.encode(text, add_special_tokens=False)]


def _bytes_read(tokenizer: Tokenizer, first: int) -> int:
    """The bytes of the first token, which is not predicted."""
    return 0 if tokenizer.begin_ids else len(tokenizer.token_bytes(first))


def _nats(
    engine: Engine, ids: Sequence[int], parts: Sequence[Window], seen: Callable[[int], object]
) -> float:
    """The negative log-likelihood of all scored tokens; one window at a time keeps memory low."""
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    total = 0.0
    for part in parts:
        [output] = engine.generate([ids[part.start : part.stop]], params)
        check_finite(*output.completions)
        scores = output.prompt_logprobs
        assert scores is not None
        new = scores[part.first - part.start :]
        total -= math.fsum(token.logprob for token in new if token and token.logprob is not None)
        seen(len(new))
    return total
