"""Every form of checkpoint is read alike; every damaged one is refused in one line that names the damage."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import VARIANTS, make_checkpoint, make_model
from forms import FORMS, State, save

from gyrfalcon.checkpoint.source import open_checkpoint, read_local
from gyrfalcon.cut.cut import cut, is_head_tied
from gyrfalcon.errors import CheckpointError, GyrfalconError
from gyrfalcon.model.falcon_layout import EMBEDDING, HEAD
from gyrfalcon.parallel.shards import share_of

Model = tuple[dict[str, object], dict[str, torch.Tensor]]
WEIGHTS = "model.safetensors"
NORM = "transformer.ln_f.weight"


@pytest.fixture(scope="module")
def model() -> Model:
    """The config and the state of a small 40b-style model, its head tied and not stored."""
    made = make_model(
        "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2, vocab_size=101
    ).bfloat16()
    state = {name: tensor.clone() for name, tensor in made.state_dict().items() if name != HEAD}
    return json.loads(made.config.to_json_string()), state


@pytest.fixture
def folder(tmp_path: Path, model: Model) -> Path:
    return save(tmp_path / "hf", *model, "safetensors")


def refusal(folder: Path) -> str:
    """The one line that open_checkpoint() refuses a folder with."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


def assert_holds(folder: Path, state: State) -> None:
    source = open_checkpoint(folder).source
    assert set(source.names()) == set(state)
    for name, tensor in state.items():
        assert source.dtype(name) == tensor.dtype
        assert torch.equal(source.read(name), tensor), name


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(form: str, tmp_path: Path, model: Model) -> None:
    assert_holds(save(tmp_path / "hf", *model, form), model[1])


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_ranges_are_those_of_the_whole_tensor(form: str, tmp_path: Path, model: Model) -> None:
    source = open_checkpoint(save(tmp_path / "hf", *model, form)).source
    name = "transformer.h.0.mlp.dense_4h_to_h.weight"
    whole = model[1][name]
    assert torch.equal(source.read(name, 0, (range(3, 9),)), whole[3:9])
    assert torch.equal(source.read(name, 1, (range(2, 4), range(7, 8))), whole[:, [2, 3, 7]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_local_parts_of_folder_and_cut_are_the_same(variant: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf", variant, dtype=torch.bfloat16)
    cut(folder, tmp_path / "cut", 3)
    whole, parts = open_checkpoint(folder), open_checkpoint(tmp_path / "cut")
    for ranks in (1, 2, 3, 5):
        for rank in range(ranks):
            share = share_of(whole.config, ranks, rank)
            for spec in whole.layout.tensors:
                expected = whole.source.read(spec.name)
                if spec.dim is not None:
                    own = [index for part in whole.layout.ranges(spec, share) for index in part]
                    expected = expected.index_select(spec.dim, torch.tensor(own))
                assert torch.equal(read_local(whole, spec, share), expected)
                assert torch.equal(read_local(parts, spec, share), expected)


def test_rows_are_mapped_not_read(folder: Path) -> None:
    source = open_checkpoint(folder).source
    rows = source.read(EMBEDDING, 0, (range(5, 9),))
    assert rows.data_ptr() == source.read(EMBEDDING)[5].data_ptr()


def test_what_is_read_can_be_changed_without_changing_the_file(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    open_checkpoint(folder).source.read(EMBEDDING).fill_(7)
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_tied_head_need_not_be_stored(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.has_head
    assert is_head_tied(checkpoint)


@pytest.mark.parametrize("same", [True, False])
def test_a_stored_head_is_seen_and_compared(same: bool, tmp_path: Path, model: Model) -> None:
    config, state = model
    head = state[EMBEDDING].clone()
    if not same:
        head[-1, -1] += 1  # the very last element
    checkpoint = open_checkpoint(save(tmp_path / "hf", config, state | {HEAD: head}, "safetensors"))
    assert checkpoint.has_head
    assert is_head_tied(checkpoint) == same
    assert any(HEAD in note for note in checkpoint.notes)


def test_an_untied_config_needs_its_head(tmp_path: Path, model: Model) -> None:
    config, state = model
    folder = save(tmp_path / "hf", config | {"tie_word_embeddings": False}, state, "safetensors")
    assert f"missing: {HEAD}" in refusal(folder)


@pytest.mark.parametrize("content", ['{"format": "other"}', "[]", "{", ""])
def test_another_programs_manifest_beside_a_config_is_left_alone(
    content: str, folder: Path, model: Model
) -> None:
    (folder / "manifest.json").write_text(content)
    assert_holds(folder, model[1])


@pytest.mark.parametrize("stale", ["bin", "sharded bin"])
def test_safetensors_win_over_a_stale_bin_and_it_is_said(
    stale: str, folder: Path, model: Model
) -> None:
    FORMS[stale](folder, {name: torch.zeros_like(tensor) for name, tensor in model[1].items()})
    assert_holds(folder, model[1])
    assert any("ignored" in note and ".bin" in note for note in open_checkpoint(folder).notes)


def test_old_buffers_are_ignored_with_a_note(tmp_path: Path, model: Model) -> None:
    config, state = model
    buffers = {
        "transformer.h.0.self_attention.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.0.self_attention.masked_bias": torch.tensor(-1e9),
    }
    checkpoint = open_checkpoint(save(tmp_path / "hf", config, state | buffers, "safetensors"))
    assert any("inv_freq" in note or "masked_bias" in note for note in checkpoint.notes)
    assert {spec.name for spec in checkpoint.layout.tensors} == state.keys()


def test_wrong_missing_and_unknown_tensors_are_named_in_one_line(
    tmp_path: Path, model: Model
) -> None:
    config, state = model
    changed = dict(state)
    del changed["transformer.h.1.ln_mlp.bias"]
    changed["transformer.h.2.ln_mlp.bias"] = torch.zeros(64)
    changed[NORM] = torch.zeros(65)
    changed["transformer.ln_f.bias"] = torch.zeros(64, dtype=torch.int8)
    line = refusal(save(tmp_path / "hf", config, changed, "safetensors"))
    assert "missing: transformer.h.1.ln_mlp.bias" in line
    assert "unknown: transformer.h.2.ln_mlp.bias" in line
    assert f"{NORM} [65] for [64]" in line
    assert "transformer.ln_f.bias of torch.int8" in line


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin"])
def test_a_missing_shard_is_named(form: str, tmp_path: Path, model: Model) -> None:
    folder = save(tmp_path / "hf", *model, form)
    shard = next(folder.glob("*-00002-of-00003.*"))
    shard.unlink()
    assert shard.name in refusal(folder)


def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, model: Model) -> None:
    folder = save(tmp_path / "hf", *model, "sharded safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][NORM] = "../model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    assert "../model-00001" in refusal(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.6, 0.999])
def test_a_truncated_file_is_refused(form: str, keep: float, tmp_path: Path, model: Model) -> None:
    folder = save(tmp_path / "hf", *model, form)
    path = next(path for path in folder.iterdir() if path.name != "config.json")
    os.truncate(path, int(path.stat().st_size * keep))
    assert path.name in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_garbage_is_refused(name: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(os.urandom(5000))
    assert name in refusal(folder)


def entry(dtype: str, shape: object, start: object, stop: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [4], 0, 12)},
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)},
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)},
        {"a": entry("F32", [8], 0, 32)},
        {"a": entry("F32", [2], 0, 8)},
        {"a": entry("F32", [-4], 0, -16)},
        {"a": entry("F32", [4], -16, 0)},
        {"a": entry("F32", [4.0], 0, 16)},
        {"a": entry("F31", [4], 0, 12)},
        {"a": entry("F31", [4], 16, 0)},
        {"a": entry("F32", None, 0, 16)},
        {"a": [1, 2]},
        [1, 2],
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(header: object, folder: Path) -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    assert WEIGHTS in refusal(folder)


def test_a_header_longer_than_its_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert f"{1 << 62} B" in refusal(folder)


class Malicious:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(
    zipped: bool, folder: Path, tmp_path: Path
) -> None:
    (folder / WEIGHTS).unlink()
    content = {NORM: Malicious(tmp_path / "was run")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "run code" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    assert "pytorch_model.bin" in refusal(folder)
    assert not (tmp_path / "was run").exists()


def test_a_bin_of_something_else_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "dict of tensors" in refusal(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refusal(folder)


def test_half_a_cut_is_refused(folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path / "cut", 2)
    shutil.copytree(tmp_path / "cut", tmp_path / "lost manifest")
    (tmp_path / "lost manifest" / "manifest.json").unlink()
    (tmp_path / "cut").rename(tmp_path / "stopped.partial")
    (tmp_path / "stopped.partial" / "manifest.json").unlink()
    for name in ("lost manifest", "stopped", "stopped.partial"):
        assert "run the same cut again" in refusal(tmp_path / name)


def test_the_folder_one_is_in_opens_like_any_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(Path(".")).config == open_checkpoint(folder).config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for empty in (".", "", "sub/..", "/"):
        assert "config.json" in refusal(Path(empty))


def test_a_cut_with_a_missing_part_is_refused(folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path / "cut", 2)
    shutil.rmtree(tmp_path / "cut" / "part_model" / "1")
    assert "part_model/1/model.safetensors" in refusal(tmp_path / "cut")


def test_opening_reads_no_tensor_data(tmp_path: Path, model: Model) -> None:
    """A file whose data is a hole of many gigabytes opens at once, and takes no disk."""
    config = model[0] | {"vocab_size": 1 << 27}
    header: dict[str, object] = {}
    end = 0
    for name, tensor in model[1].items():
        shape = [1 << 27, 64] if name == EMBEDDING else list(tensor.shape)
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = entry("BF16", shape, start, end)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert open_checkpoint(folder).source.shape(EMBEDDING) == (1 << 27, 64)


def test_every_error_is_one_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (tmp_path / "nowhere", file, file / "below"):
        with pytest.raises(GyrfalconError):
            open_checkpoint(path)
