"""gyrfalcon precision as typed: references, stored references, published figures; what is printed,
written and exited with."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers_ import make_tokenizer
from worlds import on_every_rank

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.cli import precision_run
from gyrfalcon.cli.main import main
from gyrfalcon.cli.parser import parse
from gyrfalcon.cut.cut import cut
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.precision import reference_transformers
from gyrfalcon.measure.precision.published_tokens import check_tokens
from gyrfalcon.measure.precision.result import read_gate
from gyrfalcon.measure.published import PublishedFigures, TokenFigures, known
from gyrfalcon.model.architectures import config_from_file
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.ranks import RankInfo, Ranks

Captured = pytest.CaptureFixture[str]
IDS = "30 31 32 33 34 35 36 37 38 39 40\n50 51\n60\n"
QUICK = ("--threads", "1")  # the machine of the tests is shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 40b-shaped checkpoint with a tokenizer."""
    home = tmp_path_factory.mktemp("model") / "hf"
    make_checkpoint(home, "40b")
    return make_tokenizer(home)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights and no tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("bare") / "hf", "40b", seed=1)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Three short prompts as token ids."""
    path = tmp_path / "ids.txt"
    path.write_text(IDS)
    return path


def measured(capsys: Captured, *words: object) -> tuple[int, dict[str, object], str]:
    """Exit code, result, standard error of a run with --json -."""
    capsys.readouterr()
    code = main(["precision", *map(str, words), *QUICK, "--json", "-"])
    out, err = capsys.readouterr()
    return code, json.loads(out)["result"] if out else {}, err


def refusal(capsys: Captured, *words: object) -> str:
    assert main(["precision", *map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_sound_model_passes_with_the_shipped_prompts(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "result.json"
    assert main(["precision", str(folder), *QUICK, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert re.match(r"fp32 against transformers 5\.\S+, fp32, sdpa, on the CPU\n", out)
    assert "FAILED" not in out
    assert out.splitlines()[-1] == "the gate holds"
    document = json.loads(file.read_text())
    assert (document["kind"], document["settings"]["dtype"]) == ("precision", "fp32")
    result = document["result"]
    assert result["passed"]
    assert result["reference"]["independent"]
    assert list(result["figures"]) == ["prefill", "decode"]
    lengths = [prompt["num_tokens"] for prompt in result["prompts"]]
    assert len(lengths) == 5
    assert max(lengths) >= 400
    for prompt in result["prompts"]:
        assert prompt["num_decoded"] == min(32, prompt["num_tokens"] - 1)
        for curve in ("cosine", "relative_l2", "kl"):
            assert len(prompt[curve]) == prompt["num_tokens"]


@pytest.mark.slow
def test_a_cut_on_two_ranks_passes(bare: Path, ids: Path, tmp_path: Path, capsys: Captured) -> None:
    cut(bare, tmp_path / "cut", 2)
    code, result, err = measured(capsys, tmp_path / "cut", "-w", 2, "--prompts", ids)
    assert (code, result["passed"]) == (0, True)
    assert "2 ranks on cpu" in err


@pytest.mark.parametrize("variant", ["rw-7b", "7b", "11B"])
def test_every_kind_of_layer_passes(
    variant: str, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = make_checkpoint(tmp_path / "hf", variant)
    code, result, _ = measured(capsys, model, "--prompts", ids, "--decode-steps", 3)
    assert (code, result["passed"]) == (0, True)
    assert [prompt["num_decoded"] for prompt in result["prompts"]] == [3, 1, 0]  # type: ignore[attr-defined]


def test_a_model_without_a_tokenizer_is_given_token_ids(bare: Path, capsys: Captured) -> None:
    code, result, _ = measured(capsys, bare, "--max-len", 100, "--decode-steps", 2)
    assert code == 0
    assert [prompt["num_tokens"] for prompt in result["prompts"]] == [13, 60, 100]  # type: ignore[attr-defined]


def test_words_are_refused_where_there_is_no_tokenizer(
    bare: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("12 13\nonce upon a time\n")
    assert "token ids" in refusal(capsys, bare, "--prompts", path)


@pytest.mark.parametrize(
    ("text", "wanted"), [("30 509", "ids below 509"), ("9 " * 20, "at most 16")]
)
def test_prompts_that_the_model_cannot_take_are_refused_before_all_work(
    text: str, wanted: str, bare: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    assert wanted in refusal(capsys, bare, "--prompts", path, "--max-len", 16)


def test_an_empty_file_of_prompts_is_refused(bare: Path, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n")
    assert "a prompt on each line" in refusal(capsys, bare, "--prompts", path)


def test_a_file_of_prompts_that_is_no_text_is_refused(
    bare: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"12 13\n\xff\n")
    assert "wanted UTF-8 in" in refusal(capsys, bare, "--prompts", path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_held_against_that_of_transformers(
    dtype: str, bare: Path, tmp_path: Path, capsys: Captured
) -> None:
    prompt = tmp_path / "prompt"
    prompt.write_text(" ".join(str(7 * number % 509) for number in range(100)))
    words = [bare, "--dtype", dtype, "--prompts", prompt, "--decode-steps", 20]
    code, result, _ = measured(capsys, *words)
    figures = {row["name"]: row for row in result["figures"]["decode"]}  # type: ignore[index]
    assert (code, result["precision"]) == (0, dtype)
    assert 0.5 < figures["relative_l2_to_transformers"]["value"] <= 1.2
    assert figures["relative_l2_p95"]["limit"] == 0.05


@pytest.mark.parametrize("form", ["folder", "cut"])
def test_configs_of_the_first_releases_are_understood_by_the_reference(
    form: str, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    """RefinedWeb says neither new_decoder_architecture nor multi_query."""
    model = make_checkpoint(tmp_path / "hf", "40b")
    old = {"model_type": "RefinedWeb", "n_head": 32, "n_head_kv": 8, "n_layer": 2}
    raw = {**old, "hidden_size": 256, "vocab_size": 509, "alibi": False, "bias": False}
    (model / "config.json").write_text(json.dumps(raw))
    if form == "cut":
        cut(model, tmp_path / "cut", 2)
        model = tmp_path / "cut"
    code, result, _ = measured(capsys, model, "-w", 1, "--prompts", ids)
    assert (code, result["reference"]["kind"]) == (0, "transformers")  # type: ignore[index]


def test_a_stored_head_that_differs_from_the_embedding_is_used_by_both(
    ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = make_checkpoint(tmp_path / "hf", "7b")
    state = load_file(model / "model.safetensors")
    state["lm_head.weight"] = state["transformer.word_embeddings.weight"].flip(0).contiguous()
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    code, result, _ = measured(capsys, model, "--prompts", ids)
    assert (code, result["passed"]) == (0, True)


def test_our_own_reference_says_that_it_is_not_independent(
    bare: Path, ids: Path, capsys: Captured
) -> None:
    words = ["precision", str(bare), "--reference", "fp32", "--dtype", "bf16"]
    assert main([*words, "--prompts", str(ids)]) == 0
    assert "not independent" in capsys.readouterr().out.splitlines()[0]
    _, result, _ = measured(capsys, *words[1:], "--prompts", ids)
    assert result["reference"]["independent"] is False  # type: ignore[index]
    assert "relative_l2_to_transformers" not in json.dumps(result)


def test_without_transformers_the_reference_is_our_own(
    bare: Path, ids: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_transformers, "find_spec", lambda name: None)
    code, result, _ = measured(capsys, bare, "--prompts", ids)
    assert (code, result["reference"]["kind"]) == (0, "fp32")  # type: ignore[index]
    line = refusal(capsys, bare, "--prompts", ids, "--reference", "transformers")
    assert "none installed" in line


def test_a_stored_reference_gives_the_figures_of_the_fresh_one(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "kept"
    _, fresh, _ = measured(capsys, bare, "--prompts", ids, "--save-reference", file)
    code, stored, _ = measured(capsys, bare, "--reference", file)
    assert (code, stored) == (0, fresh)
    assert not list(tmp_path.glob("*.part"))


def test_a_stored_reference_serves_where_transformers_is_missing(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept"
    measured(capsys, bare, "--prompts", ids, "--save-reference", file)
    monkeypatch.setattr(reference_transformers, "find_spec", lambda name: None)
    code, result, _ = measured(capsys, bare, "--reference", file, "--dtype", "fp16")
    assert (code, result["reference"]["kind"]) == (0, "transformers")  # type: ignore[index]
    assert "relative_l2_to_transformers" not in json.dumps(result)


def test_a_model_that_transformers_refuses_is_one_line(
    ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = make_checkpoint(tmp_path / "hf", "40b")
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"bos_token_id": "eleven"}))
    assert "use --reference fp32" in refusal(capsys, model, "--prompts", ids)
    code, _, _ = measured(capsys, model, "--prompts", ids, "--reference", "fp32")
    assert code == 0


def test_other_weights_fail_and_exit_1(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    file, other = tmp_path / "kept", make_checkpoint(tmp_path / "other", "40b", seed=2)
    measured(capsys, bare, "--prompts", ids, "--save-reference", file)
    code, result, err = measured(capsys, other, "--reference", file)
    assert (code, result["passed"]) == (1, False)
    assert err.splitlines()[-1].startswith(
        "gyrfalcon: error: wanted every figure within its limit, got prefill cosine, "
    )
    assert main(["precision", str(other), "--reference", str(file)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_weights_that_are_no_numbers_fail_and_the_result_is_still_json(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = make_checkpoint(tmp_path / "hf", "40b", seed=1)
    file = tmp_path / "kept"
    measured(capsys, model, "--prompts", ids, "--save-reference", file)
    state = load_file(model / "model.safetensors")
    state["transformer.ln_f.bias"][3] = torch.nan
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    code, result, _ = measured(capsys, model, "--reference", file)
    assert code == 1
    assert "NaN" not in json.dumps(result)


def test_a_reference_for_another_shape_is_refused_by_name(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    file, other = tmp_path / "kept", make_checkpoint(tmp_path / "other", "40b", num_hidden_layers=1)
    measured(capsys, bare, "--prompts", ids, "--save-reference", file)
    assert "num_layers" in refusal(capsys, other, "--reference", file)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_file_that_is_no_reference_is_refused(
    content: bytes | None, bare: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "kept"
    if content is None:
        save_file({"x": torch.zeros(1)}, file)
    else:
        file.write_bytes(content)
    assert "--save-reference" in refusal(capsys, bare, "--reference", file)


@pytest.mark.parametrize(
    "words",
    [
        ["--reference", "nowhere"],
        ["--reference", __file__, "--prompts", "x"],
        ["--reference", __file__, "--save-reference", "x"],
        ["--published", "--reference", "fp32"],
        ["--published", "--prompts", "x"],
        ["--published", "--decode-steps", "32"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(
    words: list[str], bare: Path, capsys: Captured
) -> None:
    assert refusal(capsys, bare, *words).startswith("gyrfalcon: error: wanted --")


def test_under_torchrun_only_the_first_rank_compares(folder: Path, ids: Path) -> None:
    args: argparse.Namespace = parse(["precision", str(folder), "--prompts", str(ids)])

    def program(group: Group) -> list[str] | None:
        with Engine(EngineConfig(str(folder), max_len=64), Ranks(RankInfo(group, 0, 1))) as engine:
            findings = precision_run._gate(engine, args, None)
            return None if findings is None else findings.failures

    assert on_every_rank(2, program) == [[], None]


def stand_in() -> TokenFigures:
    """What transformers says of the checkpoint `bare`, as published figures would."""
    model, prompt = make_model("40b", seed=1), torch.arange(30, 50)[None]
    whole = model.generate(prompt, max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        logprobs = model(whole).logits[0].double().log_softmax(-1)
    scores = logprobs[:-1].gather(1, whole[0, 1:, None])[:, 0].tolist()
    sequence = tuple(whole[0].tolist())
    return TokenFigures(
        "a test", sequence[:20], tuple(scores[:19]), sequence[20:], tuple(scores[19:])
    )


def test_published_figures_hold_for_their_model_and_fail_for_another(
    bare: Path, folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PublishedFigures("tiny", mmlu=(), tokens=stand_in())
    monkeypatch.setattr(precision_run, "known", lambda config: published)
    code, result, _ = measured(capsys, bare, "--published", "--dtype", "bf16")
    assert (code, result["passed"]) == (0, True)
    code, result, err = measured(capsys, folder, "--published")
    assert (code, result["passed"]) == (1, False)
    assert "published greedy_agreement" in err
    assert main(["precision", str(bare), "--published"]) == 0
    assert "the published figures of tiny: a test" in capsys.readouterr().out


def test_a_result_that_calls_published_figures_golden_is_read_alike(
    bare: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As results of earlier versions do."""
    published = PublishedFigures("tiny", mmlu=(), tokens=stand_in())
    monkeypatch.setattr(precision_run, "known", lambda config: published)
    _, result, _ = measured(capsys, bare, "--published")
    earlier = {"golden" if key == "published" else key: value for key, value in result.items()}
    assert list(earlier) != list(result)
    gate = read_gate(Fields(earlier, "a file"))
    assert gate == read_gate(Fields(result, "a file"))
    assert list(gate.figures) == ["published"]


def test_published_figures_are_compared_token_by_token(bare: Path) -> None:
    published = stand_in()
    with Engine(EngineConfig(str(bare))) as engine:
        check = check_tokens(engine, published)
    assert check.ids == (*published.prompt_ids[1:], *published.output_ids)
    assert check.ours == pytest.approx(check.published, abs=1e-4)
    assert {figure.name: figure.value for figure in check.figures} == pytest.approx(
        {
            "logprob_mean_error": 0.0,
            "logprob_max_error": 0.0,
            "nll_error": 0.0,
            "greedy_agreement": 1.0,
        },
        abs=1e-4,
    )


def test_a_model_without_published_figures_is_told_so(bare: Path, capsys: Captured) -> None:
    assert "for which none are known" in refusal(capsys, bare, "--published")


def test_the_shipped_figures_of_falcon_7b_are_those_that_were_published(
    data: Callable[[str], Path],
) -> None:
    [path, *_] = sorted(data("falcon-configs/falcon-7b").glob("config*.json"))
    published = known(config_from_file(path))
    assert published is not None
    assert published.tokens is not None
    source = data("reference-outputs/tgi-falcon-7b/test_flash_falcon.with_prefill.json")
    details = json.loads(source.read_text())["details"]
    prompt, output = details["prefill"], details["tokens"]
    assert list(published.tokens.prompt_ids) == [token["id"] for token in prompt]
    assert list(published.tokens.prompt_logprobs) == [token["logprob"] for token in prompt[1:]]
    assert list(published.tokens.output_ids) == [token["id"] for token in output]
    assert list(published.tokens.output_logprobs) == [token["logprob"] for token in output]
    assert -sum(published.tokens.prompt_logprobs) / 60 == pytest.approx(2.2938, abs=1e-4)


def test_decode_steps_alone_that_are_wrong_fail(
    bare: Path, ids: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Where every token is computed as in prefill and the reference's last tokens are altered."""
    file = tmp_path / "kept"
    measured(capsys, bare, "--prompts", ids, "--save-reference", file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    for tensor in state.values():
        if tensor.is_floating_point() and len(tensor) > 4:
            tensor[-4:] = tensor[-4:].flip(-1)
    save_file(state, file, metadata=metadata)
    code, result, err = measured(capsys, bare, "--reference", file, "--decode-steps", 4)
    assert (code, result["passed"]) == (1, False)
    failed = err.splitlines()[-1]
    assert "decode relative_l2_p95" in failed
    assert "prefill" not in failed
