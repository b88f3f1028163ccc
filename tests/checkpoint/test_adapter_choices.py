"""Whether an adapter is merged, and which, is the user's choice; what cannot be merged is refused by name;
all commands merge alike.
"""

import shutil
from pathlib import Path

import pytest
import torch
from adapters import (
    ALPHA,
    EMBEDDING,
    HEAD,
    IDS,
    PREFIX,
    State,
    assert_equal,
    assert_same,
    changes,
    layers_of,
    logits_of,
    make_pairs,
    merge_by_hand,
    merged_tensors,
    our_logits,
    save_adapter,
    small,
    state_of,
)
from checkpoints import make_exam_taker
from exams import Data
from tokenizers_ import make_tokenizer
from transformers import FalconForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.cli.parser import flags
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.inspect import inspect_model
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import GyrfalconError, UsageError
from gyrfalcon.measure.precision.reference_file import Reference
from gyrfalcon.measure.published import PublishedFigures, TokenFigures, guide_mmlu
from gyrfalcon.measure.result import envelope
from gyrfalcon.model.architectures import config_from_file

pytest_plugins = ["adapter_fixtures"]

# The user's choice


def refusal(folder: Path, adapter: Path | str | None = None) -> str:
    """The one line that open_checkpoint refuses with, as the command line shows it."""
    with pytest.raises(GyrfalconError) as caught:
        open_checkpoint(folder, None if adapter is None else str(adapter))
    return caught.value.on_command_line(flags())


@pytest.fixture
def beside(base: Path, pairs: State, tmp_path: Path) -> Path:
    """A model's folder with an adapter in it."""
    folder = tmp_path / "both"
    shutil.copytree(base, folder)
    return save_adapter(folder, pairs)


def test_an_adapter_beside_the_weights_is_refused_until_the_user_decides(
    beside: Path, base: Path, pairs: State
) -> None:
    line = refusal(beside)
    assert "use --adapter . to merge it or --adapter none to leave it out" in line
    for command in (["inspect", str(beside)], ["cut", str(beside), str(beside) + "-2", "-w", "2"]):
        assert main(command) == 2
    with pytest.raises(UsageError, match=r"adapter=\. to merge it or adapter=none to leave"):
        Engine(EngineConfig(str(beside)))
    assert_equal(merged_tensors(beside, "none"), merged_tensors(base, "none"))
    expected = merge_by_hand(small(), changes(pairs))
    assert_equal(merged_tensors(beside, "."), state_of(expected))


def test_stop_ids_are_checked_on_the_model_with_the_chosen_adapter(
    beside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(beside)
    words = ["generate", str(beside), "--prompt", "a", "--stop-id", "1000000"]
    for word in (".", "none"):
        assert main([*words, "--adapter", word]) == 2
        assert "wanted --stop-id below" in capfd.readouterr().err


def test_an_adapter_of_an_older_form_beside_the_weights_is_seen(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "both")
    torch.save({}, tmp_path / "both/adapter_model.bin")
    assert "--adapter none" in refusal(tmp_path / "both")
    assert not any(".bin" in note for note in open_checkpoint(tmp_path / "both", "none").notes)


def test_a_config_that_a_merged_model_kept_is_no_adapter(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "both")
    (tmp_path / "both/adapter_config.json").write_text("{}")
    assert open_checkpoint(tmp_path / "both").adapter is None
    assert "wanted an adapter beside the weights" in refusal(tmp_path / "both", ".")


@pytest.mark.parametrize("beside", ["config.json", "pytorch_model.bin", None])
def test_an_adapter_given_as_a_model_says_what_to_type(
    beside: str | None, pairs: State, tmp_path: Path
) -> None:
    """Training scripts leave the model's config there, trl the weights of a value head."""
    sft = save_adapter(tmp_path / "sft", pairs)
    if beside:
        (sft / beside).write_text("{}")
    for word in (None, ".", "none"):
        line = refusal(sft, word)
        assert "an adapter alone, trained on org/base" in line
        assert f"give org/base and --adapter {sft}" in line


def test_a_rounded_cut_takes_no_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    cut(base, tmp_path / "cut", 1, quant="int8")
    assert "cut again from the source with --adapter" in refusal(tmp_path / "cut", adapter)


def test_an_adapter_is_not_merged_twice_and_not_taken_out_of_a_cut(
    base: Path, adapter: Path, pairs: State, tmp_path: Path
) -> None:
    cut(base, tmp_path / "cut", 2, adapter=str(adapter))
    assert "merged into" in refusal(tmp_path / "cut", adapter)
    assert "one that sft is merged into" in refusal(tmp_path / "cut", "none")
    other = save_adapter(tmp_path / "other", pairs, lora_alpha=1)
    both = {name: delta * (ALPHA + 1) / ALPHA for name, delta in changes(pairs).items()}
    expected = state_of(merge_by_hand(small(), both))
    for name, tensor in merged_tensors(tmp_path / "cut", other).items():
        torch.testing.assert_close(tensor, expected[name])
    assert any("sft is merged" in note for note in open_checkpoint(tmp_path / "cut").notes)


def test_a_manifest_of_another_adapter_is_noticed(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    cut(base, tmp_path / "cut", 1, adapter=str(adapter))
    path = tmp_path / "cut/manifest.json"
    path.write_text(path.read_text().replace('"name": "sft"', '"name": "dpo"'))
    assert verify(tmp_path / "cut").faults
    assert "one that was changed since" in refusal(tmp_path / "cut")


@pytest.mark.parametrize("word", ["", "nowhere", "org/adapter", "~nobody-here/x"])
def test_a_folder_that_is_not_there_is_refused(word: str, base: Path) -> None:
    assert f"for {word!r}, got no such folder" in refusal(base, word)


def test_a_file_and_another_type_are_refused(base: Path, adapter: Path) -> None:
    assert "got a file" in refusal(base, adapter / "adapter_model.safetensors")
    assert "got no adapter_config.json; give the folder" in refusal(base, base)
    assert f"did you mean {adapter}?" in refusal(base, adapter.parent)
    with pytest.raises(UsageError, match="a path or a word for adapter"):
        EngineConfig(str(base), adapter=adapter)  # type: ignore[arg-type]


def test_inspect_shows_the_head_that_an_adapter_unties(base: Path, tmp_path: Path) -> None:
    sft = save_adapter(tmp_path, make_pairs(small(), ["lm_head"]))
    assert HEAD not in [row.name for row in inspect_model(base).rows]
    inspection = inspect_model(base, 2, str(sft))
    assert HEAD in [row.name for row in inspection.rows]
    assert not inspection.config.tied


def test_a_tokenizer_that_came_with_an_adapter_is_left_aside_with_a_note(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "hf")
    sft = save_adapter(tmp_path / "sft", pairs)
    for folder in (tmp_path / "hf", sft):
        (folder / "tokenizer.json").write_text("{}")
    (sft / "chat_template.jinja").write_text("{{ messages }}")
    notes = open_checkpoint(tmp_path / "hf", str(sft)).notes
    assert "chat_template.jinja of the adapter sft ignored: the model's own are used" in notes


def test_a_cut_does_not_take_the_place_of_its_adapter(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    sft = save_adapter(tmp_path / "sft", pairs)
    (sft / "config.json").write_text("{}")  # what a folder that may be overwritten has
    for target in (sft, sft / "cut", tmp_path):
        with pytest.raises(UsageError, match="a target outside of"):
            cut(base, target, 1, adapter=str(sft), overwrite=True)


def test_an_adapter_that_changes_nothing_is_noted(base: Path, pairs: State, tmp_path: Path) -> None:
    untrained = {name: t * ("lora_A" in name) for name, t in pairs.items()}
    sft = save_adapter(tmp_path / "new", untrained)
    assert any("new changes nothing" in note for note in open_checkpoint(base, str(sft)).notes)


# What cannot be merged


UNMERGEABLE: list[tuple[dict[str, object], str]] = [
    (dict(peft_type="LOHA"), "LOHA"),
    (dict(peft_type="VERA"), "VERA"),
    (dict(peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
    (dict(peft_type=None), "peft_type LORA"),
    (dict(use_dora=True), "use_dora = True"),
    (dict(lora_bias=True), "lora_bias = True"),
    (dict(use_qalora=True), "use_qalora = True"),
    (dict(trainable_token_indices=[5, 6]), "trainable_token_indices"),
    (dict(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    (dict(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    (dict(target_parameters=["weight"]), "target_parameters"),
    (dict(arrow_config={"top_k": 3}), "arrow_config"),
    (dict(some_new_kind={"x": 1}), "some_new_kind"),
    (dict(init_lora_weights="pissa"), "pissa"),
    (dict(init_lora_weights="olora"), "olora"),
    (dict(init_lora_weights="loftq"), "loftq"),
    (dict(r=None), "a field r"),
    (dict(r=0), "r above 0"),
    (dict(r=4.5), "whole number for r"),
    (dict(r="4"), "whole number for r"),
    (dict(r=8), "of rank 8"),
    (dict(lora_alpha=None), "lora_alpha"),
    (dict(lora_alpha=float("nan")), "lora_alpha"),
    (dict(lora_alpha=float("inf")), "lora_alpha"),
    (dict(lora_alpha=True), "lora_alpha"),
    (dict(rank_pattern=[1]), "rank_pattern"),
    (dict(rank_pattern={"dense": 0}), "dense above 0"),
    (dict(rank_pattern={"(": 4}), "patterns of layer names"),
    (dict(rank_pattern={"(?i)dense": 4}), "patterns of layer names"),
    (dict(alpha_pattern={"(.|.)" * 24 + "#": 4}), "matched quickly"),
    (dict(alpha_pattern={"([a-z_.]+)+#": 4}), "matched quickly"),
    (dict(rank_pattern={".*" * 6 + "#": 4}), "matched quickly"),
    (dict(rank_pattern={r"(.*)\1\1#": 4}), "matched quickly"),
    (dict(rank_pattern={"(.|.)" * 20 + end: 4 for end in "#!"}), "matched quickly"),
    (dict(alpha_pattern={"dense": "x"}), "a number for dense"),
    (dict(modules_to_save="lm_head"), "a list of names"),
    (dict(modules_to_save=["lm_head"]), "missing of modules_to_save: lm_head.weight"),
]


@pytest.mark.parametrize(("settings", "told"), UNMERGEABLE, ids=str)
def test_what_a_config_says_that_cannot_be_merged_is_named(
    settings: dict[str, object], told: str, base: Path, pairs: State, tmp_path: Path
) -> None:
    line = refusal(base, save_adapter(tmp_path, pairs, **settings))  # type: ignore[arg-type]
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize("way", [True, False, "gaussian", "eva", "orthogonal", None])
def test_initialisations_that_leave_the_base_alone_are_merged(
    way: object, base: Path, pairs: State, tmp_path: Path
) -> None:
    sft = save_adapter(tmp_path, pairs, init_lora_weights=way)
    assert open_checkpoint(base, str(sft)).adapter is not None


QKV = f"{PREFIX}transformer.h.0.self_attention.query_key_value"
UP = f"{PREFIX}transformer.h.0.mlp.dense_h_to_4h"
BROKEN: dict[str, tuple[State, str]] = {
    "half a pair": ({f"{QKV}.lora_B.weight": torch.empty(0)}, "half of a pair"),
    "another width": (
        {f"{QKV}.lora_A.weight": torch.ones(4, 72), f"{QKV}.lora_B.weight": torch.ones(96, 4)},
        "wrong: transformer.h.0.self_attention.query_key_value.weight [96, 72] for [96, 64]",
    ),
    "another depth": (
        {
            name.replace("h.0", "h.2"): tensor
            for name, tensor in {
                f"{QKV}.lora_A.weight": torch.ones(4, 64),
                f"{QKV}.lora_B.weight": torch.ones(96, 4),
            }.items()
        },
        "unknown: transformer.h.2.self_attention.query_key_value.weight",
    ),
    "another model": (
        {
            f"{PREFIX}model.layers.0.q_proj.lora_A.weight": torch.ones(4, 64),
            f"{PREFIX}model.layers.0.q_proj.lora_B.weight": torch.ones(64, 4),
        },
        "unknown: model.layers.0.q_proj.weight",
    ),
    "a NaN": ({f"{QKV}.lora_A.weight": torch.full((4, 64), torch.nan)}, "a NaN or infinity in"),
    "an infinity": ({f"{QKV}.lora_B.weight": torch.full((96, 4), torch.inf)}, "NaN or infinity"),
    "whole numbers": (
        {f"{QKV}.lora_A.weight": torch.ones(4, 64).int()},
        "query_key_value.lora_A.weight: ",
    ),
    "three dimensions": ({f"{QKV}.lora_A.weight": torch.ones(4, 64, 1)}, "of rank 4 with"),
    "DoRA": ({f"{QKV}.lora_magnitude_vector": torch.ones(96)}, "unknown: "),
    "a bias": ({f"{UP}.lora_B.bias": torch.ones(256)}, "unknown: "),
    "a bias of a layer without one": ({f"{UP}.bias": torch.ones(256)}, "dense_h_to_4h.bias"),
    "a classifier": ({f"{PREFIX}score.weight": torch.ones(2, 64)}, "unknown: score.weight"),
    "trained tokens": (
        {f"{PREFIX}{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.ones(2, 64)},
        "token_adapter",
    ),
    "more tokens": (
        {f"{PREFIX}{EMBEDDING}.weight": torch.ones(511, 64)},
        "word_embeddings.weight [511, 64] for [509, 64] (another vocabulary",
    ),
}


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_tensor_that_cannot_be_merged_is_named(
    fault: str, file: str, base: Path, pairs: State, tmp_path: Path
) -> None:
    changed, told = BROKEN[fault]
    state = pairs | changed
    if fault == "half a pair":
        del state[f"{QKV}.lora_B.weight"]
    line = refusal(base, save_adapter(tmp_path, state, file))
    assert told in line
    assert "\n" not in line


def test_damaged_files_are_refused_in_one_line(base: Path, pairs: State, tmp_path: Path) -> None:
    sft = save_adapter(tmp_path, pairs)
    path = sft / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "a whole adapter_model.safetensors" in refusal(base, sft)
    path.unlink()
    assert "got neither" in refusal(base, sft)
    torch.save({}, sft / "adapter_model.bin")
    assert "wrote an empty file" in refusal(base, sft)
    save_adapter(tmp_path, pairs)
    (sft / "adapter_config.json").write_text("{")
    assert "JSON in" in refusal(base, sft)
    (sft / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(base, sft)


def test_embeddings_that_peft_would_tie_again_are_refused(base: Path, tmp_path: Path) -> None:
    pairs = make_pairs(small(), [EMBEDDING])
    assert "ensure_weight_tying" in refusal(
        base, save_adapter(tmp_path, pairs, ensure_weight_tying=True)
    )


def test_a_sum_beyond_the_dtype_is_refused_naming_the_tensor(
    base: Path, pairs: State, tmp_path: Path
) -> None:
    sft = save_adapter(tmp_path / "sft", {name: tensor * 1e3 for name, tensor in pairs.items()})
    with pytest.raises(UsageError, match=r"values of transformer\.h\.0.*float16"):
        cut(base, tmp_path / "cut", 1, dtype="fp16", adapter=str(sft))
    assert not (tmp_path / "cut").exists()
    cut(base, tmp_path / "cut", 1, dtype="bf16", adapter=str(sft))


def test_weights_are_refused_before_a_rank_is_started(
    base: Path, pairs: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gyrfalcon.parallel.launch.start", None)
    sft = save_adapter(tmp_path, pairs, r=8)
    with pytest.raises(GyrfalconError, match="of rank 8"):
        Engine(EngineConfig(str(base), world_size=2, adapter=str(sft)))


# The commands


def test_started_ranks_merge_it_too_in_the_dtype_they_compute_in(
    adapter: Path, pairs: State, tmp_path: Path
) -> None:
    small().bfloat16().save_pretrained(tmp_path / "hf")
    loaded = FalconForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    expected = logits_of(merge_by_hand(loaded, changes(pairs)))
    for world_size in (1, 2):
        settings = dict(world_size=world_size, dtype="fp32")
        assert_same(our_logits(tmp_path / "hf", adapter, **settings), expected)


@pytest.mark.parametrize("options", [(), ("--dtype", "bf16"), ("--reference", "fp32")], ids=str)
def test_precision_compares_with_a_reference_that_has_the_adapter(
    options: tuple[str, ...],
    base: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ids.txt").write_text("30 31 32 33 34 35 36 37\n50 51\n")
    prompts = ("--prompts", str(tmp_path / "ids.txt"), "--threads", "1")
    stored = str(tmp_path / "kept")
    words = ["precision", str(base), *prompts, *options]
    assert main([*words, "--adapter", str(adapter), "--save-reference", stored]) == 0
    assert "adapter sft" in capsys.readouterr().err
    assert main(["precision", str(base), "--reference", stored, "--threads", "1"]) == 1


@pytest.mark.parametrize("kind", ["transformers", "fp32"])
def test_a_reference_is_merged_in_fp32_whatever_the_model_is_stored_in(
    kind: str, adapter: Path, pairs: State, tmp_path: Path
) -> None:
    small().bfloat16().save_pretrained(tmp_path / "hf")
    loaded = FalconForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    expected = logits_of(merge_by_hand(loaded, changes(pairs)))
    (tmp_path / "ids.txt").write_text(" ".join(map(str, IDS[0].tolist())))
    words = ["precision", str(tmp_path / "hf"), "--adapter", str(adapter), "--threads", "1"]
    words += ["--reference", kind, "--prompts", str(tmp_path / "ids.txt")]
    assert main([*words, "--save-reference", str(tmp_path / "kept")]) in (0, 1)  # bf16 may be far
    kept = Reference.open(tmp_path / "kept", config_from_file(tmp_path / "hf/config.json"))
    assert_same(kept.logits(0), expected[0])


def test_results_name_the_adapter_and_no_published_figures_are_theirs(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    config = EngineConfig(str(base), adapter=str(adapter))
    assert config.model_name == f"{base} + adapter {adapter}"
    assert EngineConfig(str(base), adapter="none").model_name == str(base)
    with Engine(config) as engine:
        document = envelope("perplexity", engine, (), {})
    assert document["model"]["name"] == config.model_name  # type: ignore[index]


@pytest.mark.parametrize("command", ["precision", "mmlu"])
def test_published_figures_are_of_the_model_without_an_adapter(
    command: str,
    base: Path,
    adapter: Path,
    exam_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = PublishedFigures(
        "x", tuple(guide_mmlu()), TokenFigures("x", (1, 2), (-1.0,), (3,), (-1.0,))
    )
    monkeypatch.setattr(f"gyrfalcon.cli.{command}_run.known", lambda _: figures)
    words = [command, str(base), "--adapter", str(adapter), "--published"]
    if command == "mmlu":
        words += ["-d", str(exam_folder), "-o", str(tmp_path / "out"), "--shots", "2"]
    assert main(words) == 2
    assert f" + adapter {adapter}, for which none are known" in capsys.readouterr().err


def test_an_exam_goes_on_only_with_the_same_adapter(
    exam_folder: Path, data: Data, pairs: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_exam_taker(tmp_path / "tiny", data("falcon-tokenizer"))
    peft = FalconForCausalLM.from_pretrained(model)
    sft = save_adapter(tmp_path / "sft", make_pairs(peft, layers_of(peft, "dense")))
    words = ["mmlu", str(model), "-d", str(exam_folder), "-o", str(tmp_path / "out")]
    words += ["--shots", "1", "--max-len", "256", "--threads", "1", "--adapter", str(sft)]
    assert main(words) == 0
    journal = tmp_path / "out/journal0.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    broken_off = "".join(lines[:3])

    def again(*changes: str) -> tuple[int, str]:
        journal.write_text(broken_off)
        (tmp_path / "out/mmlu.json").unlink(missing_ok=True)
        return main([*words, *changes]), capsys.readouterr().err

    assert again()[0] == 0
    code, told = again("--adapter", "none")
    assert (code, "adapter" in told) == (2, True)
    save_adapter(tmp_path / "sft", {}, "bin")  # the adapter's files are others now
    code, told = again()
    assert (code, "adapter" in told) == (2, True)


@pytest.mark.usefixtures("brief_limits")
def test_a_sweep_goes_on_only_with_the_same_adapter(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_exam_taker(tmp_path / "tiny", data("falcon-tokenizer"))
    peft = FalconForCausalLM.from_pretrained(model)
    sft = save_adapter(tmp_path / "sft", make_pairs(peft, layers_of(peft, "dense")))
    words = ["speed", str(model), "-f", str(tmp_path / "t.csv"), "--in", "4", "--out", "2"]
    words += ["--repeats", "1", "--threads", "1", "--max-len", "64"]
    assert main([*words, "--adapter", str(sft)]) == 0
    assert main([*words, "--adapter", str(sft)]) == 0
    assert main(words) == 2
    assert "model" in capsys.readouterr().err
