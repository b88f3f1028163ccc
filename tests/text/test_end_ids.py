"""Where a text ends: by every file that names an end, in a folder, a cut and what is merged of it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from engines import make_engine
from scripted import make_scripted
from tokenizers_ import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from gyrfalcon import SamplingParams
from gyrfalcon.cli.main import main
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.recut import merge, recut
from gyrfalcon.errors import CheckpointError, RequestError
from gyrfalcon.request import FinishReason
from gyrfalcon.text.detokenizer import StopStrings
from gyrfalcon.text.end_ids import find_ends
from gyrfalcon.text.tokenizer import Tokenizer

Settings = Mapping[str, object]

IM_START, IM_END = 509, 510
FLAGS = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
ADDED = {
    "added_tokens_decoder": {
        str(IM_START): {"content": "<|im_start|>", "special": True, **FLAGS},
        str(IM_END): {"content": "<|im_end|>", "special": True, **FLAGS},
    }
}
ANSWER, BEYOND = "A child left.", "Xy🦅 zone, 7 jumps!"  # no token comes twice
ENDS_AT_11 = {"bos_token_id": 11, "eos_token_id": 11}


def change(path: Path, **settings: object) -> None:
    """Sets fields of a JSON file; None removes one."""
    whole = (json.loads(path.read_text()) if path.exists() else {}) | settings
    path.write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes an answer, <|im_end|>, more text and <|endoftext|>; only the last of these
    is an end by its files."""
    folder = make_tokenizer(tmp_path_factory.mktemp("chatml"))
    change(folder / "tokenizer_config.json", **ADDED)
    encode = Tokenizer.load(folder).encode
    make_scripted(folder, 511, [*encode(ANSWER), IM_END, *encode(BEYOND), 11])
    return folder


@pytest.fixture
def folder(chatml: Path, tmp_path: Path) -> Path:
    return shutil.copytree(chatml, tmp_path / "model")


def greedy_of_transformers(folder: Path, input_ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    mask = torch.ones_like(input_ids)
    made: torch.Tensor = model.generate(input_ids, attention_mask=mask, max_new_tokens=24)
    return made


FILES: dict[str, dict[str, Settings]] = {
    "tokenizer_config.json": {"tokenizer_config.json": {"eos_token": "<|im_end|>"}},
    "generation_config.json": {"generation_config.json": {"eos_token_id": IM_END}},
    "a list": {"generation_config.json": {"eos_token_id": [IM_END, 11], "pad_token_id": 7}},
    "config.json alone": {
        "config.json": {"eos_token_id": [IM_END]},
        "generation_config.json": {"eos_token_id": None},
    },
}


@pytest.mark.parametrize("files", FILES.values(), ids=list(FILES))
@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary"])
def test_a_text_ends_at_the_mark_that_any_file_names(
    files: Mapping[str, Settings], special: bool, folder: Path
) -> None:
    added = json.loads(json.dumps(ADDED))
    added["added_tokens_decoder"][str(IM_END)]["special"] = special
    change(folder / "tokenizer_config.json", **added)
    for name, settings in files.items():
        change(folder / name, **settings)
    with make_engine(folder) as engine:
        answer = engine.tokenizer.encode(ANSWER)
        [output] = engine.generate(answer[:1])
        streamed = list(engine.stream(answer[:1]))
        [beyond] = engine.generate(answer[:1], SamplingParams(max_new_tokens=24, ignore_eos=True))
    assert output.text == "".join(delta.text for delta in streamed) == ANSWER[1:]
    assert output.output_ids == (*answer[1:], IM_END)
    assert output.finish_reason is FinishReason.STOP
    assert beyond.text.startswith(ANSWER[1:] + BEYOND)
    assert "<|" not in beyond.text


@pytest.mark.parametrize("name", ["generation_config.json", "a list", "no generation_config.json"])
def test_rows_end_and_are_filled_as_in_transformers(name: str, folder: Path) -> None:
    for file, settings in FILES.get(name, {}).items():
        change(folder / file, **settings)
    if name not in FILES:
        (folder / "generation_config.json").unlink()
        change(folder / "config.json", eos_token_id=IM_END, pad_token_id=8)
    with make_engine(folder) as engine:
        answer = engine.tokenizer.encode(ANSWER)
        beyond = engine.tokenizer.encode(BEYOND)
        input_ids = torch.tensor([[answer[0]], [answer[-3]], [beyond[2]]])
        made = engine.generate_ids(input_ids, max_new_tokens=24)
    expected = greedy_of_transformers(folder, input_ids[:2])
    assert made[:2, : expected.shape[1]].equal(expected)
    fill = {"a list": 7, "no generation_config.json": 8}.get(name, IM_END)
    assert (made[:2, expected.shape[1] :] == fill).all()
    assert made[2, 1 + len(beyond) - 3 :].tolist()[:2] == [11, fill]  # <|endoftext|> ends it, too


def test_a_note_says_where_transformers_would_go_on(folder: Path) -> None:
    with make_engine(folder) as engine:
        assert not engine.notes
    change(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    with make_engine(folder) as engine:
        assert engine.notes == (
            f"a text ends at {IM_END} <|im_end|>, where transformers goes on:"
            " generation_config.json names 11 <|endoftext|>",
        )
    change(folder / "generation_config.json", eos_token_id=[11, IM_END])
    with make_engine(folder) as engine:
        assert not engine.notes


@pytest.mark.parametrize(
    ("config", "generation", "with_tokenizer", "vocab_size", "ids"),
    [
        (ENDS_AT_11, None, True, 509, (11,)),
        (ENDS_AT_11, {"eos_token_id": [5, 11, 7, 5]}, True, 509, (5, 11, 7)),
        ({"eos_token_id": 7}, {"eos_token_id": None}, True, 509, (7, 11)),
        ({"eos_token_id": 509}, {"eos_token_id": [-1, 7]}, True, 509, (7, 11)),
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": 2}, True, 509, (11,)),
        ({"eos_token_id": [1, 2, 3]}, None, True, 509, (3, 11)),
        ({"bos_token_id": 1, "eos_token_id": 2}, None, False, 65024, (11,)),
        ({"bos_token_id": 1, "eos_token_id": 2}, None, False, 50304, (50256,)),
        ({"eos_token_id": 7}, {"bos_token_id": 1, "eos_token_id": [2, 7]}, False, 65024, (7,)),
        ({"eos_token_id": 2}, {"eos_token_id": 2}, False, 65024, (2,)),
        ({"bos_token_id": 1, "eos_token_id": 50256}, None, False, 50304, (50256,)),
        ({}, None, False, 509, (11,)),
    ],
)
def test_the_ends_are_those_of_all_files_but_for_the_first_releases_mistake(
    config: Settings,
    generation: Settings | None,
    with_tokenizer: bool,
    vocab_size: int,
    ids: tuple[int, ...],
    tmp_path: Path,
) -> None:
    tokenizer = Tokenizer.load(make_tokenizer(tmp_path)) if with_tokenizer else None
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found = find_ends(tmp_path, config, vocab_size, tokenizer)
    assert found.ids == ids
    assert found.fill == ids[0]


def test_a_vocabulary_may_really_have_its_end_at_2(tmp_path: Path) -> None:
    whole = (make_tokenizer(tmp_path) / "tokenizer.json").read_text()
    whole = whole.replace(">>INTRODUCTION<<", "</s>").replace("<|endoftext|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(whole)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    stated = {"bos_token_id": 1, "eos_token_id": 2}
    assert find_ends(tmp_path, stated, 509, tokenizer).ids == (2,)
    none = find_ends(tmp_path, {}, 509, tokenizer)
    assert none.ids == ()
    assert none.notes[0].startswith("no file names a token that ends a text")


@pytest.mark.parametrize("value", ["11", True, 11.5, [11, None], {"id": 11}], ids=str)
@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_an_end_that_is_no_id_is_refused(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"token ids for {name} in config\.json"):
        find_ends(tmp_path, {name: value}, 509, None)
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(CheckpointError, match=rf"for {name} in generation_config\.json"):
        find_ends(tmp_path, {}, 509, None)


@pytest.mark.parametrize("value", [[""], [5], "\ud800", {"a": 1}, True], ids=repr)
def test_a_stop_string_that_is_no_text_is_refused(value: object, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"stop_strings": value}))
    with pytest.raises(CheckpointError, match=r"texts for stop_strings in generation_config\.json"):
        find_ends(tmp_path, {}, 509, None)


@pytest.mark.parametrize("stops", ["left", [" Xy", "t."]], ids=str)
def test_the_stop_strings_of_a_model_end_a_text_as_in_transformers(
    stops: str | list[str], folder: Path
) -> None:
    change(folder / "generation_config.json", stop_strings=stops, **ENDS_AT_11, pad_token_id=9)
    with make_engine(folder) as engine:
        first = engine.tokenizer.encode(ANSWER)[:1]
        [output] = engine.generate(first, SamplingParams(stop="never"))
        found = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop in ANSWER]
        assert output.text == ANSWER[1 : ANSWER.index(found[0])]
        assert output.finish_reason is FinishReason.STOP
        [whole] = engine.generate(first, SamplingParams(ignore_eos=True, max_new_tokens=20))
        assert found[0] in whole.text
        assert any(
            "ends before the stop strings of generation_config.json" in n for n in engine.notes
        )
        rows = engine.generate_ids(torch.tensor([first]), max_new_tokens=24)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    theirs = model.generate(
        torch.tensor([first]),
        attention_mask=torch.ones(1, 1, dtype=torch.int64),
        max_new_tokens=24,
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    assert rows[0, : theirs.shape[1]].tolist() == theirs[0].tolist()


def ends_of(folder: Path) -> list[object]:
    """What an engine makes of a folder: text, filled rows, notes."""
    with make_engine(folder, world_size=1) as engine:
        answer = engine.tokenizer.encode(ANSWER)
        [output] = engine.generate(answer[:1])
        rows = engine.generate_ids(torch.tensor([answer[:1]]), max_new_tokens=24)
        return [output.text, rows.tolist(), [note for note in engine.notes if "ends at" in note]]


def test_a_cut_and_what_is_merged_of_it_end_texts_as_their_source(
    folder: Path, tmp_path: Path
) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder=None, eos_token=None)
    change(folder / "added_tokens.json", **{"<|im_start|>": IM_START, "<|im_end|>": IM_END})
    change(folder / "special_tokens_map.json", eos_token="<|im_end|>")
    change(folder / "generation_config.json", eos_token_id=[IM_END], pad_token_id=9)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    source = ends_of(folder)
    assert source[0] == ANSWER[1:]
    cut(folder, tmp_path / "cut", 2)
    recut(tmp_path / "cut", tmp_path / "recut", 1)
    merge(tmp_path / "recut", tmp_path / "merged")
    carried = [
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
    ]
    for made in (tmp_path / "cut" / "tokenizer", tmp_path / "merged"):
        for name in carried:
            assert (made / name).read_bytes() == (folder / name).read_bytes()
    assert ends_of(tmp_path / "cut") == ends_of(tmp_path / "merged") == source


def test_a_cut_without_these_files_ends_texts_by_the_config_in_its_manifest(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", eos_token_id=IM_END, pad_token_id=9)
    cut(folder, tmp_path / "cut", 2)
    assert sorted(path.name for path in (tmp_path / "cut" / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert ends_of(tmp_path / "cut") == ends_of(folder)
    assert ends_of(folder)[0] == ANSWER[1:]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_string_that_is_a_special_token_stops_at_it(chatml: Path, ignore_eos: bool) -> None:
    params = SamplingParams(stop=["never", "<|im_end|>"], ignore_eos=ignore_eos)
    with make_engine(chatml) as engine:
        answer = engine.tokenizer.encode(ANSWER)
        [output] = engine.generate(answer[:1], params)
        assert output.text == ANSWER[1:]
        assert output.output_ids == (*answer[1:], IM_END)
        assert output.finish_reason is FinishReason.STOP
        written = engine.generate(answer[:1], SamplingParams(stop="left"))[0]
        assert written.text == ANSWER[1 : ANSWER.index("left")]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ("<|im_end|>Xy", "child left."),
        ("t.<|im_end|>", "child lef"),
        ("<|im_end|><|im_start|>", "child left.Xy🦅 zone, 7 jumps!"),
        (["<|im_end|>Xz", "<|im_end|>X", "jumps"], "child left."),
        ("!<|endoftext|>", "child left.Xy🦅 zone, 7 jumps"),
        ([".Xy", "<|im_end|>\n"], "child left"),
        (["<|im_start|>\n", "<|im_end|>\n", "t.Xy"], "child lef"),
    ],
    ids=str,
)
def test_a_stop_string_may_have_special_tokens_in_it(
    stop: str | list[str], shown: str, chatml: Path
) -> None:
    with make_engine(chatml) as engine:
        [first] = engine.tokenizer.encode(ANSWER[0])
        [output] = engine.generate([first], SamplingParams(stop=stop))
        streamed = engine.stream([first], SamplingParams(stop=stop))
        assert "".join(delta.text for delta in streamed) == output.text == f" {shown}"
        assert output.finish_reason is FinishReason.STOP


def test_of_special_tokens_that_begin_alike_the_longest_counts(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path)
    change(folder / "tokenizer_config.json", additional_special_tokens=["<|end|>", "<|end|>>"])
    tokenizer = Tokenizer.load(folder)
    marks = StopStrings(["a<|end|>>b", "<|end|>b", "ab"], tokenizer)
    longer = marks.letters[tokenizer.encode("<|end|>>")[-1]]
    with_letters = [table.stop for table in marks.tables[3:]]
    assert with_letters[0] == f"a{longer}b"
    assert [len(stop) for stop in with_letters] == [3, 2]


def test_stop_ids_are_checked_against_the_vocabulary(chatml: Path) -> None:
    with make_engine(chatml) as engine:
        for wrong in (511, -1):
            with pytest.raises(RequestError, match=rf"stop_ids below 511.* got {wrong};"):
                engine.generate([30], SamplingParams(stop_ids=[wrong]))
        assert not engine.has_work


def test_generate_stops_at_ids_and_special_tokens(
    chatml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(chatml), "--prompt", ANSWER[0], "--max-len", "64"]
    assert main([*words, "--stop", "<|im_end|>"]) == 0
    assert capsys.readouterr().out == f"{ANSWER[1:]}\n"
    [left] = Tokenizer.load(chatml).encode(" left")
    assert main([*words, "--stop-id", str(IM_END), "--stop-id", str(left)]) == 0
    assert capsys.readouterr().out == " child\n"
    assert main([*words, "--stop-id", "511"]) == 2
    told = capsys.readouterr().err
    assert "wanted --stop-id below 511" in told
    assert "ready" not in told  # refused before the weights are loaded


def test_a_prompt_with_a_token_that_the_model_lacks_is_refused_by_its_text(folder: Path) -> None:
    change(folder / "tokenizer_config.json", pad_token="[PAD]")
    with make_engine(folder) as engine:
        assert engine.generate("The", SamplingParams(max_new_tokens=1))[0].output_ids
        with pytest.raises(RequestError, match=r"below 511.* got 511 \[PAD\];"):
            engine.generate("The[PAD]")


def test_all_ranks_end_a_text_at_the_same_mark(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[IM_END])
    with make_engine(folder, world_size=2) as engine:
        answer = engine.tokenizer.encode(ANSWER)
        assert engine.generate(answer[:1])[0].text == ANSWER[1:]
        assert engine.generate(answer[:1])[0].output_ids[-1] == IM_END
