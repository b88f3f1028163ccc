"""Structured output → which tokens may follow, by llguidance, which is imported here alone. Knows no
ranks, logits or scheduling.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import numpy
from numpy.typing import NDArray

from gyrfalcon.errors import PIP_INSTALL, RequestError, UsageError
from gyrfalcon.structured import CompiledOutput, StructuredOutput
from gyrfalcon.text.grammar_check import SIMPLIFY, GrammarCheck
from gyrfalcon.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MOST_KNOWN = 4096  # grammars that the process took
ANY_OBJECT = '{"type": "object"}'
# Between the parts of JSON: more, and small models go on for ever.
WHITESPACE = r"\x20|\n[\x20\t]{0,20}"
EXPLAINED = {"NoExtensionBias": "NoExtensionBias: no text matches"}
MOST_LETTERS = 400  # of an error: the library repeats the grammar in it
LIMITS: dict[str, Any] = dict(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
)


Words = NDArray[numpy.int32]


@dataclass(slots=True)
class _Grammar:
    """A compiled grammar. Its matchers share what the lexer has learnt, up to a limit at which all of
    them fail: each request has a grammar of its own.
    """

    first_mask: Words  # as masks() computes them
    has_failed: bool = False


class Matcher:
    """A sample's place in its grammar."""

    def __init__(self, grammar: _Grammar, library: "llguidance.LLMatcher") -> None:
        self.library = library
        self.num_taken = 0  # tokens of the output
        self.grammar = grammar

    @property
    def mask(self) -> Words | None:
        """What may follow, where it is known already: at the beginning."""
        return None if self.num_taken else self.grammar.first_mask

    def copy(self) -> "Matcher":
        """Another at the same place."""
        twin = Matcher(self.grammar, self.library.deep_copy())
        twin.num_taken = self.num_taken
        return twin

    def take(self, token_ids: Seq[int]) -> None:
        """Goes on behind further tokens of the output."""
        self.num_taken += len(token_ids)
        self.library.consume_tokens(list(token_ids))

    @property
    def error(self) -> str | None:
        """Why nothing can follow any more, in the library's words: after a token that was not allowed,
        or where a limit was reached. None where the text can go on or end.
        """
        if not self.library.is_error():
            return None
        self.grammar.has_failed = True
        return _in_one_line(self.library.get_error())


class Grammars:
    """Compiles grammars for one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, end_ids: Collection[int]
    ) -> None:
        """`vocab_size`: the model's ids; `end_ids`: those that end its texts, and are no text."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._known: OrderedDict[bytes, None] = OrderedDict()  # digests of grammars
        self._lock = threading.Lock()

    def compiled(self, structured: StructuredOutput | CompiledOutput) -> CompiledOutput:
        """What matcher() makes, for several requests; itself, if it was compiled here and still works."""
        if isinstance(structured, CompiledOutput):
            if structured.compiler is self and not self.of(structured).grammar.has_failed:
                return structured
            structured = structured.structured
        return CompiledOutput(structured, self, self.matcher(structured))

    def elsewhere(self, structured: StructuredOutput | CompiledOutput) -> CompiledOutput:
        """What stands for compiled output on a rank that computes no masks."""
        plain = structured if isinstance(structured, StructuredOutput) else structured.structured
        return CompiledOutput(plain, self, None)

    def of(self, compiled: CompiledOutput) -> Matcher:
        """The matcher at the beginning of a text that was compiled here."""
        assert compiled.compiler is self
        assert isinstance(compiled.grammar, Matcher)
        return compiled.grammar

    def matcher(self, structured: StructuredOutput) -> Matcher:
        """A matcher at the beginning of a text, for which the first mask was computed. RequestError, in
        the library's words, for what it does not take, and for what takes too long or too much memory;
        QueueFull where too many threads compile; UsageError where the library is not installed. Any
        thread may call it.
        """
        with self._lock:
            library, check = self._library, self._check
        text = _grammar(structured)
        digest = blake2b(text.encode()).digest()
        error = None if digest in self._known else check.error(text)
        if error is None:
            matcher = _compiled(text, library)
            error = matcher.error
        if error is not None:
            wanted = f"{structured.name} that llguidance takes"
            raise RequestError(wanted, _in_one_line(error), SIMPLIFY)
        with self._lock:
            self._known[digest] = None
            self._known.move_to_end(digest)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return matcher

    def close(self) -> None:
        """Ends the process that compiles first, if there is one."""
        with self._lock:
            if "_check" in vars(self):
                self._check.close()

    @cached_property
    def _vocabulary(self) -> "_Vocabulary":
        if self._tokenizer is None:
            wanted = "a tokenizer for structured output"
            raise RequestError(wanted, "none beside the model", "copy its files there")
        return _Vocabulary(self._tokenizer, self._vocab_size, self._end_ids)

    @cached_property
    def _check(self) -> GrammarCheck:
        return GrammarCheck(self._vocabulary.content, LIMITS)

    @cached_property
    def _library(self) -> "llguidance.LLTokenizer":
        try:
            from llguidance import LLTokenizer
        except ImportError:
            do = f"{PIP_INSTALL} llguidance"
            raise UsageError("llguidance for structured output", "no such package", do) from None
        return LLTokenizer(cast("llguidance.TokenizerWrapper", self._vocabulary))  # is like one


def _compiled(text: str, tokenizer: "llguidance.LLTokenizer") -> Matcher:
    """A matcher of a grammar that the process took; it may have an error nevertheless."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**LIMITS, verbose_errors=False)
    library = LLMatcher(tokenizer, text, log_level=0, limits=limits)
    mask = numpy.zeros(-(-tokenizer.vocab_size // 32), dtype=numpy.int32)
    library.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return Matcher(_Grammar(mask), library)


def masks(
    matchers: Seq[Matcher], vocab_size: int
) -> tuple[NDArray[numpy.bool_], NDArray[numpy.uint8]]:
    """What may follow in each: whether the text may end there, [matchers], and which tokens may, one
    bit each from the lowest of the first byte on, [matchers, bytes]; none where one has an error.
    """
    words = numpy.zeros((len(matchers), vocab_size // 32 + 1), dtype=numpy.int32)
    rows = [(one.library, row) for row, one in enumerate(matchers) if one.mask is None]
    if rows:
        _executor().unsafe_compute_mask_ptr(
            rows, words.ctypes.data, words.strides[0], len(matchers)
        )
    for row, one in enumerate(matchers):
        if one.mask is not None:
            words[row] = one.mask
    words[[row for row, one in enumerate(matchers) if one.error is not None]] = 0
    bits = words.astype("<i4", copy=False).view(numpy.uint8)
    last, end = bits[:, vocab_size // 8], 1 << vocab_size % 8
    may_end = (last & end) > 0
    last &= ~end & 255
    return may_end, bits[:, : -(-vocab_size // 8)]


@cache
def _executor() -> "llguidance.LLExecutor":
    """The threads that compute masks, of all engines of this process."""
    import llguidance

    return llguidance.LLExecutor(len(os.sched_getaffinity(0)))


class _Vocabulary:
    """A tokenizer as llguidance asks for it. Behind the model's ids stands one of our own, which is
    allowed where the text may end: which ids end it differs between requests.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        ids = range(vocab_size)
        self._tokenizer = tokenizer
        self.tokens = [*map(tokenizer.token_bytes, ids), b"<gyrfalcon-end>"]
        self.eos_token_id = vocab_size
        hidden = [i for i in ids if tokenizer.is_special(i) or i in end_ids]
        self.special_token_ids = [*hidden, vocab_size]
        self._hidden = frozenset(hidden)
        self._by_bytes = {
            token: i for i, token in enumerate(self.tokens[:-1]) if i not in self._hidden
        }
        self._longest = max(map(len, self._by_bytes))

    @property
    def content(self) -> dict[str, list[str]]:
        """The same for GrammarCheck."""
        tokens = [token.decode("latin-1") for token in self.tokens]
        return {"tokens": tokens, "special": [*map(str, self.special_token_ids)]}

    def __call__(self, text: str) -> list[int]:
        """The ids of a part of a text, in which no special token is recognised."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        raw = text.encode()
        spelt = b"".join(self.tokens[i] for i in ids if i < self.eos_token_id)
        if spelt == raw and self._hidden.isdisjoint(ids):
            return ids
        return self._greedy(raw)

    def _greedy(self, raw: bytes) -> list[int]:
        """Always the longest token that fits: the tokenizer puts a space before a text, say."""
        ids, start = [], 0
        while start < len(raw):
            lengths = range(min(self._longest, len(raw) - start), 0, -1)
            found = next(n for n in lengths if raw[start : start + n] in self._by_bytes)
            ids.append(self._by_bytes[raw[start : start + found]])
            start += found
        return ids


def _grammar(structured: StructuredOutput) -> str:
    """As the library takes it; RequestError for a schema that is no JSON object."""
    from llguidance import LLMatcher

    if structured.kind == "regex":
        return str(LLMatcher.grammar_from_regex(structured.regex or ""))
    if structured.kind in ("grammar", "choice"):
        lark = structured.grammar
        if structured.choice is not None:
            lark = "start: TEXT\nTEXT: " + " | ".join(map(json.dumps, structured.choice))
        return json.dumps({"grammars": [{"lark_grammar": lark}]})
    schema = ANY_OBJECT if structured.json is None else str(structured.json)
    own = "x-guidance" in schema  # the library's own settings, of whitespace among others
    defaults: Any = {} if own else {"whitespace_pattern": WHITESPACE}
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, defaults=defaults))
    except ValueError as error:
        got = _in_one_line(str(error))
        raise RequestError("a JSON object as the schema", got, "correct it") from None


def _in_one_line(message: str) -> str:
    """A message of the library without the state and the stack that it adds; of a long one both ends."""
    line = " ".join(message.split("\n<")[0].split())
    line = EXPLAINED.get(line, line)
    return line if len(line) <= MOST_LETTERS else f"{line[:150]} … {line[150 - MOST_LETTERS :]}"
