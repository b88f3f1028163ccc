"""Text to ids and back, whole and streamed."""

import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers_ import make_tokenizer

from gyrfalcon.errors import CheckpointError, RequestError
from gyrfalcon.text.detokenizer import Detokenizer, StopFinder, StopStrings, StopTable
from gyrfalcon.text.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
REAL = {"falcon": "falcon-tokenizer", "gpt-2": "gpt2-tokenizer"}
Data = Callable[[str], Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module", params=list(REAL))
def real(request: pytest.FixtureRequest, data: Data) -> tuple[str, Tokenizer]:
    return request.param, Tokenizer.load(data(REAL[request.param]))


def vectors(data: Data, name: str) -> list[tuple[str, list[int]]]:
    """The texts, each followed by a separator line, and the ids of each, one line a text."""
    path = data(f"tokenizer-vectors/ggml-vocab-{name}.gguf.inp")
    texts = path.read_bytes().decode().split(SEPARATOR)
    assert texts.pop() == ""
    ids = [
        [int(i) for i in line.split()] for line in path.with_suffix(".out").read_text().splitlines()
    ]
    assert len(texts) == len(ids) == 46
    return list(zip(texts, ids, strict=True))


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


def random_ids(chance: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Any ids, single bytes and special tokens often among them, so that most are no valid UTF-8."""
    top = [tokenizer.vocab_size, 300, 12]
    return [chance.randrange(chance.choice(top)) for _ in range(chance.randrange(40))]


def test_all_published_vectors_are_reproduced(real: tuple[str, Tokenizer], data: Data) -> None:
    name, tokenizer = real
    for text, ids in vectors(data, name):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == streamed(tokenizer, ids) == text


def test_the_end_of_text_is_known_by_its_name(real: tuple[str, Tokenizer]) -> None:
    name, tokenizer = real
    assert (*tokenizer.end_ids, tokenizer.vocab_size) == {
        "falcon": (11, 65024),
        "gpt-2": (50256, 50257),
    }[name]
    assert tokenizer.encode("a<|endoftext|>b")[1:-1] == [*tokenizer.end_ids]
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b")) == "ab"
    assert (
        tokenizer.decode(tokenizer.encode("a<|endoftext|>b"), skip_special=False)
        == "a<|endoftext|>b"
    )


def test_exam_answers_are_single_tokens(data: Data) -> None:
    tokenizer = Tokenizer.load(data(REAL["falcon"]))
    assert [tokenizer.encode(f" {letter}") for letter in "ABCD"] == [[317], [341], [319], [361]]


def test_decoding_equals_the_library_whole_and_streamed(
    real: tuple[str, Tokenizer], data: Data
) -> None:
    name, tokenizer = real
    folder = data(REAL[name])
    if name == "falcon":
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        library = tokenizers.Tokenizer(
            tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        )
        library.decoder = tokenizers.decoders.ByteLevel()
        library.add_special_tokens(["<|endoftext|>"])
    chance = random.Random(7)
    for _ in range(1500):
        ids = random_ids(chance, tokenizer)
        assert tokenizer.decode(ids) == streamed(tokenizer, ids) == library.decode(ids)
        assert tokenizer.decode(ids, skip_special=False) == library.decode(
            ids, skip_special_tokens=False
        )


def test_a_character_split_between_tokens_is_never_half_shown(tiny: Tokenizer) -> None:
    text = "né 🦙 日本"
    ids = tiny.encode(text)
    assert len(ids) > len(text)
    detokenizer = Detokenizer(tiny)
    pieces = [detokenizer.push(i) for i in ids]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_becomes_one_replacement(tiny: Tokenizer) -> None:
    ids = tiny.encode("a🦙")[:-1]
    detokenizer = Detokenizer(tiny)
    assert "".join(map(detokenizer.push, ids)) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_ids_without_a_meaning_give_no_text(tiny: Tokenizer) -> None:
    ids = [*tiny.encode("ab"), tiny.vocab_size, 10**9, -1]
    assert tiny.decode(ids) == streamed(tiny, ids) == "ab"
    assert tiny.token_bytes(tiny.vocab_size) == b""


def test_the_bytes_of_tokens_join_to_the_bytes_of_the_text(tiny: Tokenizer) -> None:
    text = "Größe:\t3 µm\n" + "".join(map(chr, range(32, 400)))
    assert b"".join(map(tiny.token_bytes, tiny.encode(text))) == text.encode()


def test_half_a_surrogate_pair_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        tiny.encode("a\ud83e")


@pytest.mark.parametrize("text", [5, None, b"a", ["a"]], ids=repr)
def test_what_is_no_text_is_refused_by_what_it_is(text: Any, tiny: Tokenizer) -> None:
    with pytest.raises(RequestError, match=rf"wanted text, got {re.escape(repr(text))};"):
        tiny.encode(text)


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(make_tokenizer(tmp_path) / "tokenizer.json"))
    plain = library.encode("A gyrfalcon is large.").ids
    library.enable_truncation(3)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("A gyrfalcon is large.") == plain


def test_added_tokens_with_letters_outside_the_byte_alphabet_keep_their_text(
    tmp_path: Path,
) -> None:
    library = tokenizers.Tokenizer.from_file(str(make_tokenizer(tmp_path) / "tokenizer.json"))
    library.add_tokens(["two words", "日本"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("in two words 日本!")
    assert {tokenizer.vocab_size - 2, tokenizer.vocab_size - 1} <= set(ids)
    assert (
        tokenizer.decode(ids)
        == streamed(tokenizer, ids)
        == library.decode(ids)
        == "in two words 日本!"
    )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*neither"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Tokenizer.load(tmp_path / "missing")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_tokenizer_is_refused(share: float, tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="fetch or write the file again"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_vocabulary_with_marks_at_the_ends_of_words_is_refused(name: str, tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"][name] = ""  # as GPT-2's has it
    path.write_text(json.dumps(whole))
    assert Tokenizer.load(tmp_path).encode("a")
    whole["model"][name] = "s"
    path.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=f"byte-level BPE in .* one with the {name} 's'"):
        Tokenizer.load(tmp_path)


def test_a_merge_of_unknown_tokens_is_refused(tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"].append(["日", "本"])
    path.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    )
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="byte-level BPE"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_may_know_no_end_of_text(tmp_path: Path) -> None:
    path = make_tokenizer(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end_ids == ()
    assert tokenizer.decode(tokenizer.encode("a<|end|>b")) == "ab"


def test_gpt2_files_without_their_merges_are_refused(tmp_path: Path, data: Data) -> None:
    shutil.copyfile(data(REAL["gpt-2"]) / "vocab.json", tmp_path / "vocab.json")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        Tokenizer.load(tmp_path)


def test_the_tiny_tokenizer_is_the_same_each_time(tmp_path: Path) -> None:
    first = make_tokenizer(tmp_path / "a")
    second = make_tokenizer(tmp_path / "b")
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.load(first)
    assert (tokenizer.vocab_size, tokenizer.end_ids) == (509, (11,))


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The definition: at the first letter that completes a stop string, drop the longest such string."""
    for end in range(1, len(text) + 1):
        found = max((len(stop) for stop in stops if text[:end].endswith(stop)), default=0)
        if found:
            return text[: end - found], True
    return text, False


def finder_of(stops: Sequence[str], hidden: frozenset[str] = frozenset()) -> StopFinder:
    return StopFinder([StopTable(stop, hidden) for stop in stops])


def run_finder(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    finder, shown, stopped = finder_of(stops), "", False
    for piece in pieces:
        text, stopped = finder.push(piece)
        shown += text
    return shown + finder.flush(), stopped


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("aaab", ["aab"], "a"),
        ("ababac!", ["abac"], "ab"),
        ("one\nUser: two", ["\nUser"], "one"),
        ("abcd", ["abcd", "bc"], "a"),
        ("xabc", ["c", "abc"], "x"),
        ("no stop", ["stop!"], "no stop"),
        ("", ["a"], ""),
        ("a", [], "a"),
    ],
)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(
    text: str, stops: list[str], shown: str
) -> None:
    for pieces in ([text], list(text), [text[:2], text[2:]]):
        assert run_finder(pieces, stops) == (shown, shown != text)


def test_stop_strings_are_found_however_the_text_is_cut() -> None:
    chance = random.Random(3)
    for _ in range(3000):
        letters = "ab" if chance.random() < 0.7 else "abc"
        stops = [
            "".join(chance.choices(letters, k=chance.randint(1, 5)))
            for _ in range(chance.randint(0, 3))
        ]
        text = "".join(chance.choices(letters, k=chance.randrange(16)))
        borders = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
        assert run_finder(pieces, stops) == cut_at(text, stops), (pieces, stops)


def test_a_stop_string_is_found_across_hidden_letters_that_it_does_not_hold() -> None:
    chance, hidden = random.Random(4), frozenset("!?")
    for _ in range(3000):
        stops = ["".join(chance.choices("ab!?", k=chance.randint(1, 4))) for _ in range(3)]
        text = "".join(chance.choices("aab!?", k=chance.randrange(12)))
        finder, shown, stopped = finder_of(stops, hidden), "", False
        for letter in text:
            given, stopped = finder.push(letter)
            shown += given
        shown += finder.flush()
        ends = [
            (end, begin)
            for end in range(1, len(text) + 1)
            for stop in stops
            for begin in range(end)
            if text[begin] in stop and text[end - 1] in stop
            if "".join(c for c in text[begin:end] if c in stop or c not in hidden) == stop
        ]
        assert (shown, stopped) == ((text[: min(ends)[1]], True) if ends else (text, False))


def test_only_what_could_begin_a_stop_string_is_held_back() -> None:
    finder = finder_of(["\nUser", "END"])
    assert finder.push("Hello\n") == ("Hello", False)
    assert finder.push("Us") == ("", False)
    assert finder.push("e E") == ("\nUse ", False)
    assert finder.push("N") == ("", False)
    assert finder.flush() == "EN"


def test_nothing_follows_a_stop_string() -> None:
    finder = finder_of(["b"])
    assert finder.push("abc") == ("a", True)
    assert finder.push("more") == ("", True)
    assert finder.flush() == ""


def test_stop_strings_are_found_in_linear_time() -> None:
    finder, pushes, lines = finder_of(["a" * 2000 + "b"]), 4000, 0

    def count(*_: object) -> Any:
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    for _ in range(pushes):
        finder.push("a")
    sys.settrace(before)
    assert lines < 50 * pushes


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="stop"):
        StopStrings(["a", ""])
