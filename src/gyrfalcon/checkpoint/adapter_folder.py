"""Where a LoRA adapter lies: beside the weights, or in the folder that was asked for. Reads no tensor."""

import os
import re
from contextlib import suppress
from pathlib import Path

from gyrfalcon.checkpoint.adapter_config import ADAPTER_CONFIG, AdapterConfig
from gyrfalcon.engine_config import NO_ADAPTER
from gyrfalcon.errors import CheckpointError, UsageError

BESIDE = "."  # the adapter in the model's own folder
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the first there is used
MODEL_WEIGHTS = re.compile(r"(model|pytorch_model)\b.*\.(safetensors|bin)(\.index\.json)?")


def has_adapter(folder: Path) -> bool:
    """Whether an adapter's tensors lie in a folder."""
    return any(os.path.lexists(folder / name) for name in ADAPTER_WEIGHTS)


def refuse_lone_adapter(folder: Path) -> None:
    """CheckpointError for an adapter without a model beside it; its config says which model it is for."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    parts = names & {ADAPTER_CONFIG, *ADAPTER_WEIGHTS}
    whole = "config.json" in names and any(MODEL_WEIGHTS.fullmatch(name) for name in names)
    if not parts or whole:
        return
    base = AdapterConfig.read(folder).base_model if ADAPTER_CONFIG in parts else None
    got = f"an adapter alone, trained on {base or 'a model that it does not name'}"
    do = f"give {base or 'that model'} and `adapter={folder}`"
    raise CheckpointError(f"a model in {folder}", got, do)


def chosen_folder(word: str | None, model: Path) -> Path | None:
    """Where the adapter lies that is asked for, if one is; UsageError where one lies beside the weights and
    nobody said what to do with it.
    """
    if word is None and has_adapter(model):
        raise UsageError(
            f"a choice about the adapter beside the weights in {model}",
            "none",
            f"use `adapter={BESIDE}` to merge it or `adapter={NO_ADAPTER}` to leave it out",
        )
    if word in (None, NO_ADAPTER):
        return None
    if word == BESIDE and not has_adapter(model):
        do = f"name its folder (for the one you are in, {Path.cwd()})"
        raise UsageError(f"an adapter beside the weights in {model}", "none", do)
    folder = model if word == BESIDE else expanded(word or "")
    if not word or not folder.is_dir():
        got = "a file" if word and folder.exists() else "no such folder"
        do = "check the path; an adapter on the hub is downloaded first, with hf download"
        raise UsageError(
            f"the folder of an adapter, {BESIDE} or {NO_ADAPTER} for {word!r}", got, do
        )
    return folder


def expanded(word: str) -> Path:
    """A folder as it is typed; ~somebody who is not known here is a name like any other."""
    with suppress(RuntimeError):
        return Path(word).expanduser()
    return Path(word)
