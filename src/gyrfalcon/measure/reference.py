"""Reference files: prompts as token ids and the logits that a reference gives after every token,
kept in float32, because rounding to float16 alone (2e-4) is more than the fp32 gate allows (1e-4).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gyrfalcon.config import ModelConfig
from gyrfalcon.errors import UsageError
from gyrfalcon.output_file import replacing
from gyrfalcon.weights.hashed_file import Lanes
from gyrfalcon.weights.manifest import Content
from gyrfalcon.weights.safetensors_file import SafetensorsFile
from gyrfalcon.weights.safetensors_writer import SafetensorsWriter

FORMAT = "gyrfalcon-reference"
VERSION = "1"

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Origin:
    """What computed a reference; `independent`: no code of ours."""

    kind: str  # transformers or fp32
    description: str
    independent: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """An open reference file; its logits are read when asked for."""

    origin: Origin
    prompts: tuple[tuple[int, ...], ...]
    tensors: SafetensorsFile

    @classmethod
    def open(cls, path: Path, config: ModelConfig) -> Self:
        """Opens a file that write_reference() made for a model of this config; else UsageError."""
        metadata = _metadata(path)
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            got = f"format {metadata.get('format')}, version {metadata.get('version')}"
            do = "make one with --save-reference"
            raise UsageError(f"a {FORMAT} file of version {VERSION} in {path}", got, do)
        _check_model(path, json.loads(metadata["model"]), config)
        tensors = SafetensorsFile(path)
        ids = [tensors.read(_ids(number)).tolist() for number in range(len(tensors.names()) // 2)]
        return cls(Origin(**json.loads(metadata["origin"])), tuple(map(tuple, ids)), tensors)

    def logits(self, number: int) -> Tensor:
        """The logits of one prompt, float32 [tokens, vocab]."""
        return self.tensors.read(_logits(number))


def write_reference(
    path: Path, config: ModelConfig, origin: Origin, prompts: Prompts, logits: Iterable[Tensor]
) -> None:
    """Writes one prompt's logits (float32 [tokens, vocab]) after the other; the file appears when
    it is whole.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "origin": json.dumps(asdict(origin)),
        "model": json.dumps(asdict(config)),
    }
    with replacing(path) as part, Lanes() as lanes:
        writer = SafetensorsWriter(part, _contents(config, prompts), lanes, metadata)
        try:
            for ids, rows in zip(prompts, logits, strict=True):
                writer.write(torch.tensor(ids, dtype=torch.int64))
                writer.write(rows.contiguous())
            writer.finish()
        finally:
            writer.close()


def _contents(config: ModelConfig, prompts: Prompts) -> dict[str, Content]:
    contents = {}
    for number, ids in enumerate(prompts):
        contents[_ids(number)] = Content((len(ids),), torch.int64)
        contents[_logits(number)] = Content((len(ids), config.vocab_size), torch.float32)
    return contents


def _ids(number: int) -> str:
    return f"prompt.{number}.ids"


def _logits(number: int) -> str:
    return f"prompt.{number}.logits"


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        do = "make one with --save-reference"
        raise UsageError(f"a safetensors file {path}", str(error), do) from None


def _check_model(path: Path, stored: dict[str, object], config: ModelConfig) -> None:
    here = json.loads(json.dumps(asdict(config)))
    differing = [name for name in here if here[name] != stored.get(name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"a reference for this model, {name} {here[name]}",
            f"{name} {stored.get(name)} in {path}",
            "name the model that the reference was made for",
        )
