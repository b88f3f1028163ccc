"""Small random LoRA adapters as peft writes them, and their models merged by hand."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from checkpoints import make_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import FalconForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.source import open_checkpoint

PREFIX = "base_model.model."
LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
EMBEDDING = "transformer.word_embeddings"
RANK, ALPHA = 4, 12

SMALL: dict[str, object] = dict(hidden_size=64, num_attention_heads=8, num_kv_heads=2)
IDS = torch.randint(20, 509, (1, 20), generator=torch.Generator().manual_seed(0))
HEAD, TABLE = "lm_head.weight", f"{EMBEDDING}.weight"

State = dict[str, Tensor]


def layers_of(model: FalconForCausalLM, *names: str) -> list[str]:
    """The modules whose names end with one of these."""
    return [name for name, _ in model.named_modules() if name.split(".")[-1] in names]


def make_pairs(
    model: FalconForCausalLM, layers: list[str], rank: int = RANK, seed: int = 7
) -> State:
    """A pair of matrices for each layer, under the names that peft gives them in a file."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for layer in layers:
        rows, columns = model.get_submodule(layer).weight.shape
        a, b = (
            torch.randn(*shape, generator=generator) / shape[1] ** 0.5
            for shape in ((rank, columns), (rows, rank))
        )
        if layer == EMBEDDING:  # peft's shapes: A [rank, tokens], B [width, rank]
            state[f"{PREFIX}{layer}.lora_embedding_A"] = b.t().contiguous()
            state[f"{PREFIX}{layer}.lora_embedding_B"] = a.t().contiguous()
        else:
            state[f"{PREFIX}{layer}.lora_A.weight"] = a
            state[f"{PREFIX}{layer}.lora_B.weight"] = b
    return state


def save_adapter(
    folder: Path, state: Mapping[str, Tensor], form: str = "safetensors", **settings: object
) -> Path:
    """An adapter's folder in peft's format; `settings` change its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "org/base",
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": ALPHA,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["query_key_value"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    if form == "safetensors":
        save_file(dict(state), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(dict(state), folder / "adapter_model.bin")
    return folder


def changes(state: Mapping[str, Tensor], scale: float = ALPHA / RANK) -> State:
    """scale · B · A of each pair in a file, in float32, by the name of the weight."""
    found: State = {}
    for name, b in state.items():
        if name.endswith(".lora_B.weight"):
            a = state[name.replace("lora_B", "lora_A")]
            module = name.removesuffix(".lora_B.weight")
            found[f"{module.removeprefix(PREFIX)}.weight"] = (b.float() @ a.float()) * scale
        elif name.endswith(".lora_embedding_B"):
            a = state[name.replace("embedding_B", "embedding_A")]
            module = name.removesuffix(".lora_embedding_B")
            found[f"{module.removeprefix(PREFIX)}.weight"] = (b.float() @ a.float()).t() * scale
    return found


def merge_by_hand(
    model: FalconForCausalLM, added: Mapping[str, Tensor], replaced: Mapping[str, Tensor] = {}
) -> FalconForCausalLM:
    """The model itself, its weights changed; head and embedding part before one of them changes."""
    changed = {"lm_head.weight", f"{EMBEDDING}.weight"} & (added.keys() | replaced.keys())
    if changed and model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in replaced.items():
            parameters[name].copy_(value)
        for name, delta in added.items():
            parameters[name].copy_(parameters[name].float() + delta)
    return model


def rslora_scale(alpha: float = ALPHA, rank: int = RANK) -> float:
    return alpha / math.sqrt(rank)


def fresh(variant: str, **settings: object) -> FalconForCausalLM:
    """The same model at each call."""
    return make_model(variant, seed=3, **settings)


def small() -> FalconForCausalLM:
    return fresh("40b", **SMALL)


@torch.no_grad()
def logits_of(model: FalconForCausalLM) -> Tensor:
    return model(IDS).logits


def our_logits(folder: Path, adapter: Path | str, **settings: object) -> Tensor:
    config = EngineConfig(str(folder), adapter=str(adapter), **settings)  # type: ignore[arg-type]
    with Engine(config) as engine:
        return engine.logits(IDS)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def merged_tensors(folder: Path, adapter: Path | str, dtype: str = "auto") -> State:
    source = open_checkpoint(folder, str(adapter), dtype).source
    return {name: source.read(name) for name in source.names()}


def assert_equal(ours: State, theirs: State) -> None:
    """Bit for bit."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def state_of(model: FalconForCausalLM) -> State:
    """What save_pretrained would write."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state[HEAD]
    return state
