"""What model a plan is for: a published one by its name, or a config.json. No weights are needed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.bounds import shown
from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.checkpoint.manifest import Manifest, has_manifest
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.model.architectures import config_from_json

# What the published config.json files say of shapes; everything else is the default of the architecture.
_NEW = {"model_type": "falcon", "new_decoder_architecture": True, "vocab_size": 65024}
_ALIBI = {"model_type": "falcon", "alibi": True, "bias": True, "parallel_attn": False}
PUBLISHED: Mapping[str, Mapping[str, object]] = {
    "falcon-rw-1b": {
        **_ALIBI,
        "multi_query": False,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "vocab_size": 50304,
    },
    "falcon-rw-7b": {
        **_ALIBI,
        "multi_query": False,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "vocab_size": 65024,
    },
    "falcon-7b": {
        "model_type": "falcon",
        "multi_query": True,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "vocab_size": 65024,
    },
    "falcon-40b": {
        **_NEW,
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
    },
    "falcon-180b": {
        **_NEW,
        "hidden_size": 14848,
        "num_hidden_layers": 80,
        "num_attention_heads": 232,
        "num_kv_heads": 8,
    },
    "falcon-11b": {
        **_NEW,
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_kv_heads": 8,
        "ffn_hidden_size": 16384,
        "num_ln_in_parallel_attn": 1,
        "max_position_embeddings": 8192,
        "rope_theta": 500042.0,
        "tie_word_embeddings": False,
    },
}
OTHER_NAMES = {"falcon2-11b": "falcon-11b"}
VERSIONS = re.compile(r"-(instruct|chat|vlm)$")
WORDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model, the dtype that its checkpoint says, and what a cut's matrices are quantised to."""

    name: str
    config: ModelConfig
    dtype: str
    quant: str = "none"


def planned_model(word: str) -> PlannedModel:
    """The model that a word names: a file in the format of config.json, a folder with one, a cut, nestling,
    or a published model with or without its organisation (tiiuae/falcon-40b-instruct). UsageError where it
    is none of these; ConfigError for a config that is refused.
    """
    path = NESTLING if word == "nestling" and not Path(word).exists() else Path(word)
    if word and path.is_dir():
        return _in_folder(word, path)
    if word and path.is_file():
        return _from_config(word, read_json(path), str(path))
    name = VERSIONS.sub("", word.lower().removeprefix("tiiuae/"))
    name = OTHER_NAMES.get(name, name)
    if name not in PUBLISHED:
        wanted = f"a config.json, a model folder, nestling or {', '.join(PUBLISHED)}"
        raise UsageError(wanted, shown(word), did_you_mean(name, [*PUBLISHED], "name one of these"))
    return _from_config(name, PUBLISHED[name], name)


def _in_folder(word: str, folder: Path) -> PlannedModel:
    if not has_manifest(folder):
        path = folder / CONFIG
        return _from_config(word, read_json(path), str(path))
    manifest = Manifest.read(folder)
    found = _from_config(word, manifest.raw_config, str(folder))
    return PlannedModel(found.name, found.config, found.dtype, manifest.quant)


def _from_config(name: str, raw: Mapping[str, object], where: str) -> PlannedModel:
    dtype = WORDS.get(str(raw.get("torch_dtype") or raw.get("dtype")), "bf16")
    return PlannedModel(name, config_from_json(raw, where), dtype)
