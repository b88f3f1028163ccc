"""Thousands of samples and huge prompts cost what they must, and no more: work is counted in Python's
instructions, not in seconds.
"""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tokenizers
from engines import make_engine, small
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.cli.main import main
from gyrfalcon.errors import PromptTooLong
from gyrfalcon.text.tokenizer import Tokenizer

ENGINE = str(Path("gyrfalcon", "engine"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


def instructions(work: Callable[[], object]) -> int:
    """How many Python instructions of the engine's files are executed."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if ENGINE not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def cost_of(engine: Engine, n: int, *, of_abort: bool) -> int:
    """Of an abort of n samples, or of a step that they wait for."""
    request = engine.add([30], SamplingParams(max_new_tokens=4, n=n, ignore_eos=True))
    engine.step()
    cost = 0 if of_abort else instructions(engine.step)
    aborting = instructions(lambda: engine.abort(request))
    assert not engine.has_work
    return aborting if of_abort else cost


def test_aborting_many_samples_is_linear_in_their_number(folder: Path) -> None:
    with make_engine(folder, max_sequences=4) as engine:
        few, many = (cost_of(engine, n, of_abort=True) for n in (200, 800))
        assert few > 200  # the count sees what is done
        assert many < 5 * few


def test_a_step_costs_the_same_however_many_samples_wait(folder: Path) -> None:
    with make_engine(folder, max_sequences=4) as engine:
        few, many = (cost_of(engine, n, of_abort=False) for n in (200, 800))
        assert many < 1.5 * few


def test_an_abort_gives_back_all_cache_and_leaves_others_alone(folder: Path) -> None:
    with make_engine(folder, max_sequences=3) as engine:
        free = engine._core.scheduler.allocator.num_free
        other = engine.add([31], SamplingParams(max_new_tokens=3, ignore_eos=True))
        request = engine.add([30], SamplingParams(max_new_tokens=9, n=8, ignore_eos=True))
        engine.step()
        engine.abort(request)
        deltas = []
        while engine.has_work:
            deltas += engine.step()
        assert {delta.request_id for delta in deltas} == {other}
        assert engine._core.scheduler.allocator.num_free == free


@pytest.mark.parametrize("way", ["engine", "command"])
def test_a_huge_prompt_is_refused_before_it_is_tokenised(
    way: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the falcon " * 100_000
    (tmp_path / "prompts").write_text(text)
    with make_engine(folder) as engine:
        tracemalloc.start()
        try:
            if way == "engine":
                with pytest.raises(PromptTooLong, match="or more; shorten it or raise max_len"):
                    engine.generate(text)
                assert tracemalloc.get_traced_memory()[1] < 10 * len(text)
        finally:
            tracemalloc.stop()
    if way == "command":
        words = ["generate", str(folder), "--prompt-file", str(tmp_path / "prompts")]
        assert main([*words, "--max-len", "64"]) == 2
        assert "or more; shorten it or raise --max-len\n" in capsys.readouterr().err


def test_a_text_has_never_fewer_tokens_than_it_is_refused_for(
    data: Callable[[str], Path],
) -> None:
    tokenizer = Tokenizer.load(data("falcon-tokenizer"))
    texts = [
        "=" * 5000,
        " " * 5000,
        "\x00\x01" * 999,
        "\N{FALLEN LEAF}é\u4e2d" * 99,
        "a1" * 999,
        "",
    ]
    for text in texts:
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens("=" * 5000) > 50


@pytest.mark.parametrize("dropping", ["normalizer", "words", "added"])
def test_what_may_leave_text_out_is_not_counted(dropping: str, tmp_path: Path) -> None:
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    library = tokenizers.Tokenizer(models.BPE(letters, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    eager = dropping == "added"
    library.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", lstrip=eager)])
    library.save(str(tmp_path / "tokenizer.json"))
    text = " " * 1000 + "<|endoftext|>"
    if not eager:
        assert Tokenizer.load(tmp_path).least_tokens(text) > 70
    if dropping == "normalizer":
        library.normalizer = normalizers.Strip()
    if dropping == "words":
        split = pre_tokenizers.Split(" ", behavior="removed")
        library.pre_tokenizer = pre_tokenizers.Sequence([split, library.pre_tokenizer])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text)) < 70


def test_advice_on_length_can_be_followed(folder: Path, tmp_path: Path) -> None:
    with make_engine(folder, max_len=64) as engine:
        assert engine.length_advice("shorten it") == "shorten it or raise `max_len`"
    with make_engine(folder, max_len=2048) as engine:  # all of the model's positions
        assert engine.length_advice("shorten it") == "shorten it"
        block_bytes = engine._core.pool.layers[0].k[:1].nbytes * 2 * 2
    with make_engine(folder, max_len=None, cache_memory=block_bytes * 20) as engine:
        assert engine.length_advice("shorten it") == "shorten it or raise `cache_memory`"
    alibi = make_tokenizer(small(tmp_path, "rw-1b"))
    with make_engine(alibi, max_len=2048) as engine:
        assert engine.length_advice("shorten it") == "shorten it or raise `max_len`"
