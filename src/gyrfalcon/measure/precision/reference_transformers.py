"""transformers as an independent reference, where it is installed: the same weights through its own
code of the model, on the CPU.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.errors import PIP_INSTALL, UsageError
from gyrfalcon.measure.precision.reference_file import Prompts

FALCON_TYPES = (None, "falcon", "RefinedWeb", "RefinedWebModel")
OLD_NAMES = {  # of the first releases (RefinedWeb, RefinedWebModel), which transformers no longer knows
    "n_head": "num_attention_heads",
    "n_head_kv": "num_kv_heads",
    "n_layer": "num_hidden_layers",
    "n_embed": "hidden_size",
}
DERIVED = ("head_dim", "rotary")  # transformers computes these and accepts no value for them


def is_installed() -> bool:
    """Whether transformers can be imported; does not import it."""
    return find_spec("transformers") is not None


def reference_logits(
    checkpoint: Checkpoint, dtype: torch.dtype, prompts: Prompts
) -> Iterator[Tensor]:
    """The logits of each prompt, computed in `dtype` in one go: float32 [tokens, vocab]."""
    model = _load(checkpoint, dtype)
    for ids in prompts:
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        yield logits.float()


def require() -> str:
    """transformers' version; UsageError when it is not installed."""
    if not is_installed():
        do = f"{PIP_INSTALL} transformers, or use `reference=fp32`"
        raise UsageError("transformers for `reference=transformers`", "none installed", do)
    import transformers

    return str(transformers.__version__)


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    weights: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.folder}
    if checkpoint.manifest is not None or checkpoint.adapter is not None:  # put together in memory
        state = {spec.name: checkpoint.source.read(spec.name) for spec in checkpoint.layout.tensors}
        weights = {"pretrained_model_name_or_path": None, "state_dict": state}
    raw = _config(checkpoint)
    try:
        config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            **weights,
        )
    except Exception as error:  # it raises whatever its many layers raise
        got = f"{type(error).__name__}: {error}"
        raise UsageError("a model that transformers takes", got, "use `reference=fp32`") from error
    return model.eval()


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's own config, in names that transformers knows. A stored head is used as
    such, as we do.
    """
    raw = checkpoint.raw_config
    if raw.get("model_type") in FALCON_TYPES:
        raw = _falcon_config(raw)
    own_head = {"tie_word_embeddings": False} if checkpoint.has_head else {}
    return {**raw, **own_head}


def _falcon_config(raw: Mapping[str, object]) -> dict[str, Any]:
    raw = {OLD_NAMES.get(name, name): value for name, value in raw.items() if name not in DERIVED}
    if raw.get("model_type") == "falcon":
        return raw
    grouped = raw.get("model_type") == "RefinedWeb"
    defaults = {"multi_query": False, "parallel_attn": grouped}
    return {**defaults, "new_decoder_architecture": grouped, **raw, "model_type": "falcon"}
