"""Writes one state dict in every form that Hugging Face folders have."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

State = Mapping[str, Tensor]


def save_safetensors(folder: Path, state: State) -> None:
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})


def save_bin(folder: Path, state: State) -> None:
    torch.save(dict(state), folder / "pytorch_model.bin")


def save_old_bin(folder: Path, state: State) -> None:
    torch.save(dict(state), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_sharded_safetensors(folder: Path, state: State) -> None:
    for file, part in shards(folder, "model", "safetensors", state).items():
        save_file(part, folder / file, metadata={"format": "pt"})


def save_sharded_bin(folder: Path, state: State) -> None:
    for file, part in shards(folder, "pytorch_model", "bin", state).items():
        torch.save(part, folder / file)


FORMS: dict[str, Callable[[Path, State], None]] = {
    "safetensors": save_safetensors,
    "sharded safetensors": save_sharded_safetensors,
    "bin": save_bin,
    "sharded bin": save_sharded_bin,
    "old bin": save_old_bin,
}


def shards(folder: Path, stem: str, suffix: str, state: State) -> dict[str, dict[str, Tensor]]:
    """Deals the tensors over three files, and writes the index."""
    names = list(state)
    files = {
        f"{stem}-{number + 1:05d}-of-00003.{suffix}": {
            name: state[name] for name in names[number::3]
        }
        for number in range(3)
    }
    home = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {}, "weight_map": home}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return files


def save(folder: Path, config: Mapping[str, object], state: State, form: str) -> Path:
    """A checkpoint folder in one of FORMS; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    FORMS[form](folder, state)
    return folder
