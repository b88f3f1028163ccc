"""Falcon language models, cut for any number of ranks, generating text.

The names below are loaded when first asked for, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gyrfalcon.engine.engine import Engine
    from gyrfalcon.request import SamplingParams
    from gyrfalcon.settings import EngineConfig

__version__ = "0.1.0"
__all__ = ["Engine", "EngineConfig", "SamplingParams", "__version__"]

_HOMES = {
    "Engine": "gyrfalcon.engine.engine",
    "EngineConfig": "gyrfalcon.settings",
    "SamplingParams": "gyrfalcon.request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gyrfalcon' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
