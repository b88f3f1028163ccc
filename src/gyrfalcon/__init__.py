"""Falcon language models, cut for any number of ranks, generating text.

The names below are loaded when first asked for, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gyrfalcon.engine.engine import Engine
    from gyrfalcon.engine_config import EngineConfig
    from gyrfalcon.errors import (
        CacheTooSmall,
        CheckFailed,
        CheckpointError,
        ConfigError,
        DiskFull,
        EngineClosed,
        GyrfalconError,
        MissingExtra,
        NotFinite,
        NoTokenAllowed,
        OutOfMemory,
        PromptTooLong,
        QueueFull,
        RankDied,
        RequestError,
        TooManyOpenFiles,
        UsageError,
        WorldSizeError,
    )
    from gyrfalcon.request import (
        Completion,
        Delta,
        EngineStats,
        FinishReason,
        RequestOutput,
        SamplingParams,
        Token,
    )
    from gyrfalcon.structured import StructuredOutput
    from gyrfalcon.text.chat import Message

__version__ = "0.1.0"
__all__ = [
    "CacheTooSmall",
    "CheckFailed",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Delta",
    "DiskFull",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "GyrfalconError",
    "Message",
    "MissingExtra",
    "NoTokenAllowed",
    "NotFinite",
    "OutOfMemory",
    "PromptTooLong",
    "QueueFull",
    "RankDied",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "Token",
    "TooManyOpenFiles",
    "UsageError",
    "WorldSizeError",
    "__version__",
]

_HOMES = {
    "Engine": "engine.engine",
    "EngineConfig": "engine_config",
    "Message": "text.chat",
    "StructuredOutput": "structured",
    **dict.fromkeys(
        (
            "Completion",
            "Delta",
            "EngineStats",
            "FinishReason",
            "RequestOutput",
            "SamplingParams",
            "Token",
        ),
        "request",
    ),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'gyrfalcon' has no attribute {name!r}")
    return getattr(import_module(f"gyrfalcon.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
