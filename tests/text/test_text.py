"""Text as it comes out: whole characters, stop strings, ends of text, with and without a tokenizer."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from engines import make_engine, random_prompt, small
from scripted import make_scripted
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.errors import (
    CheckpointError,
    RequestError,
)
from gyrfalcon.request import FinishReason, Request, Token
from gyrfalcon.text.detokenizer import Detokenizer, StopFinder, StopStrings, TextStream
from gyrfalcon.text.tokenizer import Tokenizer

GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


TEXT = "Xy🦅 zone, 7 jumps!"  # no token comes twice


Scripted = Callable[[str], tuple[Engine, list[int]]]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Engine, list[int]]]:
    """An engine whose model goes on from the first token of a text with the rest and ends it there,
    and the ids of the text."""
    made: dict[str, tuple[Engine, list[int]]] = {}

    def get(text: str) -> tuple[Engine, list[int]]:
        if text not in made:
            folder = make_tokenizer(tmp_path_factory.mktemp("scripted"))
            tokenizer = Tokenizer.load(folder)
            ids = tokenizer.encode(text)
            make_scripted(folder, tokenizer.vocab_size, [*ids, *tokenizer.end_ids])
            made[text] = make_engine(folder), ids
        return made[text]

    return get


@pytest.mark.parametrize("num_samples", [1, 3])
def test_streamed_pieces_joined_are_the_generated_text(folder: Path, num_samples: int) -> None:
    params = SamplingParams(
        max_new_tokens=30, temperature=1.2, seed=2, n=num_samples, ignore_eos=True, stop=["qu", "é"]
    )
    with make_engine(folder) as engine:
        for prompt in ("The falcon", "🦅 was dort steht", random_prompt(20)):
            [output] = engine.generate(prompt, params)
            pieces = list(engine.stream(prompt, params))
            for index, completion in enumerate(output.completions):
                own = [piece for piece in pieces if piece.index == index]
                assert "".join(piece.text for piece in own) == completion.text
                assert tuple(p.token.id for p in own if p.token) == completion.output_ids
                assert own[-1].finish_reason is completion.finish_reason
                assert {piece.finish_reason for piece in own[:-1]} <= {None}


@pytest.mark.slow
def test_the_real_tokenizer_streams_what_it_generates(
    tmp_path: Path, data: Callable[[str], Path]
) -> None:
    for file in data("falcon-tokenizer").iterdir():
        shutil.copy(file, tmp_path)
    small(tmp_path, vocab_size=65024, num_hidden_layers=1)
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=1, ignore_eos=True)
    with make_engine(tmp_path) as engine:
        [output] = engine.generate("Girafatron is obsessed with", params)
        pieces = list(engine.stream("Girafatron is obsessed with", params))
        assert "".join(piece.text for piece in pieces) == output.text
        assert output.text == engine.tokenizer.decode(output.output_ids)
        assert engine.tokenizer.decode(output.prompt_ids) == "Girafatron is obsessed with"


def test_the_model_writes_its_script_and_end_of_text_is_not_in_the_text(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1])
    assert output.text == TEXT[1:]
    assert output.output_ids == (*ids[1:], 11)
    assert output.finish_reason is FinishReason.STOP
    assert output.completions[0].logprobs is None  # nobody asked


def test_ignoring_end_of_text_goes_on_to_the_length(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert output.text.startswith(TEXT[1:])
    assert "endoftext" not in output.text
    assert len(output.output_ids) == 40
    assert output.finish_reason is FinishReason.LENGTH


def test_a_character_split_between_tokens_streams_whole(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    eagle = engine.tokenizer.encode("🦅")
    assert len(eagle) == 4
    pieces = list(engine.stream(ids[:1]))
    assert "�" not in "".join(piece.text for piece in pieces)
    texts = [piece.text for piece in pieces if piece.token and piece.token.id in eagle]
    assert texts == ["", "", "", "🦅"]


def test_decoding_each_token_alone_would_be_seen(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ids = scripted(TEXT)

    def alone(detokenizer: Detokenizer, token_id: int) -> str:
        return engine.tokenizer.decode([token_id])

    monkeypatch.setattr(Detokenizer, "push", alone)
    [output] = engine.generate(ids[:1])
    assert output.text != TEXT[1:]


def test_half_a_character_at_the_end_is_shown_as_one_sign(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(max_new_tokens=3))
    assert output.text == "y�"


def test_a_stop_string_may_end_with_half_a_character(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    params = SamplingParams(max_new_tokens=3, stop="y\ufffd")
    [output] = engine.generate(ids[:1], params)
    assert (output.text, output.finish_reason) == ("", FinishReason.STOP)
    pieces = list(engine.stream(ids[:1], params))
    assert ("".join(one.text for one in pieces), pieces[-1].finish_reason) == (
        "",
        FinishReason.STOP,
    )


@pytest.mark.parametrize("reason", [FinishReason.ABORTED, FinishReason.ERROR])
def test_a_sample_that_was_ended_was_not_stopped_by_its_text(
    folder: Path, reason: FinishReason
) -> None:
    tokenizer = Tokenizer.load(folder)
    params = SamplingParams(stop="\ufffd")
    stream = TextStream(Request(0, (1,), params, seed=0), 0, tokenizer)
    stream.push(Token(tokenizer.encode("🦅")[0]), None)
    delta = stream.push(None, reason)
    assert (delta.text, delta.finish_reason, stream.finish_reason) == ("", reason, reason)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("zon", "y🦅 "),  # tokens z, o, ne
        ("y", ""),  # the text's own beginning
        ("y🦅", ""),
        ("🦅", "y"),
        (["e, 7", "7 j", "zone!"], "y🦅 zon"),
        (["jump", "jump"], "y🦅 zone, 7 "),
        (["zone", "z"], "y🦅 "),  # the first to be complete
        ("!", "y🦅 zone, 7 jumps"),
        ("jumps!?", "y🦅 zone, 7 jumps!"),  # begun, never complete
        ("Xy", "y🦅 zone, 7 jumps!"),  # the prompt does not count
    ],
    ids=str,
)
def test_stop_strings_end_the_text_before_them(
    scripted: Scripted, stop: str | list[str], expected: str
) -> None:
    engine, ids = scripted(TEXT)
    params = SamplingParams(stop=stop)
    [output] = engine.generate(ids[:1], params)
    assert output.text == expected
    assert output.finish_reason is FinishReason.STOP
    pieces = list(engine.stream(ids[:1], params))
    assert "".join(piece.text for piece in pieces) == expected
    assert not engine.has_work
    assert not engine._core.scheduler.has_work  # the ranks were told


@pytest.mark.parametrize("overlapped", [False, True])
def test_nothing_ends_a_text_before_its_least_length(scripted: Scripted, overlapped: bool) -> None:
    engine, ids = scripted(TEXT)
    script = tuple(ids[1:])
    if overlapped:
        engine._take_step = Overlap(engine._core).step
    for least, stop_ids in ((len(script), ()), (8, [ids[7]]), (7, [ids[7]]), (len(script) + 1, ())):
        params = SamplingParams(max_new_tokens=40, min_tokens=least, stop_ids=stop_ids)
        [output] = engine.generate(ids[:1], params)
        assert len(output.output_ids) > least
        ends = {*stop_ids, 11}
        assert ends.isdisjoint(output.output_ids[:least])
        if least == len(script):
            assert output.output_ids == (*script, 11)


@pytest.mark.parametrize(
    ("least", "stop", "expected"),
    [
        (0, "zon", "y🦅 "),
        (1, "y", TEXT[1:]),
        (9, "zon", TEXT[1:]),
        (8, "zon", "y🦅 "),  # z, o, ne: complete behind the eighth
        (9, ["z", ", 7"], "y🦅 zone"),
        (9, ["zone, 7", "o"], "y🦅 "),
    ],
    ids=str,
)
def test_a_stop_string_in_the_first_tokens_is_text(
    scripted: Scripted, least: int, stop: str | list[str], expected: str
) -> None:
    engine, ids = scripted(TEXT)
    params = SamplingParams(min_tokens=least, stop=stop)
    assert engine.generate(ids[:1], params)[0].text == expected
    assert "".join(piece.text for piece in engine.stream(ids[:1], params)) == expected


def test_a_stop_string_that_repeats_counts_from_the_least_length_on() -> None:
    params = SamplingParams(min_tokens=3, stop="aa")
    finder = StopFinder(StopStrings(params.stop_strings).tables)
    shown = [finder.push("a", may_stop=number > 3) for number in range(1, 6)]
    assert shown[:3] == [("", False), ("a", False), ("a", False)]
    assert shown[3] == ("", True)


def test_a_stop_string_ends_one_sample_and_leaves_the_others(folder: Path) -> None:
    params = SamplingParams(
        max_new_tokens=8, temperature=1.0, seed=1, n=6, stop="a", ignore_eos=True
    )
    with make_engine(folder) as engine:
        [output] = engine.generate("The", params)
    reasons = {completion.finish_reason for completion in output.completions}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    assert not any("a" in completion.text for completion in output.completions)


def test_stop_ids_end_the_text_without_their_own(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(stop_ids=[ids[7]]))
    assert output.output_ids == tuple(ids[1:8])
    assert output.text == engine.tokenizer.decode(ids[1:7])
    assert output.finish_reason is FinishReason.STOP


def test_rows_that_end_early_are_filled_with_end_of_text(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    input_ids = torch.tensor([[ids[0]], [ids[-3]]])
    generated = engine.generate_ids(input_ids, max_new_tokens=6)
    assert generated.dtype == torch.int64
    assert generated[0].tolist() == ids[:7]
    assert generated[1].tolist() == [*ids[-3:], 11, 11, 11, 11]
    assert engine.generate_ids(input_ids, max_new_tokens=0).equal(input_ids)


def test_without_a_tokenizer_ids_work_and_text_is_refused(tmp_path: Path) -> None:
    with make_engine(small(tmp_path)) as engine:
        [output] = engine.generate([30, 31], SamplingParams(max_new_tokens=3, ignore_eos=True))
        assert len(output.output_ids) == 3
        assert output.text == ""
        for use in (lambda: engine.generate("text"), lambda: engine.tokenizer):
            with pytest.raises(CheckpointError, match="tokenizer files"):
                use()
        with pytest.raises(RequestError, match="a tokenizer for stop strings"):
            engine.generate([30], SamplingParams(stop="a"))
        assert engine.generate([30], SamplingParams(max_new_tokens=1))[0].output_ids


def test_the_tokenizer_knows_better_than_the_config_which_id_ends_a_text(
    scripted: Scripted, tmp_path: Path
) -> None:
    engine, ids = scripted(TEXT)
    shutil.copytree(engine.config.model, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": 2}  # as the first releases say
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    with make_engine(tmp_path / "copy") as wrong:
        assert wrong.generate(ids[:1]) == engine.generate(ids[:1])


def test_prompts_given_as_text_and_as_its_ids_are_one(folder: Path) -> None:
    with make_engine(folder) as engine:
        ids: Sequence[int] = engine.tokenizer.encode("The falcon")
        params = SamplingParams(max_new_tokens=4)
        text, tokens = (engine.generate(prompt, params)[0] for prompt in ("The falcon", ids))
        prompts: list[str | Sequence[int]] = ["The falcon", ids]
        both = engine.generate(prompts, params)
    assert text.prompt == "The falcon"
    assert tokens.prompt is None
    assert text.prompt_ids == tokens.prompt_ids == tuple(ids)
    assert both == [text, tokens]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("ab", "ab\ufffd"), ("abc", "abc\ufffd"), ("b", "b\ufffd")],
    ids=["ab", "abc", "b"],
)
def test_a_held_beginning_of_a_stop_string_comes_before_half_a_character(
    folder: Path, text: str, shown: str
) -> None:
    """Both are held back until the sample ends at its length."""
    tokenizer = Tokenizer.load(folder)
    half = tokenizer.encode("🦅")[0]
    params = SamplingParams(stop="abcd")
    stream = TextStream(Request(0, (1,), params, seed=0), 0, tokenizer)
    pieces = [stream.push(Token(token), None) for token in [*tokenizer.encode(text), half]]
    pieces.append(stream.push(None, FinishReason.LENGTH))
    assert "".join(piece.text for piece in pieces) == shown
    assert stream.completion().text == shown
