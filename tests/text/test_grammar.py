"""Grammars: the tokens that a mask allows are those with which the text can still match; errors come in
time, in the library's words, and before anything runs."""

import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import regex
from schemas import BOMBS, HEAVY, REGEXES, SCHEMAS

from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.errors import RequestError, UsageError
from gyrfalcon.structured import StructuredOutput
from gyrfalcon.text.grammar import Grammars, Matcher, masks
from gyrfalcon.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def nestling() -> Tokenizer:
    return Tokenizer.load(NESTLING)


@pytest.fixture(scope="module")
def grammars(nestling: Tokenizer) -> Grammars:
    return Grammars(nestling, nestling.vocab_size, nestling.end_ids)


@pytest.fixture(scope="module")
def falcon(data: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.load(data("falcon-tokenizer"))


def allowed(matcher: Matcher, vocab_size: int) -> tuple[bool, set[int]]:
    """Whether the text may end, and the tokens that may follow."""
    [may_end], [bits] = masks([matcher], vocab_size)
    return bool(may_end), set(numpy.unpackbits(bits, bitorder="little").nonzero()[0].tolist())


def possible(pattern: str, text: str, tokenizer: Tokenizer) -> set[int]:
    """The tokens after which a text can still match an expression, by the package regex. Half
    characters are left out, and special tokens.
    """
    compiled, found = regex.compile(pattern), set()
    for i in range(tokenizer.vocab_size):
        raw = tokenizer.token_bytes(i)
        piece = raw.decode(errors="replace")
        if not raw or tokenizer.is_special(i) or "\ufffd" in piece:
            continue
        if compiled.fullmatch(text + piece, partial=True):
            found.add(i)
    return found


@pytest.mark.parametrize(
    ("name", "pattern", "texts"),
    [
        ("nestling", "[a-z]{3,8}( [a-z]+)*", ["", "bi", "bird nest "]),
        ("nestling", r"[A-Z]?\w+[.!?]", ["", "The", "the birds"]),
        ("nestling", r"-?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?", ["", "-", "12", "123,4"]),
        ("nestling", "(falcon|fal|kestrel|kite)s?", ["", "k", "fal"]),
        ("falcon", "([a-z]{3,8}|[0-9]+)( [a-z]+)*", ["", "bi"]),
    ],
)
def test_a_mask_has_the_tokens_after_which_the_text_can_still_match(
    name: str, pattern: str, texts: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    own = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.end_ids)
    first = own.matcher(StructuredOutput(regex=pattern))
    for text in texts:
        matcher = first.copy()
        matcher.take(tokenizer.encode(text))
        may_end, tokens = allowed(matcher, tokenizer.vocab_size)
        whole = {
            i for i in tokens if "\ufffd" not in tokenizer.token_bytes(i).decode(errors="replace")
        }
        assert whole == possible(pattern, text, tokenizer)
        assert may_end == bool(regex.fullmatch(pattern, text))


@pytest.mark.parametrize("name", ["nestling", "falcon"])
def test_a_text_that_matches_can_be_written_in_its_own_tokens_and_then_only_end(
    name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    own = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.end_ids)
    texts = {
        'The "big" falcon – größer als 漢字 \U0001f985\n': None,
        tokenizer.decode([tokenizer.end_ids[0]], skip_special=False) + " is text": None,
        " begins with a space": None,
    }
    for text in texts:
        matcher = own.matcher(StructuredOutput(choice=[text, text + "!"]))
        written = b""
        while True:
            may_end, tokens = allowed(matcher, tokenizer.vocab_size)
            if may_end or not tokens:
                break
            assert not any(map(tokenizer.is_special, tokens))
            token = max(tokens, key=lambda i: len(tokenizer.token_bytes(i)))
            matcher.take([token])
            written += tokenizer.token_bytes(token)
        assert matcher.error is None
        assert may_end
        assert written.decode().removesuffix("!") == text


def test_ids_behind_the_tokenizer_s_are_never_allowed(nestling: Tokenizer) -> None:
    for more in (1, 7, 31, 64):
        vocab_size = nestling.vocab_size + more
        own = Grammars(nestling, vocab_size, nestling.end_ids)
        matcher = own.matcher(StructuredOutput(regex=r"(.|\n)*"))
        may_end, tokens = allowed(matcher, vocab_size)
        assert may_end
        assert max(tokens) < nestling.vocab_size
        assert not any(map(nestling.is_special, tokens))


def test_an_ordinary_word_that_ends_a_models_texts_is_no_text(nestling: Tokenizer) -> None:
    word = next(i for i in range(nestling.vocab_size) if nestling.token_bytes(i) == b"the")
    own = Grammars(nestling, nestling.vocab_size, [word])
    _, tokens = allowed(own.matcher(StructuredOutput(regex="[a-z]*")), nestling.vocab_size)
    assert word not in tokens
    assert tokens


def test_copies_of_a_matcher_go_their_own_ways(grammars: Grammars, nestling: Tokenizer) -> None:
    first = grammars.matcher(StructuredOutput(choice=["ab", "ba"]))
    a, b = ([i for i in range(256) if nestling.token_bytes(i) == letter] for letter in (b"a", b"b"))
    one, other = first.copy(), first.copy()
    one.take(a)
    other.take(b)
    assert allowed(one, nestling.vocab_size)[1].isdisjoint(a)
    assert allowed(other, nestling.vocab_size)[1].isdisjoint(b)
    assert allowed(first, nestling.vocab_size)[1] >= {*a, *b}


def test_a_token_that_is_not_allowed_is_an_error_of_that_matcher(
    grammars: Grammars, nestling: Tokenizer
) -> None:
    good = grammars.matcher(StructuredOutput(regex="[0-9]+"))
    bad = good.copy()
    bad.take(nestling.encode("word"))
    may_end, bits = masks([bad, good], nestling.vocab_size)
    assert bad.error
    assert "\n" not in bad.error
    assert not may_end[0]
    assert not bits[0].any()
    assert good.error is None
    assert bits[1].any()


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_of_the_table_compiles(grammars: Grammars, name: str) -> None:
    grammars.matcher(StructuredOutput(json=SCHEMAS[name]))


@pytest.mark.parametrize("pattern", REGEXES)
def test_every_expression_of_the_table_compiles(grammars: Grammars, pattern: str) -> None:
    grammars.matcher(StructuredOutput(regex=pattern))


@pytest.mark.parametrize(
    ("structured", "words"),
    [
        (StructuredOutput(json={"type": "bird"}), "bird"),
        (StructuredOutput(json='{"$ref": "#"}'), ""),
        (StructuredOutput(json="{"), "EOF"),
        (StructuredOutput(json="[]"), "object"),
        (StructuredOutput(json={"type": "string", "format": "plumage"}), "plumage"),
        (StructuredOutput(json={"enum": []}), "nsatisfiable"),
        (StructuredOutput(regex="(a"), "nclosed group"),
        (StructuredOutput(regex=r"(a)\1"), "backreference"),
        (StructuredOutput(grammar="begin: x"), "start"),
        (StructuredOutput(grammar="start: word"), "word"),
        (StructuredOutput(grammar='{"grammars": []}'), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_library_refuses_is_one_line_in_its_words(
    grammars: Grammars, structured: StructuredOutput, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        grammars.matcher(structured)
    assert words in caught.value.got
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time_and_the_next_grammar_is_taken(
    grammars: Grammars, name: str
) -> None:
    kind, value = BOMBS[name]
    start = time.monotonic()
    with pytest.raises(RequestError) as caught:
        grammars.matcher(StructuredOutput(**{kind: value}))  # type: ignore[arg-type]
    assert time.monotonic() - start < 5  # of which half a second for the grammar
    assert len(str(caught.value)) < 1000
    grammars.matcher(StructuredOutput(regex="after|" + name))


@pytest.mark.parametrize("name", HEAVY)
def test_what_looks_like_a_bomb_and_is_taken_has_short_steps(
    grammars: Grammars, nestling: Tokenizer, name: str
) -> None:
    kind, value = HEAVY[name]
    matcher = grammars.matcher(StructuredOutput(**{kind: value}))  # type: ignore[arg-type]
    choose = random.Random(0).choice
    for _ in range(40):
        start = time.thread_time()
        _, tokens = allowed(matcher, nestling.vocab_size)
        assert time.thread_time() - start < 0.2
        if not tokens:
            break
        matcher.take([choose(sorted(tokens))])


def test_a_process_that_was_killed_is_replaced(grammars: Grammars) -> None:
    grammars.matcher(StructuredOutput(regex="before"))
    process = grammars._check._child._process
    process.kill()
    process.wait()
    with pytest.raises(RequestError, match="compiles within"):
        grammars.matcher(StructuredOutput(regex="during"))
    grammars.matcher(StructuredOutput(regex="during"))


def test_threads_compile_side_by_side(grammars: Grammars) -> None:
    kinds = [StructuredOutput(regex=f"[a-z]{{{number % 12}}}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        matchers = list(pool.map(grammars.matcher, kinds))
    assert all(matcher.error is None for matcher in matchers)


def test_without_the_library_the_error_says_how_to_get_it(
    nestling: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    own = Grammars(nestling, nestling.vocab_size, nestling.end_ids)
    with pytest.raises(UsageError, match="pip install llguidance"):
        own.matcher(StructuredOutput(regex="a"))
