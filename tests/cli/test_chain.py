"""From a checkpoint that transformers wrote: cut, recut, merge, generate. One has Falcon's own tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import VARIANTS, make_checkpoint, make_model
from safetensors.torch import load_file
from tokenizers_ import make_tokenizer
from transformers import FalconForCausalLM, PreTrainedTokenizerFast
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.cli.main import main

pytestmark = pytest.mark.slow

TEXT = "The falcon cannot hear the falconer;"
NUM_NEW = 12
FALCON_VOCAB = 65024
# The variant with Falcon's own tokenizer: such a vocabulary takes most of the time.
FULL_SIZE = "40b"


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def source(
    variant: str,
    data: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A scaled-down checkpoint as save_pretrained writes it, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp(variant) / "hf"
    if variant != FULL_SIZE:
        return make_tokenizer(make_checkpoint(folder, variant))
    make_checkpoint(folder, variant, vocab_size=FALCON_VOCAB)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(data("falcon-tokenizer"))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path) -> list[int]:
    """What transformers continues TEXT with."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    input_ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    model = FalconForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()
    generated = model.generate(input_ids, max_new_tokens=NUM_NEW, do_sample=False)
    return generated[0, input_ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def cut_of_4(source: Path) -> Path:
    folder = source.parent / "cut-4"
    assert main(["cut", str(source), str(folder), "-w", "4"]) == 0
    return folder


def continued(engine: Engine) -> tuple[int, ...]:
    return engine.generate(TEXT, SamplingParams(max_new_tokens=NUM_NEW))[0].output_ids


def test_the_folder_continues_as_transformers_does(
    source: Path, expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", TEXT, "--max-new-tokens", str(NUM_NEW), "--json", "-", "-w", "1"]
    assert main(["generate", str(source), *words]) == 0
    assert json.loads(capsys.readouterr().out)["output_ids"] == expected


def test_the_cut_continues_as_transformers_does(cut_of_4: Path, expected: list[int]) -> None:
    assert list(on_engines(4, cut_of_4, continued)) == expected


def test_a_cut_serves_another_world_size(variant: str, cut_of_4: Path, expected: list[int]) -> None:
    """One rank or two, by turns of the variants: from a checkpoint, the laws take every number of them."""
    world_size = 1 + list(VARIANTS).index(variant) % 2
    assert list(on_engines(world_size, cut_of_4, continued)) == expected


def test_a_recut_for_3_continues_as_transformers_does(cut_of_4: Path, expected: list[int]) -> None:
    folder = cut_of_4.parent / "cut-3"
    assert main(["recut", str(cut_of_4), str(folder), "-w", "3"]) == 0
    assert main(["verify", str(folder)]) == 0
    assert list(on_engines(3, folder, continued)) == expected


def test_merging_gives_every_tensor_back(source: Path, cut_of_4: Path) -> None:
    folder = cut_of_4.parent / "merged"
    assert main(["merge", str(cut_of_4), str(folder)]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("variant", ["rw-7b", "7b", "40b"])
def test_bf16_is_as_near_to_float32_as_transformers_own(variant: str, tmp_path: Path) -> None:
    """The logits gate: relative L2 at most 1.2 times that of transformers' bf16."""
    folder = make_checkpoint(tmp_path / "hf", variant, num_hidden_layers=6)
    input_ids = torch.randint(20, 509, (1, 100), generator=torch.Generator().manual_seed(3))
    model = make_model(variant, num_hidden_layers=6)
    with torch.no_grad():
        exact = model(input_ids).logits
        theirs = model.to(torch.bfloat16)(input_ids).logits.float()
    ours = on_engines(1, folder, lambda engine: engine.logits(input_ids), dtype="bf16")
    assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm()
