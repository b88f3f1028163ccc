"""Added tokens, their names and flags, and what stands around a text: the ids that transformers gives."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tokenizers
from tokenizers_ import make_tokenizer
from transformers import AutoTokenizer

from gyrfalcon.errors import CheckpointError
from gyrfalcon.text.tokenizer import Tokenizer

Data = Callable[[str], Path]
Files = dict[str, Mapping[str, object]]

FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
CHATML = ["<|im_start|>", "<|im_end|>"]


def token(content: str, **flags: bool) -> dict[str, object]:
    """An entry of added_tokens_decoder."""
    names = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": content, **dict.fromkeys(names, False), **flags}


def config(**settings: object) -> Files:
    return {"tokenizer_config.json": {**FAST, **settings}}


FOLDERS: dict[str, Files] = {
    "nothing beside tokenizer.json": {},
    "added_tokens.json": {"added_tokens.json": {"<|im_end|>": 510, "<|im_start|>": 509}},
    "added_tokens.json, one of them the end": config(eos_token="<|im_end|>")
    | {"added_tokens.json": {"<|im_start|>": 509, "<|im_end|>": 510}},
    "added_tokens_decoder": config(
        added_tokens_decoder={
            "509": token("<|im_start|>", special=True),
            "510": token("<|im_end|>", special=True),
        }
    ),
    "ordinary added tokens": config(
        added_tokens_decoder={
            "509": token("<|im_start|>", normalized=True),
            "510": token("<|im_end|>"),
        }
    ),
    "tokens that take the spaces beside them": config(
        added_tokens_decoder={
            "509": token("<|im_start|>", lstrip=True, special=True),
            "510": token("<|im_end|>", rstrip=True),
        }
    ),
    "tokens that are words alone": config(
        added_tokens_decoder={"509": token("falcon", single_word=True), "510": token("<|im_end|>")}
    ),
    "ids with a gap and in another order": config(
        added_tokens_decoder={"700": token("<|im_end|>"), "600": token("<|im_start|>")}
    ),
    "other flags for a token of tokenizer.json": config(
        added_tokens_decoder={"11": token("<|endoftext|>", lstrip=True, rstrip=True)}
    ),
    "named tokens": config(
        bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="[PAD]", image_token="falcon"
    ),
    "a named token with flags": config(
        eos_token=token("<|im_end|>", lstrip=True) | {"__type": "AddedToken"}, pad_token=None
    ),
    "additional special tokens": config(additional_special_tokens=CHATML),
    "extra special tokens, named": config(
        image_token="falcon",
        voice_token=token("[PAD]") | {"__type": "AddedToken"},
        extra_special_tokens={"start_token": "<|im_start|>"},
    ),
    "special_tokens_map.json": config(eos_token="</s>")
    | {
        "special_tokens_map.json": {
            "additional_special_tokens": CHATML,
            "eos_token": {"content": "<|im_end|>", "lstrip": True, "rstrip": True},
            "pad_token": "[PAD]",
        }
    },
    "special_tokens_map.json and added_tokens.json": config()
    | {
        "special_tokens_map.json": {"additional_special_tokens": CHATML, "eos_token": "[PAD]"},
        "added_tokens.json": {"<|im_start|>": 509, "[PAD]": 511, "<|im_end|>": 510},
    },
    "extra tokens in both": config(extra_special_tokens=["[PAD]"])
    | {"special_tokens_map.json": {"extra_special_tokens": ["[PAD]", "<|im_end|>"]}},
    "a token that one file calls special and another does not": config(
        added_tokens_decoder={"0": token(">>TITLE<<", lstrip=True)}, pad_token=">>ANSWER<<"
    ),
    "special tokens in their oldest form": config(
        additional_special_tokens=[token("<|im_end|>") | {"__type": "AddedToken"}, "[PAD]"]
    )
    | {"added_tokens.json": {"<|im_end|>": 509, "[PAD]": 510}},
    "older files beside added_tokens_decoder": config(
        added_tokens_decoder={"509": token("<|im_start|>")}
    )
    | {
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
        "added_tokens.json": {"[PAD]": 510},
    },
    "special tokens in a text are split": config(eos_token="<|im_end|>", split_special_tokens=True),
    "begin tokens that tokenizer.json does not put there": config(
        bos_token="<|endoftext|>", add_bos_token=True, add_prefix_space=True
    ),
    "a class of another model": config(tokenizer_class="LlamaTokenizerFast", eos_token="</s>"),
}

WORDS = [
    *CHATML,
    *("[PAD]", "</s>", "<|endoftext|>", ">>TITLE<<", "falcon", "falcons", "fal", "<|im_", "|>"),
    *(" ", "  ", "\n", "\t", "é", "🦙", "12345", "user", "User:", ".", "!?", "a"),
]
FORMS = ["{}", " {}", "{} ", "  {}  ", "a{}", "{}a", "a {} b", "{}{}", "\n{}\n", "x{}y{} z"]


def texts() -> list[str]:
    """Each word in each form, and drawn ones."""
    chance = random.Random(5)
    drawn = ["".join(chance.choices(WORDS, k=chance.randrange(12))) for _ in range(150)]
    return [form.format(word, word) for form, word in itertools.product(FORMS, WORDS)] + drawn


def write(folder: Path, files: Files) -> Path:
    """Adds files; config.json is what AutoTokenizer begins with."""
    for name, content in ({"config.json": {"model_type": "falcon"}} | files).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def assert_as_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.special_tokens == theirs.special_tokens_map
    for text in texts():
        ids = theirs(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        inner = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, add_special_tokens=False) == inner
        assert tokenizer.decode(ids, skip_special=False) == theirs.decode(ids)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("files", FOLDERS.values(), ids=list(FOLDERS))
def test_a_text_has_the_ids_and_names_that_transformers_gives(files: Files, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    write(tmp_path, files)
    assert_as_transformers(tmp_path, Tokenizer.load(tmp_path))


def test_falcons_own_tokenizer_with_added_tokens_is_that_of_transformers(
    tmp_path: Path, data: Data
) -> None:
    shutil.copy(data("falcon-tokenizer") / "tokenizer.json", tmp_path)
    added = {"65024": token("<|im_start|>", special=True), "65025": token("<|im_end|>")}
    write(tmp_path, config(added_tokens_decoder=added, eos_token="<|im_end|>", pad_token="[PAD]"))
    tokenizer, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    vectors = data("tokenizer-vectors/ggml-vocab-falcon.gguf.inp").read_bytes().decode()
    for text in vectors.split("\n__ggml_vocab_test__\n"):
        for form in ("{}", "<|im_start|>{}<|im_end|>", "<|im_end|> {}[PAD]", "{} <|im_start|>\n{}"):
            asked = form.format(text, text)
            assert tokenizer.encode(asked) == theirs(asked)["input_ids"], asked


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_prefix_space": True},
        {"bos_token": "<|endoftext|>", "add_bos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
        {"bos_token": None, "add_bos_token": True},
        {"additional_special_tokens": CHATML, "unk_token": "falcon"},
    ],
    ids=str,
)
def test_gpt2_files_have_the_ids_that_transformers_gives(
    settings: dict[str, object], tmp_path: Path, data: Data
) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(data("gpt2-tokenizer") / name, tmp_path)
    added = {"<|im_start|>": 50257, "<|im_end|>": 50258}
    write(tmp_path, {"tokenizer_config.json": GPT2 | settings, "added_tokens.json": added})
    assert_as_transformers(tmp_path, Tokenizer.load(tmp_path))


@pytest.mark.parametrize("listed", [{}, {"added_tokens_decoder": {"3": token("falcon")}}], ids=str)
@pytest.mark.parametrize("spaced", [False, True])
def test_a_tokenizer_json_of_gpt2s_class_takes_its_settings(
    spaced: bool, listed: Mapping[str, object], tmp_path: Path
) -> None:
    make_tokenizer(tmp_path)
    settings = {**GPT2, "add_prefix_space": spaced, "eos_token": "<|im_end|>", **listed}
    write(tmp_path, {"tokenizer_config.json": settings})
    assert_as_transformers(tmp_path, Tokenizer.load(tmp_path))


def test_a_begin_token_in_tokenizer_json_begins_every_text(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(make_tokenizer(tmp_path) / "tokenizer.json"))
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 11)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(write(tmp_path, {}))
    assert_as_transformers(tmp_path, tokenizer)
    assert tokenizer.encode("a")[0] == 11


def test_the_end_token_may_have_any_name_that_the_folder_gives_it(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
    (tmp_path / "tokenizer.json").write_text(whole)
    write(tmp_path, config(eos_token="</s>"))
    tokenizer = Tokenizer.load(tmp_path)
    assert_as_transformers(tmp_path, tokenizer)
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.end_ids == (11,)
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "ab"


def write_vocabulary(folder: Path, data: Data) -> None:
    """Falcon's vocabulary in the form of GPT-2's files."""
    model = json.loads((data("falcon-tokenizer") / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))


def test_falcons_vocabulary_without_its_splitting_is_refused(tmp_path: Path, data: Data) -> None:
    write_vocabulary(tmp_path, data)
    for files in ({}, config(eos_token="<|endoftext|>")):
        write(tmp_path, files)
        with pytest.raises(ValueError, match="instantiate"):
            AutoTokenizer.from_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="do not say how a text is split"):
            Tokenizer.load(tmp_path)
    shutil.copy(data("falcon-tokenizer") / "tokenizer.json", tmp_path)
    assert Tokenizer.load(tmp_path).encode(" (12345)") == [204, 19, 10963, 2617, 20]


def test_the_class_of_config_json_counts_where_nothing_else_names_one(
    tmp_path: Path, data: Data
) -> None:
    write_vocabulary(tmp_path, data)
    settings = {"model_type": "falcon", "tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path, {"config.json": settings})
    tokenizer = Tokenizer.load(tmp_path, stated_class="GPT2Tokenizer")
    assert_as_transformers(tmp_path, tokenizer)


def test_a_class_that_splits_otherwise_than_tokenizer_json_is_refused(
    tmp_path: Path, data: Data
) -> None:
    shutil.copy(data("falcon-tokenizer") / "tokenizer.json", tmp_path)
    write(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast"}})
    with pytest.raises(CheckpointError, match=r"got Sequence; write the class"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": 5}),
        ("tokenizer_config.json", {"eos_token": {"lstrip": True}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["a"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "a", "lstrip": 1}}}),
        ("tokenizer_config.json", {"additional_special_tokens": "a"}),
        ("added_tokens.json", {"a": "b"}),
        ("special_tokens_map.json", {"eos_token": {"content": None}}),
    ],
    ids=str,
)
def test_tokens_without_text_or_id_are_refused(
    name: str, content: dict[str, object], tmp_path: Path
) -> None:
    write(make_tokenizer(tmp_path), {name: content})
    with pytest.raises(CheckpointError, match=rf"tokens? in .*{name}"):
        Tokenizer.load(tmp_path)
