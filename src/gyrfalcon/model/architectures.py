"""The architectures by a config's model_type: each is a config reader, its tensors, and its model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.config import ModelConfig
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.model.builder import Block, LayerBuilder, Model
from gyrfalcon.model.config_fields import refuse
from gyrfalcon.model.falcon import build_falcon, falcon_block
from gyrfalcon.model.falcon_config import read_falcon_config
from gyrfalcon.model.falcon_layout import FALCON_TENSORS
from gyrfalcon.model.layout import Layout, TensorScheme


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models that differ in their configs alone."""

    read_config: Callable[[Fields], ModelConfig]
    tensors: TensorScheme
    model: Callable[[LayerBuilder], Model]
    block: Callable[[LayerBuilder, int], Block]


FALCON = Architecture(read_falcon_config, FALCON_TENSORS, build_falcon, falcon_block)
ARCHITECTURES = {"falcon": FALCON, "RefinedWeb": FALCON, "RefinedWebModel": FALCON}


def config_from_json(raw: Mapping[str, object], where: str = "config.json") -> ModelConfig:
    """Translates a Hugging Face config to our words; ConfigError names the field that is refused."""
    fields = Fields(raw, where)
    return ARCHITECTURES[_model_type(fields)].read_config(fields)


def config_from_file(path: Path) -> ModelConfig:
    """Reads a config.json; CheckpointError when it is not there or no JSON, ConfigError when refused."""
    return config_from_json(read_json(path), str(path))


def make_layout(config: ModelConfig, has_head: bool, quant: str = "none") -> Layout:
    """The tensors of a model, with a head of its own or without, its matrices stored in `quant`."""
    return Layout(config, architecture_of(config).tensors, has_head, quant)


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture whose config this is."""
    return ARCHITECTURES[config.architecture]


def _model_type(fields: Fields) -> str:
    model_type = fields.take(str, "model_type")
    if model_type is None and fields.raw.get("architectures") == ["FalconForCausalLM"]:
        return "falcon"
    if model_type not in ARCHITECTURES:
        raise refuse(fields, f"model_type {', '.join(ARCHITECTURES)}", f"{model_type!r}")
    return model_type
