"""`gyrfalcon demo`: the whole chain on a tiny model made on the spot: cut for 2 ranks, verify,
generate, compare.

The model's weights are random, so its text means nothing; that 1 rank and 2 say the same does.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gyrfalcon.commands.result import STDOUT, shown_bytes, write_json
from gyrfalcon.config import ModelConfig
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import CheckFailed
from gyrfalcon.request import SamplingParams
from gyrfalcon.settings import EngineConfig
from gyrfalcon.weights.cut import cut
from gyrfalcon.weights.layout import tensor_specs
from gyrfalcon.weights.verify import verify

RANKS = 2
PROMPT = "The falcon folds its wings"
SENTENCES = """
The falcon folds its wings and falls. It is the fastest animal there is, and it looks before it dives.
A gyrfalcon is the largest of the falcons. It lives in the north, where the wind is cold and the sky is wide.
The wings of a falcon are long and pointed; the wings of a hawk are short and round.
"""
CONFIG: dict[str, object] = {  # the shape of Falcon-40B, small
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "new_decoder_architecture": True,
    "parallel_attn": True,
    "bias": False,
    "alibi": False,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_kv_heads": 4,
    "vocab_size": 512,
}


def run(args: argparse.Namespace) -> int:
    """Runs the chain; CheckFailed when the cut is faulty or the ranks do not agree."""
    with contextlib.redirect_stdout(sys.stderr if args.json == STDOUT else sys.stdout):
        result = _run_chain()
    if args.json is not None:
        write_json(result, args.json)
    if result["faults"] or result["text_of_1"] != result["text_of_2"]:
        raise CheckFailed(
            "a cut without faults, and one text", "something else", "see above, and report it"
        )
    if args.json != STDOUT:
        print(
            "The weights are random and the text means nothing; that both runs say the same does."
        )
    return 0


def _run_chain() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="gyrfalcon-demo-") as name:
        source, target = Path(name) / "falcon-tiny", Path(name) / "falcon-tiny-2"
        make_tiny_falcon(source)
        print(f"made    a tiny Falcon with random weights in {source}")
        summary = cut(source, target, RANKS)
        print(
            f"cut     for {RANKS} ranks: {summary.num_files} files of {shown_bytes(summary.num_bytes)}"
        )
        report = verify(target)
        print(f"verify  {report.num_files} files, {len(report.faults) or 'no'} faults")
        whole = _continue(source, 1)
        print(f"1 rank  {whole!r}")
        shared = _continue(target, RANKS)
        print(f"{RANKS} ranks {shared!r}")
    return {"faults": report.faults, "text_of_1": whole, "text_of_2": shared}


def make_tiny_falcon(folder: Path) -> None:
    """Writes a Hugging Face folder: config, tokenizer, random float32 weights from a fixed seed."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    _train_tokenizer().save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            spec.name: _initial(spec.role, spec.name, spec.shape, generator)
            for spec in tensor_specs(ModelConfig.from_json(CONFIG), head=False)
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _initial(
    role: str, name: str, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    if role == "norm":
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    return torch.randn(shape, generator=generator).mul_(1.5 / shape[-1] ** 0.5)


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES.splitlines(), trainer)
    return tokenizer


def _continue(model: Path, world_size: int) -> str:
    with Engine(EngineConfig(model=str(model), world_size=world_size)) as engine:
        words_only = {token: float("-inf") for token in range(1 + 256)}  # end-of-text, single bytes
        params = SamplingParams(max_new_tokens=24, logit_bias=words_only)
        return PROMPT + engine.generate(PROMPT, params)[0].text
