"""Reference files: prompts as token ids and the logits of a reference after every token, in
float32, as rounding to float16 alone (2e-4) exceeds the limit of the fp32 gate (1e-4).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gyrfalcon.checkpoint.manifest import Content
from gyrfalcon.checkpoint.safetensors_file import SafetensorsFile
from gyrfalcon.config import ModelConfig
from gyrfalcon.cut.hashed_file import Lanes
from gyrfalcon.cut.safetensors_writer import SafetensorsWriter
from gyrfalcon.errors import NotFinite, UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json, shown
from gyrfalcon.files.output import replacing

FORMAT = "gyrfalcon-reference"
VERSION = "1"

DO = "make one with `save_reference`"
INDEPENDENT = "transformers"
KINDS = (INDEPENDENT, "fp32")  # of what computes a reference
MOST_NAMED = 4  # tensors named in one error

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Origin:
    """What computed a reference; `independent`: without our code."""

    kind: str  # one of KINDS
    description: str
    independent: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """An open reference file; logits are read on demand."""

    origin: Origin
    prompts: tuple[tuple[int, ...], ...]
    tensors: SafetensorsFile

    @classmethod
    def open(cls, path: Path, config: ModelConfig) -> Self:
        """Opens a file that write_reference() made for a model of this config; UsageError or
        CheckpointError for any other file and for a damaged one. Reads all of it.
        """
        metadata = _metadata(path)
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            got = f"format {metadata.get('format')}, version {metadata.get('version')}"
            raise UsageError(f"a {FORMAT} file of version {VERSION} in {path}", got, DO)
        _check_model(path, _stated(metadata, "model", path), config)
        origin = read_origin(_stated(metadata, "origin", path))
        tensors = SafetensorsFile(path)
        return cls(origin, _checked_prompts(path, tensors, config.vocab_size), tensors)

    def logits(self, number: int) -> Tensor:
        """The logits of one prompt, float32 [tokens, vocab]."""
        return self.tensors.read(_logits(number))


def write_reference(
    path: Path, config: ModelConfig, origin: Origin, prompts: Prompts, logits: Iterable[Tensor]
) -> None:
    """Writes the logits prompt by prompt (float32 [tokens, vocab]); the file appears once it is
    complete. NotFinite when a logit is NaN or infinite.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "origin": json.dumps(asdict(origin)),
        "model": json.dumps(config.facts()),
    }
    with replacing(path) as part, Lanes() as lanes:
        writer = SafetensorsWriter(part, _contents(config, prompts), lanes, metadata)
        try:
            for ids, rows in zip(prompts, logits, strict=True):
                if not rows.isfinite().all():
                    wanted, got = f"finite logits from {origin.description}", "NaN or infinity"
                    raise NotFinite(wanted, got, "check the checkpoint: gyrfalcon verify")
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
        raise UsageError(f"a safetensors file {path}", str(error), DO) from None


def _stated(metadata: Mapping[str, str], name: str, path: Path) -> Fields:
    """An object that the metadata store as JSON."""
    where = f"{name} of the metadata in {path}"
    value = parsed_json(metadata.get(name, "").encode(), where, DO)
    if not isinstance(value, dict):
        raise UsageError(f"a JSON object as {where}", shown(value), DO)
    return Fields(value, where)


def read_origin(raw: Fields) -> Origin:
    """The origin of a reference, as a file of ours states it."""
    kind, independent = raw.one_of(KINDS, "kind"), raw.need(bool, "independent")
    if independent != (kind == INDEPENDENT):
        raise UsageError(f"independent for {INDEPENDENT} alone in {raw.where}", kind, DO)
    return Origin(kind, raw.need(str, "description"), independent)


def _check_model(path: Path, stated: Fields, config: ModelConfig) -> None:
    here = json.loads(json.dumps(config.facts()))
    for name, value in here.items():
        found = stated.raw.get(name)
        if json.dumps(found, sort_keys=True) != json.dumps(value, sort_keys=True):
            raise UsageError(
                f"a reference for this model, {name} {shown(value)}",
                f"{name} {shown(found)} in {path}",
                "name the model that the reference was made for",
            )


def _checked_prompts(
    path: Path, tensors: SafetensorsFile, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The prompts, each with as many rows of finite logits as it has tokens, and nothing else."""
    count = len(tensors.names()) // 2
    names = {name(number) for number in range(count) for name in (_ids, _logits)}
    if not count or names != set(tensors.names()):
        found = ", ".join(sorted(tensors.names())[:MOST_NAMED]) or "none"
        raise UsageError(f"ids and logits of prompts, from 0 on, in {path}", found, DO)
    return tuple(_checked_ids(path, tensors, number, vocab_size) for number in range(count))


def _checked_ids(
    path: Path, tensors: SafetensorsFile, number: int, vocab_size: int
) -> tuple[int, ...]:
    name, shape = _ids(number), tensors.shape(_ids(number))
    if tensors.dtype(name) != torch.int64 or len(shape) != 1 or not shape[0]:
        got = f"{tensors.dtype(name)} {list(shape)}"
        raise UsageError(f"{name} in {path} as int64 of one token or more", got, DO)
    wanted = (torch.float32, (shape[0], vocab_size))
    name = _logits(number)
    if (tensors.dtype(name), tensors.shape(name)) != wanted:
        got = f"{tensors.dtype(name)} {list(tensors.shape(name))}"
        raise UsageError(f"{name} in {path} as {wanted[0]} {list(wanted[1])}", got, DO)
    ids: list[int] = tensors.read(_ids(number)).tolist()
    if not tensors.read(name).isfinite().all():
        raise UsageError(f"finite logits in {path}", f"NaN or infinity in {name}", DO)
    return tuple(ids)
