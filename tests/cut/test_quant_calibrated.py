"""Calibrated quantisation (GPTQ): the error of its products, what it refuses, and cuts made with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import make_checkpoint
from test_cut import contents, faults, file_size_limit
from test_quantised_cut import SHAPES, assert_same, loaded
from tokenizers_ import make_tokenizer
from torch import Tensor

import gyrfalcon
from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.cut.calibrate import Calibration, CalibrationText, sum_of, windows_of
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.gptq import DAMPING, quantise_for
from gyrfalcon.cut.recut import recut
from gyrfalcon.errors import CheckpointError, DiskFull, UsageError
from gyrfalcon.quant import GROUPS, dequantise, equal, int4_scales, int4_values, quantise
from gyrfalcon.text.tokenizer import Tokenizer

NESTLING = Path(gyrfalcon.__file__).parent / "nestling" / "model"
TEXT = (Path(gyrfalcon.__file__).parent / "measure" / "passage.txt").read_text("utf-8")
KINDS = list(GROUPS)


def a_matrix(rows: int = 48, columns: int = 256) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.02


def correlated(tokens: int = 2048, columns: int = 256) -> Tensor:
    """Inputs as a model has them: few directions hold most of them, a few columns are large."""
    draw = torch.Generator().manual_seed(2)
    few = torch.randn(tokens, columns // 8, generator=draw)
    mixed = few @ torch.randn(columns // 8, columns, generator=draw)
    x = mixed / mixed.std() + 0.3 * torch.randn(tokens, columns, generator=draw)
    x[:, ::37] *= 10
    return x


def product_error(rounded: Tensor, weight: Tensor, x: Tensor) -> float:
    return float((x @ (rounded - weight).t()).norm() / (x @ weight.t()).norm())


def slowly(weight: Tensor, kind: str, moments: Tensor) -> Tensor:
    """The same in float64, as the idea is told: after each column, those that are left get the weights with
    which, by least squares, the product changes least.
    """
    group, columns = GROUPS[kind], weight.shape[1]
    damped = moments.double() + DAMPING * moments.double().diagonal().mean() * torch.eye(columns)
    left, result = weight.double().clone(), torch.empty_like(weight, dtype=torch.float64)
    for i in range(columns):
        if i % group == 0:
            span = slice(i, i + group)
            importance = moments.diagonal()[None, span]
            scale = int4_scales(left[:, span].float()[:, None], importance)[:, 0, 0]
        result[:, i] = (int4_values(left[:, i].float(), scale) * scale).double()
        error = left[:, i] - result[:, i]
        if i + 1 < columns:
            # min over d of (d, e) H (d, e)ᵀ: d = −H_rr⁻¹ H_ri e, e the change −error of column i
            rest = slice(i + 1, columns)
            shift = torch.linalg.solve(damped[rest, rest], damped[rest, i])
            left[:, rest] += error[:, None] * shift
    return result.float()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_least_squares_column_by_column_gives(kind: str) -> None:
    weight, x = a_matrix(), correlated()
    moments = x.t() @ x
    found = dequantise(quantise_for(weight, kind, moments), torch.float32)
    wanted = slowly(weight, kind, moments)
    same = found == wanted  # but for sums that lie between two values
    assert same.float().mean() > 0.98
    assert product_error(found, weight, x) < 1.02 * product_error(wanted, weight, x)


@pytest.mark.parametrize("kind", KINDS)
def test_products_change_less_though_weights_change_more(kind: str) -> None:
    weight, x = a_matrix(), correlated()
    plain = dequantise(quantise(weight, kind), torch.float32)
    calibrated = dequantise(quantise_for(weight, kind, x.t() @ x), torch.float32)
    assert product_error(calibrated, weight, x) < 0.5 * product_error(plain, weight, x)
    assert (calibrated - weight).norm() > (plain - weight).norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e12])
def test_inputs_that_tell_nothing_change_nothing(kind: str, size: float) -> None:
    """Of any size, none among them."""
    weight = a_matrix()
    assert equal(quantise_for(weight, kind, size * torch.eye(256)), quantise(weight, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_always_zero_or_always_the_same_are_taken(kind: str) -> None:
    weight, x = a_matrix(), correlated()
    x[:, 7] = 0
    x[:, 9] = x[:, 8]
    for inputs in (x, torch.zeros_like(x), torch.ones_like(x)):
        found = dequantise(quantise_for(weight, kind, inputs.t() @ inputs), torch.float32)
        assert found.isfinite().all()
    assert product_error(found, weight, torch.ones_like(x)) < 0.2


def test_rows_are_rounded_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are taken together."""
    weight, x = a_matrix(), correlated()
    whole = quantise_for(weight, "int4", x.t() @ x)
    monkeypatch.setattr("gyrfalcon.cut.gptq.ROW_CHUNK", 16 * 256)
    parts = quantise_for(weight, "int4", x.t() @ x)
    same = (dequantise(whole, torch.float32) == dequantise(parts, torch.float32)).float().mean()
    assert same > 0.98  # sums of other shapes are cut differently


def test_what_cannot_be_rounded_so_is_refused() -> None:
    moments = torch.eye(256)
    for kind in ("int8", "fp8", "int3"):
        with pytest.raises(UsageError, match=f"int4-128 to calibrate, got {kind}"):
            quantise_for(a_matrix(), kind, moments)
    with pytest.raises(UsageError, match="multiple of 64 weights for int4, got 48 of 96"):
        quantise_for(a_matrix(48, 96), "int4", torch.eye(96))
    for weight, seen in (
        (a_matrix() * float("nan"), moments),
        (a_matrix(), moments * float("inf")),
        (a_matrix(), moments * float("nan")),
        (a_matrix(), moments * 3e38),  # whose sum is too large
    ):
        with pytest.raises(CheckpointError, match="finite"):
            quantise_for(weight, "int4", seen)


# What a model's matrices are multiplied with


@pytest.mark.parametrize("variant", ["7b", "40b", "rw-1b"])
def test_moments_are_those_of_what_transformers_multiplies(variant: str, tmp_path: Path) -> None:
    """Of every matrix, in any order, as the whole model reads the same windows."""
    folder = make_checkpoint(tmp_path / "hf", variant, dtype=torch.float32, **SHAPES[variant])
    windows = torch.randint(101, (3, 40), generator=torch.Generator().manual_seed(0))
    wanted = moments_in_transformers(folder, windows)
    assert len(wanted) == 4 * 2
    calibration = Calibration(open_checkpoint(folder), windows)
    for name in [*wanted, *reversed(wanted)]:
        found = calibration._moments(name)
        torch.testing.assert_close(
            found, wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].abs().max())
        )


def moments_in_transformers(folder: Path, windows: Tensor) -> dict[str, Tensor]:
    """Σ x xᵀ over the inputs x of every matrix, by its name."""
    model = transformers.FalconForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor]], None]:
        def see(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2)
            found[name] = x.t() @ x

        return see

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    with torch.no_grad():
        model(windows)
    return found


def test_windows_are_spread_over_the_text() -> None:
    checkpoint = open_checkpoint(NESTLING)
    ids = torch.tensor(Tokenizer.load(NESTLING).encode(TEXT))
    assert len(ids) > 3 * 512
    whole = len(ids) // 512
    every = windows_of(CalibrationText(TEXT), checkpoint)
    assert every.flatten().equal(ids[: whole * 512])
    two = windows_of(CalibrationText(TEXT, 1100), checkpoint)
    assert two.equal(every[[0, whole // 2]])
    short = windows_of(CalibrationText(TEXT, 100), checkpoint)
    assert short.equal(ids[None, :100])
    assert sum_of(two) != sum_of(every[[0, 1]])


def test_of_a_long_text_no_more_is_read_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        read.append(text)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    words = [f"{number} falcons. " for number in range(100_000)]
    text = "".join(words)
    windows = windows_of(CalibrationText(text, 1536), open_checkpoint(NESTLING))
    assert windows.shape == (3, 512)
    parts = tuple(read)
    assert sum(map(len, parts)) < len(text) / 20
    assert [text.index(part) for part in parts] == [i * len(text) // 3 for i in range(3)]
    tokenizer = Tokenizer.load(NESTLING)
    assert windows.tolist() == [tokenizer.encode(part)[:512] for part in parts]


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(tmp_path: Path) -> None:
    shape = {**SHAPES["7b"], "vocab_size": 300}
    folder = make_tokenizer(make_checkpoint(tmp_path / "hf", "7b", **shape))
    with pytest.raises(CheckpointError, match=r"token ids below 300, got .*own tokenizer"):
        cut(folder, tmp_path / "cut", 1, quant="int4", calibrate=CalibrationText(TEXT))
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("number", [0, -1, 1.5, None])
def test_a_text_of_no_tokens_is_refused(number: Any) -> None:
    with pytest.raises(UsageError, match="1 or more tokens to calibrate on"):
        CalibrationText(TEXT, number)


# Cuts


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrated_cut_computes_what_the_checkpoint_does_more_closely(
    kind: str, tmp_path: Path
) -> None:
    """Of another text than it was calibrated by."""
    words = len(TEXT) // 2
    cut(NESTLING, tmp_path / "plain", 1, quant=kind)
    cut(NESTLING, tmp_path / "cut", 2, quant=kind, calibrate=CalibrationText(TEXT[:words]))
    assert faults(tmp_path / "cut") == ()
    wanted = log_probabilities(NESTLING, TEXT[words:])
    plain, calibrated = (
        (log_probabilities(tmp_path / name, TEXT[words:]) - wanted).square().mean()
        for name in ("plain", "cut")
    )
    assert calibrated < 0.8 * plain


def log_probabilities(folder: Path, text: str) -> Tensor:
    with Engine(EngineConfig(model=str(folder), world_size=1)) as engine:
        ids = torch.tensor([engine.tokenizer.encode(text)[:512]])
        logits = engine.logits(ids)[0, :-1].log_softmax(-1)
    return logits.gather(-1, ids[0, 1:, None])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "40b"
    make_checkpoint(folder, "40b", dtype=torch.bfloat16, **{**SHAPES["40b"], "vocab_size": 509})
    return make_tokenizer(folder)


def test_it_is_the_same_for_any_number_of_ranks(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(quant="int4-128", calibrate=CalibrationText(TEXT, 1024))
    cut(folder, tmp_path / "one", 1, **settings)
    cut(folder, tmp_path / "two", 2, **settings)
    recut(tmp_path / "two", tmp_path / "again", 1)
    assert contents(tmp_path / "again") == contents(tmp_path / "one")
    for rank in range(2):
        assert_same(
            loaded(tmp_path / "one", "none", 2, rank), loaded(tmp_path / "two", "none", 2, rank)
        )


def test_a_stopped_one_resumes_to_the_same_cut(folder: Path, tmp_path: Path) -> None:
    """A matrix's data and its scales lie in one file: they come from the same rounding."""
    settings: dict[str, Any] = dict(quant="int4", max_shard_bytes=300_000)
    settings["calibrate"] = CalibrationText(TEXT, 1024)
    cut(folder, tmp_path / "whole", 2, **settings)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors")]
    with file_size_limit(max(sizes) - 1), pytest.raises(DiskFull):
        cut(folder, tmp_path / "cut", 2, **settings)
    assert cut(folder, tmp_path / "cut", 2, **settings).resumed_bytes > 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_text_starts_afresh(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(quant="int4", max_shard_bytes=300_000)
    with file_size_limit(200_000), pytest.raises(DiskFull):
        cut(folder, tmp_path / "cut", 2, calibrate=CalibrationText(TEXT, 1024), **settings)
    assert json.loads((tmp_path / "cut.partial/progress.json").read_text())["files"]
    other = CalibrationText(TEXT[1000:], 1024)
    assert cut(folder, tmp_path / "cut", 2, calibrate=other, **settings).resumed_bytes == 0


def test_the_command_says_what_it_was_calibrated_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT, "utf-8")
    words = ["cut", str(folder), str(tmp_path / "cut"), "-w", "1", "--quant", "int4"]
    assert main([*words, "--calibrate", str(text), "--calibrate-tokens", "1024"]) == 0
    assert "note: calibrated with 1024 tokens of the text\n" in capsys.readouterr().out
    few = ["--calibrate", str(text), "--calibrate-tokens", "1000", "--overwrite"]
    assert main([*words, *few]) == 0
    assert "512 tokens of the text, fewer than the 1024 weights" in capsys.readouterr().out
    assert (
        main([*words, "--calibrate", str(text), "--calibrate-tokens", "1024", "--overwrite"]) == 0
    )
    manifest = json.loads((tmp_path / "cut/manifest.json").read_text())
    windows = windows_of(CalibrationText(TEXT, 1024), open_checkpoint(folder))
    found = {"tokens": 1024, "sha256": sum_of(windows).sha256}
    assert manifest["quant"] == {"kind": "int4", "dtype": "bfloat16", "text": found}
    with Engine(EngineConfig(model=str(tmp_path / "cut"))) as engine:
        assert engine.config.quant == "int4"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--calibrate", "long"], "one of int4, int4-32, int4-128 to calibrate, got none"),
        (["--calibrate", "long", "--quant", "int8"], "int4-128 to calibrate, got int8"),
        (["--calibrate", "short", "--quant", "int4"], "at least 512 tokens to calibrate on, got"),
        (["--calibrate", "raw", "--quant", "int4"], "wanted UTF-8 in"),
        (["--calibrate", "none", "--quant", "int4"], "none"),
        (["--calibrate-tokens", "9", "--quant", "int4"], "--calibrate with --calibrate-tokens"),
        (["--calibrate", "long", "--calibrate-tokens", "0"], "a whole number from 1 to 10,000,000"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(
    words: list[str],
    wanted: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long").write_text(TEXT, "utf-8")
    Path("short").write_text("A falcon.", "utf-8")
    Path("raw").write_bytes(b"\xff\xfe\xff")
    assert main(["cut", str(folder), "cut", "-w", "1", *words]) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert said.count("\n") == 1
    assert sorted(os.listdir()) == ["long", "raw", "short"]
