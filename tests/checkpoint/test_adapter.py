"""A LoRA adapter is merged as peft merges it, on any number of ranks, at load and into a cut. The truth is
transformers on weights merged by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import (
    ALPHA,
    EMBEDDING,
    HEAD,
    IDS,
    LINEAR,
    PREFIX,
    RANK,
    SMALL,
    TABLE,
    State,
    assert_equal,
    assert_same,
    changes,
    fresh,
    layers_of,
    logits_of,
    make_pairs,
    merge_by_hand,
    merged_tensors,
    our_logits,
    rslora_scale,
    save_adapter,
    small,
    state_of,
)
from forms import save
from tokenizers_ import make_tokenizer
from torch import Tensor
from transformers import FalconForCausalLM
from worlds import on_engines

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.manifest import Manifest
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cut.calibrate import CalibrationText
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.recut import merge, recut
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import GyrfalconError

pytest_plugins = ["adapter_fixtures"]

# The same numbers as transformers


@pytest.mark.parametrize("variant", ["7b", "40b", "rw-1b"])
def test_logits_equal_those_of_weights_merged_by_hand_on_1_2_and_3_ranks(
    variant: str, tmp_path: Path
) -> None:
    model = fresh(variant)
    model.save_pretrained(tmp_path / "hf")
    pairs = make_pairs(model, layers_of(model, *LINEAR))
    sft = save_adapter(tmp_path / "sft", pairs)
    untouched = logits_of(model)
    expected = logits_of(merge_by_hand(model, changes(pairs)))
    assert (expected - untouched).abs().max() > 1
    for world_size in (1, 2, 3):
        ours = on_engines(world_size, tmp_path / "hf", lambda e: e.logits(IDS), adapter=str(sft))
        assert_same(ours, expected)


def form_default(pairs: State) -> State:
    """Under the names of a training process."""
    return {
        name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"): tensor
        for name, tensor in pairs.items()
    }


def form_plain(pairs: State) -> State:
    return {name.removeprefix(PREFIX): tensor for name, tensor in pairs.items()}


def form_headless(pairs: State) -> State:
    """Of a FalconModel."""
    return {name.replace("transformer.", ""): tensor for name, tensor in pairs.items()}


FORMS: dict[str, Callable[[State], State]] = {
    "as peft saves them": dict,
    "default": form_default,
    "without a prefix": form_plain,
    "of a FalconModel": form_headless,
}


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_adapters_file_is_read(
    form: str, file: str, base: Path, pairs: State, tmp_path: Path
) -> None:
    sft = save_adapter(tmp_path, FORMS[form](pairs), file)
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(base, sft), state_of(expected))


def test_safetensors_are_used_where_a_bin_lies_beside_them_and_a_note_says_so(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    save_adapter(tmp_path, {name: tensor + 1 for name, tensor in pairs.items()}, "bin")
    sft = save_adapter(tmp_path, pairs)
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(base, sft), state_of(expected))
    notes = open_checkpoint(base, str(sft)).notes
    assert "adapter_model.bin is ignored: adapter_model.safetensors is used" in notes


def test_halves_in_bf16_are_multiplied_in_fp32(base: Path, pairs: State, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in pairs.items()}
    sft = save_adapter(tmp_path, half)
    expected = merge_by_hand(small(), changes(half))
    assert_equal(merged_tensors(base, sft), state_of(expected))


def test_rslora_divides_by_the_root_of_the_rank(base: Path, pairs: State, tmp_path: Path) -> None:
    sft = save_adapter(tmp_path, pairs, use_rslora=True)
    expected = merge_by_hand(small(), changes(pairs, rslora_scale()))
    assert_equal(merged_tensors(base, sft), state_of(expected))


def test_patterns_of_ranks_and_alphas_are_matched_as_peft_matches(
    base: Path, tmp_path: Path
) -> None:
    model = small()
    first, second = ("transformer.h.0.mlp.dense_4h_to_h", "transformer.h.1.mlp.dense_4h_to_h")
    wide = make_pairs(model, ["transformer.h.0.self_attention.dense"], rank=6)
    narrow = make_pairs(model, [first, second])
    layers = "|".join(map(str, range(32)))
    settings = dict(
        rank_pattern={rf".*h\.(?:{layers})\..*_(?:query|attention).*": 6, "ense": 99, "0.mlp": 98},
        alpha_pattern={r"\d\.self_attention\.dense": 3, "^h.1.mlp.dense_4h_to_h": 97, first: 20},
    )
    sft = save_adapter(tmp_path, wide | narrow, **settings)  # type: ignore[arg-type]
    added = changes(wide, 3 / 6)
    added |= changes({name: t for name, t in narrow.items() if first in name}, 20 / RANK)
    added |= changes({name: t for name, t in narrow.items() if second in name}, ALPHA / RANK)
    assert_equal(merged_tensors(base, sft), state_of(merge_by_hand(model, added)))


def test_fan_in_fan_out_does_nothing_to_layers_that_lie_as_falcons_do(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    """peft sets it back for a torch.nn.Linear."""
    sft = save_adapter(tmp_path, pairs, fan_in_fan_out=True)
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(base, sft), state_of(expected))


def test_fan_in_fan_out_turns_matrices_that_fit_no_other_way(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    turned = {}
    for name, tensor in pairs.items():
        other = name.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B")
        turned[other] = tensor.t().contiguous()
    sft = save_adapter(tmp_path, turned, fan_in_fan_out=True)
    expected = merge_by_hand(small(), changes(pairs))
    for name, tensor in merged_tensors(base, sft).items():
        torch.testing.assert_close(tensor, state_of(expected)[name])
    with pytest.raises(GyrfalconError, match="wrong: transformer"):
        open_checkpoint(base, str(save_adapter(tmp_path, turned)))


def test_norms_and_biases_that_were_trained_replace_the_models(tmp_path: Path) -> None:
    model = fresh("rw-1b", hidden_size=64, num_attention_heads=4)
    model.save_pretrained(tmp_path / "hf")
    pairs = make_pairs(model, layers_of(model, "dense"))
    bias = "transformer.h.0.self_attention.dense.bias"
    norm = "transformer.ln_f"
    trained = {
        bias: torch.randn(64),
        f"{norm}.weight": torch.rand(64),
        f"{norm}.bias": torch.ones(64),
    }
    saved = {
        f"{PREFIX}{bias.replace('.bias', '.base_layer.bias')}": trained[bias],
        f"{PREFIX}{norm}.modules_to_save.default.weight": trained[f"{norm}.weight"],
        f"{PREFIX}{norm}.bias": trained[f"{norm}.bias"],
    }
    sft = save_adapter(tmp_path / "sft", pairs | saved, bias="lora_only", modules_to_save=["ln_f"])
    expected = merge_by_hand(model, changes(pairs), trained)
    assert_equal(merged_tensors(tmp_path / "hf", sft), state_of(expected))


# Tied heads


def test_a_tied_head_stays_as_it_was_where_only_the_embedding_changes(
    base: Path, tmp_path: Path
) -> None:
    pairs = make_pairs(small(), [EMBEDDING])
    sft = save_adapter(tmp_path, pairs)
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(base, sft), state_of(expected))
    assert_same(our_logits(base, sft), logits_of(expected))


def test_a_tied_embedding_stays_as_it_was_where_only_the_head_changes(
    base: Path, tmp_path: Path
) -> None:
    pairs = make_pairs(small(), ["lm_head"])
    sft = save_adapter(tmp_path, pairs)
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(base, sft), state_of(expected))
    assert_same(our_logits(base, sft), logits_of(expected))


@pytest.mark.parametrize("name", [HEAD, TABLE])
@pytest.mark.parametrize("form", ["{}", "{}.modules_to_save.default", "{}.modules_to_save"])
def test_a_table_of_modules_to_save_replaces_one_of_two_tied_ones(
    name: str, form: str, base: Path, tmp_path: Path
) -> None:
    module = name.removesuffix(".weight")
    new = torch.randn(509, 64)
    saved = {f"{PREFIX}{form.format(module)}.weight": new}
    sft = save_adapter(tmp_path, saved, modules_to_save=[module.split(".")[-1], "embed_tokens"])
    expected = merge_by_hand(small(), {}, {name: new})
    assert_equal(merged_tensors(base, sft), state_of(expected))
    assert_same(our_logits(base, sft), logits_of(expected))


def test_a_table_saved_below_an_adapter_replaces_both_of_two_tied_ones(
    base: Path, tmp_path: Path
) -> None:
    """peft saves the base weights of a head that has an adapter: they are loaded into what both share."""
    pairs, new = make_pairs(small(), ["lm_head"]), torch.randn(509, 64)
    sft = save_adapter(tmp_path, pairs | {f"{PREFIX}lm_head.base_layer.weight": new})
    expected = merge_by_hand(small(), changes(pairs), {TABLE: new, HEAD: new})
    assert_equal(merged_tensors(base, sft), state_of(expected))
    alone = save_adapter(tmp_path / "alone", {f"{PREFIX}{EMBEDDING}.weight": new})
    assert not open_checkpoint(base, str(alone)).has_head
    assert torch.equal(merged_tensors(base, alone)[TABLE], new)


@pytest.mark.parametrize("stored", ["beside the embedding", "once, in a cut"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_equals_the_embedding_is_tied_where_the_config_says_so(
    stored: str, tied: bool, tmp_path: Path
) -> None:
    model = fresh("40b", **SMALL)
    state = state_of(model)
    config = {**json.loads(model.config.to_json_string()), "tie_word_embeddings": tied}
    folder = save(tmp_path / "hf", config, state | {HEAD: state[TABLE].clone()}, "safetensors")
    if stored == "once, in a cut":
        cut(folder, tmp_path / "cut", 1)
        folder = tmp_path / "cut"
    new = torch.randn(509, 64)
    ours = merged_tensors(folder, save_adapter(tmp_path / "sft", {f"{PREFIX}{TABLE}": new}))
    assert torch.equal(ours[TABLE], new)
    assert torch.equal(ours.get(HEAD, ours[TABLE]), new if tied else state[TABLE])


def test_an_untied_head_has_an_adapter_of_its_own(tmp_path: Path) -> None:
    settings = SMALL | dict(tie_word_embeddings=False)
    model = fresh("40b", **settings)
    model.save_pretrained(tmp_path / "hf")
    pairs = make_pairs(model, [EMBEDDING, "lm_head"])
    sft = save_adapter(tmp_path / "sft", pairs)
    expected = merge_by_hand(model, changes(pairs))
    assert_equal(merged_tensors(tmp_path / "hf", sft), state_of(expected))
    assert_same(our_logits(tmp_path / "hf", sft), logits_of(expected))


# Rounded once, on any ranks


def hand_merged(folder: Path, pairs: State, dtype: torch.dtype, base: torch.dtype) -> Path:
    """A checkpoint in `dtype` of a base in `base`, merged in fp32 and rounded once."""
    model = merge_by_hand(small().to(base).float(), changes(pairs)).to(dtype)
    model.save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("stored", "word", "kept"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.float16, "bf16", torch.bfloat16),
    ],
    ids=str,
)
def test_a_cut_with_an_adapter_is_the_cut_of_weights_merged_by_hand(
    stored: torch.dtype,
    word: str,
    kept: torch.dtype,
    world_size: int,
    pairs: State,
    adapter: Path,
    tmp_path: Path,
) -> None:
    small().to(stored).save_pretrained(tmp_path / "hf")
    hand = hand_merged(tmp_path / "hand", pairs, kept, stored)
    summary = cut(tmp_path / "hf", tmp_path / "cut", world_size, dtype=word, adapter=str(adapter))
    cut(hand, tmp_path / "expected", world_size)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "expected")
    assert verify(tmp_path / "cut").faults == ()
    assert any("the adapter sft is merged (8 tensors, rank 4" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("stored", "table", "kept"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_a_sum_is_as_wide_as_its_tensor_and_what_the_model_computes_in(
    stored: torch.dtype,
    table: torch.dtype,
    kept: torch.dtype,
    pairs: State,
    adapter: Path,
    tmp_path: Path,
) -> None:
    model = small()
    state = {name: tensor.to(stored) for name, tensor in state_of(model).items()}
    state[TABLE] = state[TABLE].to(table)
    folder = save(tmp_path / "hf", json.loads(model.config.to_json_string()), state, "safetensors")
    ours = merged_tensors(folder, adapter)
    for name, delta in changes(pairs).items():
        wide = state[name].to(torch.promote_types(stored, torch.float32))
        assert torch.equal(ours[name], (wide + delta).to(kept)), name


def test_a_head_of_its_own_is_not_rounded_to_a_narrower_embedding(tmp_path: Path) -> None:
    small().bfloat16().save_pretrained(tmp_path / "hf")
    new = torch.randn(509, 64)
    sft = save_adapter(tmp_path / "sft", {f"{PREFIX}{HEAD}": new}, modules_to_save=["lm_head"])
    assert torch.equal(merged_tensors(tmp_path / "hf", sft, "fp32")[HEAD], new)
    assert torch.equal(merged_tensors(tmp_path / "hf", sft)[HEAD], new.bfloat16())


@pytest.mark.parametrize(("quant", "world_size"), [("int8", 2), ("int4-32", 1)])
def test_weights_are_merged_before_they_are_rounded(
    quant: str, world_size: int, pairs: State, adapter: Path, tmp_path: Path
) -> None:
    small().bfloat16().save_pretrained(tmp_path / "hf")
    hand = hand_merged(tmp_path / "hand", pairs, torch.bfloat16, torch.bfloat16)
    cut(tmp_path / "hf", tmp_path / "cut", world_size, quant=quant, adapter=str(adapter))
    cut(hand, tmp_path / "expected", world_size, quant=quant)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "expected")

    def logits(folder: Path, adapter: str = "none") -> Tensor:
        return on_engines(world_size, folder, lambda e: e.logits(IDS), quant=quant, adapter=adapter)

    assert torch.equal(logits(tmp_path / "hf", str(adapter)), logits(hand))


def test_a_model_is_calibrated_with_its_adapter(
    pairs: State, adapter: Path, tmp_path: Path
) -> None:
    make_tokenizer(base := tmp_path / "hf")
    small().save_pretrained(base)
    hand = make_tokenizer(hand_merged(tmp_path / "hand", pairs, torch.float32, torch.float32))
    text = CalibrationText("the quick brown fox jumps over the lazy dog " * 40, 128)
    cut(base, tmp_path / "cut", 1, quant="int4", calibrate=text, adapter=str(adapter))
    cut(hand, tmp_path / "expected", 1, quant="int4", calibrate=text)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "expected")


def test_a_large_change_is_the_same_whatever_ranges_are_read(
    base: Path, adapter: Path, pairs: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of other shapes may be rounded otherwise: ranks would not hold parts of one matrix."""
    monkeypatch.setattr("gyrfalcon.checkpoint.merged.TILE_ELEMENTS", 5 * 64)  # the last has one row
    whole = merged_tensors(base, adapter)
    for name, tensor in state_of(merge_by_hand(small(), changes(pairs))).items():
        torch.testing.assert_close(whole[name], tensor)
    source = open_checkpoint(base, str(adapter)).source
    name = "transformer.h.1.mlp.dense_4h_to_h.weight"
    columns = (range(3, 70), range(91, 256))
    expected = torch.cat([whole[name][:, c.start : c.stop] for c in columns], 1)
    assert torch.equal(source.read(name, 1, columns), expected)
    name = "transformer.h.1.self_attention.query_key_value.weight"
    for rows in ((range(4, 6), range(6, 40)), (range(0, 96),), (range(20, 20),), (range(94, 96),)):
        expected = torch.cat([whole[name][r.start : r.stop] for r in rows])
        assert torch.equal(source.read(name, 0, rows), expected)


def test_a_chain_of_cut_recut_and_merge_ends_in_what_transformers_merges(
    base: Path, tmp_path: Path
) -> None:
    """Also where the head parts from the embedding that it was tied to."""
    pairs = make_pairs(small(), [EMBEDDING, *layers_of(small(), *LINEAR)])
    sft = save_adapter(tmp_path / "sft", pairs)
    cut(base, tmp_path / "3", 3, adapter=str(sft))
    recut(tmp_path / "3", tmp_path / "2", 2)
    kept = Manifest.read(tmp_path / "2").adapter
    assert kept is not None
    assert kept == Manifest.read(tmp_path / "3").adapter
    assert (kept.name, kept.base_model) == ("sft", "org/base")
    assert verify(tmp_path / "2").faults == ()
    merge(tmp_path / "2", tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    expected = logits_of(merge_by_hand(small(), changes(pairs)))
    assert_same(logits_of(FalconForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    with Engine(EngineConfig(str(tmp_path / "2"), world_size=1)) as engine:
        assert_same(engine.logits(IDS), expected)
        assert "adapter sft" in engine.description


def test_an_adapter_is_merged_into_a_cut_when_it_is_loaded(
    base: Path, adapter: Path, pairs: State, tmp_path: Path
) -> None:
    cut(base, tmp_path / "cut", 2)
    expected = logits_of(merge_by_hand(small(), changes(pairs)))
    for world_size in (2, 3):
        ours = on_engines(
            world_size, tmp_path / "cut", lambda e: e.logits(IDS), adapter=str(adapter)
        )
        assert_same(ours, expected)


def test_a_cut_that_was_stopped_is_not_gone_on_with_by_another_adapter(
    base: Path, adapter: Path, pairs: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_adapter(tmp_path / "other", pairs, lora_alpha=1)
    target, written = tmp_path / "cut", "gyrfalcon.cut.folder_writer._write_small_files"
    with monkeypatch.context() as patch:
        patch.setattr(written, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            cut(base, target, 2, adapter=str(adapter))
    assert cut(base, target, 2, adapter=str(other)).resumed_bytes == 0
    cut(base, tmp_path / "expected", 2, adapter=str(other))
    assert weights_of(target) == weights_of(tmp_path / "expected")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
