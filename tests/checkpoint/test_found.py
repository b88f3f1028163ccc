"""Weights under other names, elsewhere, or with others beside them run as transformers runs them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints import make_model
from forms import State, save
from safetensors.torch import load_file, save_file
from tokenizers_ import make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.recut import merge
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import CheckpointError
from gyrfalcon.model.falcon_layout import EMBEDDING, HEAD

BASE = "transformer."
UP = "transformer.h.0.mlp.dense_h_to_4h"
NORM = "transformer.ln_f.weight"
IDS = torch.randint(0, 101, (1, 9), generator=torch.Generator().manual_seed(3))
Config = dict[str, object]
Model = tuple[Config, dict[str, Tensor]]


@pytest.fixture(scope="module")
def model() -> Model:
    """The config and the state of a small 40b-style model, its head tied and not stored."""
    return state_of("40b", num_kv_heads=2)


@pytest.fixture(scope="module")
def biased() -> Model:
    """The same of an rw-style model, whose linear layers have biases."""
    return state_of("rw-1b")


def state_of(variant: str, **settings: object) -> Model:
    shape: dict[str, object] = dict(hidden_size=64, num_attention_heads=8, vocab_size=101)
    made = make_model(variant, **(shape | settings))  # type: ignore[arg-type]
    state = {name: tensor.clone() for name, tensor in made.state_dict().items() if name != HEAD}
    return json.loads(made.config.to_json_string()), state


def ours(folder: Path) -> Tensor:
    with Engine(EngineConfig(model=str(folder), max_len=64)) as engine:
        return engine.logits(IDS)


def theirs(folder: Path) -> Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    with torch.inference_mode():
        return loaded.eval()(IDS).logits


def refusal(folder: Path) -> str:
    """The one line that open_checkpoint() refuses a folder with."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


def without(state: State, *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def bare(state: State) -> dict[str, Tensor]:
    """As FalconModel names its tensors."""
    return {name.removeprefix(BASE): tensor for name, tensor in state.items()}


# What a writer made of the state, and what a note says of it.
STORED: dict[str, tuple[Callable[[State], State], str]] = {
    "the head alone": (
        lambda state: {**without(state, EMBEDDING), HEAD: state[EMBEDDING]},
        f"{HEAD} for {EMBEDDING}",
    ),
    "FalconModel": (bare, f"word_embeddings.weight for {EMBEDDING}"),
    "FalconModel with the head alone": (
        lambda state: {**bare(without(state, EMBEDDING)), HEAD: state[EMBEDDING]},
        f"{HEAD} for {EMBEDDING}",
    ),
    "the prefix twice": (
        lambda state: {BASE + name: tensor for name, tensor in state.items()},
        f"{BASE}{EMBEDDING} for {EMBEDDING}",
    ),
    "the prefix here and there": (
        lambda state: {**without(state, NORM), "ln_f.weight": state[NORM]},
        f"1 tensor stored under another name, such as ln_f.weight for {NORM}",
    ),
    "one tensor twice": (lambda state: {**state, "ln_f.weight": state[NORM].clone()}, ""),
    "a value head": (
        lambda state: {**state, "v_head.summary.weight": torch.ones(1, 64)},
        "v_head.summary.weight: no part of the language model",
    ),
    "a classifier": (lambda state: {**state, "score.weight": torch.ones(2, 64)}, "score.weight"),
    "a tensor of any dtype beside it": (
        lambda state: {**state, "v_head.steps": torch.ones(3, dtype=torch.uint16)},
        "v_head.steps: no part",
    ),
    "biases of zero": (
        lambda state: {**state, f"{UP}.bias": torch.zeros(256), "lm_head.bias": torch.zeros(101)},
        "2 tensors ignored, such as lm_head.bias: biases of zero",
    ),
    "rotary buffers": (
        lambda state: {
            **state,
            "transformer.rotary_emb.inv_freq": torch.ones(4),
            "transformer.h.0.self_attention.rotary_emb.cos_cached": torch.ones(9, 8),
        },
        "2 tensors ignored",
    ),
}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("case", STORED)
def test_what_transformers_finds_is_found_and_said(
    case: str, form: str, model: Model, tmp_path: Path
) -> None:
    change, note = STORED[case]
    folder = save(tmp_path / "hf", model[0], change(model[1]), form)
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)
    assert note in " ".join(open_checkpoint(folder).notes)


def test_an_untied_head_of_falcon_model_keeps_its_place(model: Model, tmp_path: Path) -> None:
    state = {**bare(model[1]), HEAD: model[1][EMBEDDING].flip(0)}
    folder = save(tmp_path / "hf", model[0] | {"tie_word_embeddings": False}, state, "safetensors")
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)


def test_an_untied_embedding_is_not_the_head(model: Model, tmp_path: Path) -> None:
    state = {**without(model[1], EMBEDDING), HEAD: model[1][EMBEDDING]}
    folder = save(tmp_path / "hf", model[0] | {"tie_word_embeddings": False}, state, "safetensors")
    assert f"missing: {EMBEDDING}" in refusal(folder)


def test_the_same_bytes_in_two_dtypes_differ(model: Model, tmp_path: Path) -> None:
    state = model[1] | {"ln_f.weight": model[1][NORM].view(torch.int32).clone()}
    folder = save(tmp_path / "hf", model[0], state, "safetensors")
    assert f"one {NORM}, got two that differ" in refusal(folder)


@pytest.mark.parametrize("norms", [True, False])
def test_biases_that_are_nowhere_stored_are_zero(
    norms: bool, biased: Model, tmp_path: Path
) -> None:
    config, state = biased
    left = {
        name: tensor
        for name, tensor in state.items()
        if not (name.endswith(".bias") and ("layernorm" in name or "ln_f" in name) is norms)
    }
    folder = save(tmp_path / "hf", config, left, "safetensors")
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)
    assert any("taken as zero" in note for note in open_checkpoint(folder).notes)


def test_some_biases_that_are_not_stored_are_missing(biased: Model, tmp_path: Path) -> None:
    config, state = biased
    folder = save(tmp_path / "hf", config, without(state, f"{UP}.bias"), "safetensors")
    assert f"missing: {UP}.bias" in refusal(folder)


CHANGES: dict[str, tuple[dict[str, Tensor], str]] = {
    "a bias": ({f"{UP}.bias": torch.ones(256)}, f"unknown: {UP}.bias"),
    "a bias of the head": ({"lm_head.bias": torch.ones(101)}, "unknown: lm_head.bias"),
    "another layer": (
        {"transformer.h.2.ln_attn.bias": torch.zeros(64)},
        "unknown: transformer.h.2",
    ),
    "an adapter": ({f"{UP}.lora_A.weight": torch.ones(4, 64)}, f"unknown: {UP}.lora_A.weight"),
    "a layer of FalconModel's": ({"h.2.ln_attn.weight": torch.ones(64)}, "unknown: h.2"),
    "a bias of another shape": ({f"{UP}.bias": torch.zeros(7)}, f"unknown: {UP}.bias"),
    "one tensor of another shape twice": (
        {NORM: torch.ones(7), "ln_f.weight": torch.zeros(7)},
        f"{NORM} [7] for [64]",
    ),
    "a prompt": ({"prompt_encoder.embedding": torch.ones(4, 64)}, "unknown: prompt_encoder"),
    "one tensor twice": ({"ln_f.weight": torch.ones(64)}, f"one {NORM}, got two that differ"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_would_change_the_mathematics_is_refused_by_name(
    case: str, model: Model, tmp_path: Path
) -> None:
    extra, said = CHANGES[case]
    line = refusal(save(tmp_path / "hf", model[0], model[1] | extra, "safetensors"))
    assert said in line
    assert "fetch" not in line


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "base_model.model."])
def test_a_prefix_that_transformers_does_not_know_is_named(
    prefix: str, model: Model, tmp_path: Path
) -> None:
    state = {prefix + name: tensor for name, tensor in model[1].items()}
    folder = save(tmp_path / "hf", model[0], state, "safetensors")
    assert f"take {prefix} off" in refusal(folder)


# What is wrong with the index, and what a note says of it; shards are moved as the second says.
Map = dict[str, str]
INDEXES: dict[str, tuple[Callable[[Map], Map], str, str]] = {
    "names a tied head": (lambda home: home | {HEAD: home[NORM]}, "", f"such as {HEAD}"),
    "names a buffer": (
        lambda home: home | {f"{BASE}rotary_emb.inv_freq": home[NORM]},
        "",
        "1 tensor, such as transformer.rotary_emb.inv_freq",
    ),
    "forgets a tensor": (lambda home: {n: f for n, f in home.items() if n != NORM}, "", NORM),
    "names another shard": (lambda home: home | {NORM: home[EMBEDDING]}, "", NORM),
    "begins with ./": (lambda home: {n: f"./{f}" for n, f in home.items()}, "", ""),
    "begins with ./ here and there": (
        lambda home: {n: f"./{f}" if "mlp" in n else f for n, f in home.items()},
        "",
        "",
    ),
    "names a folder": (lambda home: {n: f"a/b/{f}" for n, f in home.items()}, "a/b", ""),
    "doubles a slash": (lambda home: {n: f"a//./{f}" for n, f in home.items()}, "a", ""),
}


def save_shards(folder: Path, model: Model, change: Callable[[Map], Map], inside: str = "") -> Path:
    save(folder, *model, "sharded safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    (folder / inside).mkdir(parents=True, exist_ok=True)
    for shard in folder.glob("*.safetensors"):
        shard.rename(folder / inside / shard.name)
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    return folder


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_is_wrong_about_something_harmless_does_no_harm(
    case: str, model: Model, tmp_path: Path
) -> None:
    change, inside, note = INDEXES[case]
    folder = save_shards(tmp_path / "hf", model, change, inside)
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)
    checkpoint = open_checkpoint(folder)
    notes = " ".join(checkpoint.notes)
    assert len(checkpoint.files) == 3
    assert note in notes
    assert bool(note) == ("the index is wrong" in notes)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "a/../../model.safetensors",
        "/model.safetensors",
        "model\0.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "",
        ".",
        "model.safetensors.json",
    ],
    ids=ascii,
)
def test_an_index_stays_in_its_folder(file: str, model: Model, tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "hf", model, lambda home: home | {NORM: file})
    save_file(model[1], tmp_path / "model.safetensors")
    wanted = f"a weights file beside or below {folder}/model.safetensors.index.json for {NORM}"
    assert f"wanted {wanted}, got {file!r};" in refusal(folder)


def test_a_shard_whose_name_no_disk_takes_is_missing(model: Model, tmp_path: Path) -> None:
    file = "m" * 300 + ".safetensors"
    folder = save_shards(tmp_path / "hf", model, lambda home: home | {NORM: file})
    assert f"index.json names, got no {file};" in refusal(folder)


def test_links_are_followed_wherever_they_lead(model: Model, tmp_path: Path) -> None:
    """A hub's cache holds a link for each file of a model, to a file beside all models' folders."""
    folder = save_shards(tmp_path / "hf" / "snapshots" / "1", model, lambda home: home)
    blobs = tmp_path / "hf" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize("alike", [True, False])
def test_a_tensor_in_two_shards_is_taken_where_both_are_alike(
    alike: bool, model: Model, tmp_path: Path
) -> None:
    folder = save_shards(tmp_path / "hf", model, lambda home: home)
    for shard in sorted(folder.glob("*.safetensors")):
        norm = (
            model[1][NORM] if alike or shard.name.startswith("model-00001") else model[1][NORM] + 1
        )
        save_file(load_file(shard) | {NORM: norm}, shard, metadata={"format": "pt"})
    if alike:
        torch.testing.assert_close(ours(folder), theirs(folder), atol=1e-4, rtol=0)
    else:
        assert f"one {NORM}, got two that differ" in refusal(folder)


def test_a_cut_has_the_models_own_names_and_merges_to_the_same_model(
    model: Model, tmp_path: Path
) -> None:
    state = {**without(bare(model[1]), "word_embeddings.weight"), HEAD: model[1][EMBEDDING]}
    extra = {"v_head.weight": torch.ones(1, 64), "h.0.mlp.dense_h_to_4h.bias": torch.zeros(256)}
    folder = save(tmp_path / "hf", model[0], state | extra, "bin")
    summary = cut(folder, tmp_path / "cut", 3)
    assert "v_head.weight" in " ".join(summary.notes)
    assert verify(tmp_path / "cut").faults == ()
    merge(tmp_path / "cut", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == model[1].keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in model[1].items())


@pytest.mark.usefixtures("brief_limits")
def test_every_command_that_runs_a_model_says_what_was_left_aside(
    model: Model, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = model[1] | {"v_head.weight": torch.ones(1, 64)}
    config = model[0] | {"vocab_size": 509}
    rows = torch.cat([model[1][EMBEDDING]] * 6)[:509]
    folder = make_tokenizer(save(tmp_path / "hf", config, state | {EMBEDDING: rows}, "bin"))
    text = tmp_path / "text.txt"
    text.write_text("A white falcon of the north.")
    out = str(tmp_path / "out")
    for words in (
        ["generate", "--prompt", "A falcon", "--max-new-tokens", "2"],
        ["speed", "--in", "4", "--out", "2", "--repeats", "1"],
        ["mmlu", "-d", str(exam_folder), "-o", out, "--shots", "0"],
        ["perplexity", str(text)],
        ["precision", "--reference", "fp32"],
        ["inspect"],
        ["cut", str(tmp_path / "cut"), "-w", "1"],
    ):
        capsys.readouterr()
        main([words[0], str(folder), *words[1:], "--json", str(tmp_path / f"{words[0]}.json")])
        said = capsys.readouterr()
        assert "v_head.weight: no part of the language model" in said.out + said.err, words[0]


# Tensors that hold their numbers otherwise than side by side, or none at all.
ODD: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "sparse": (Tensor.to_sparse, "layout sparse_coo"),
    "CSR": (Tensor.to_sparse_csr, "layout sparse_csr"),
    "BSR": (lambda tensor: tensor.to_sparse_bsr((2, 2)), "layout sparse_bsr"),
    "meta": (lambda tensor: tensor.to("meta"), "device meta"),
    "nested": (lambda tensor: torch.nested.nested_tensor(list(tensor)), "nested"),
    "jagged": (
        lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
        "nested",
    ),
    "quantised": (
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "torch.qint8",
    ),
    "integer": (lambda tensor: tensor.to(torch.int8), "torch.int8"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
    "float8": (lambda tensor: tensor.to(torch.float8_e5m2), "torch.float8_e5m2"),
    "a number": (lambda tensor: 3, "a int and no tensor"),
}


# All in both formats, but for what torch itself cannot read back in the old one.
ODD_FORMS = [
    (case, old)
    for case in ODD
    for old in (False, True)
    if not (old and case in ("nested", "float8"))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "old"), ODD_FORMS)
def test_a_bins_odd_tensor_is_refused_by_name_where_it_is_needed(
    case: str, old: bool, model: Model, tmp_path: Path
) -> None:
    change, said = ODD[case]
    folder = save(tmp_path / "hf", *model, "bin")
    odd = change(model[1][f"{UP}.weight"])
    write = partial(
        torch.save, f=folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old
    )
    write(model[1] | {f"{UP}.weight": odd})
    line = refusal(folder)
    assert f"{UP}.weight" in line
    assert said in line
    write(model[1] | {"v_head.weight": odd})
    assert "v_head.weight" in " ".join(open_checkpoint(folder).notes)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda tensor: tensor.t().contiguous().t(),
    "every other column": lambda tensor: tensor.repeat_interleave(2, 1)[:, ::2],
    "a slice": lambda tensor: torch.cat([tensor, tensor])[3 : 3 + len(tensor)].roll(3, 0),
    "negated": lambda tensor: torch._neg_view(-tensor),
    "a parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_bins_view_has_the_values_that_it_shows(case: str, model: Model, tmp_path: Path) -> None:
    state = {
        name: VIEWS[case](tensor) if tensor.dim() == 2 else tensor
        for name, tensor in model[1].items()
    }
    folder = save(tmp_path / "hf", model[0], state, "bin")
    cut(folder, tmp_path / "cut", 2)
    for name, tensor in model[1].items():
        assert torch.equal(open_checkpoint(tmp_path / "cut").source.read(name), tensor)


@pytest.mark.parametrize("name", ["state_dict", "model", "module"])
def test_a_training_checkpoints_inner_dict_is_named(
    name: str, model: Model, tmp_path: Path
) -> None:
    folder = save(tmp_path / "hf", *model, "bin")
    torch.save({name: model[1], "epoch": 3}, folder / "pytorch_model.bin")
    assert f"save what is under '{name}' alone" in refusal(folder)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "I4", "U16", "F8_E4M3FNUZ", "C64"])
def test_a_dtype_that_is_not_computed_with_is_named_with_its_tensor(
    dtype: str, model: Model, tmp_path: Path
) -> None:
    folder = save(tmp_path / "hf", *model, "safetensors")
    relabel(folder / "model.safetensors", f"{UP}.weight", dtype)
    line = refusal(folder)
    assert f"{UP}.weight" in line
    assert f"a tensor of dtype {dtype}" in line
    save_file(model[1] | {"v_head.weight": torch.ones(64)}, folder / "model.safetensors")
    relabel(folder / "model.safetensors", "v_head.weight", dtype)
    torch.testing.assert_close(ours(folder), ours(save(tmp_path / "plain", *model, "bin")))


def relabel(path: Path, name: str, dtype: str) -> None:
    """Gives a tensor another dtype in the header, and leaves its bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
