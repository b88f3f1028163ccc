"""Finds the weights in a Hugging Face folder: safetensors before .bin, one file or many with an index."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.checkpoint.pickle_file import PickleFile
from gyrfalcon.checkpoint.safetensors_file import SafetensorsFile
from gyrfalcon.checkpoint.tensors import WeightsFile, listed
from gyrfalcon.checkpoint.weights_index import PICKLE, SAFETENSORS, WEIGHTS, read_index
from gyrfalcon.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class OpenedFolder:
    """A folder's weights files, and what its index states about them."""

    files: dict[str, WeightsFile]  # by path inside the folder
    index: Mapping[str, str]  # tensor → file, as the index states; empty where one file holds all
    notes: tuple[str, ...]  # on files that are left aside


def open_weights(folder: Path) -> OpenedFolder:
    """Opens the files that hold the weights; CheckpointError when there are none, or damaged ones."""
    names = {path.name for path in folder.iterdir()}
    forms = [form for name in WEIGHTS for form in (name, f"{name}.index.json") if form in names]
    if not forms:
        raise CheckpointError(
            f"{' or '.join(WEIGHTS)}, or an index of one, in {folder}",
            _weight_like(names),
            "fetch the weights",
        )
    chosen = forms[0]
    notes = [f"{other} is ignored: {chosen} is used" for other in forms[1:]]
    stale = any(name.startswith("pytorch_model") and name.endswith(PICKLE) for name in names)
    if SAFETENSORS in chosen and len(forms) == 1 and stale:
        notes.append(f"{PICKLE} files are ignored: {chosen} is used")
    index = read_index(folder / chosen) if chosen.endswith(".json") else {}
    files = sorted(set(index.values())) if index else [chosen]
    missing = [file for file in files if not os.path.lexists(folder / file)]
    if missing:
        raise CheckpointError(
            f"the files that {folder / chosen} names", f"no {listed(missing)}", "fetch them"
        )
    return OpenedFolder({file: _open_file(folder / file) for file in files}, index, tuple(notes))


def _open_file(path: Path) -> WeightsFile:
    return SafetensorsFile(path) if path.name.endswith(SAFETENSORS) else PickleFile(path)


def _weight_like(names: Iterable[str]) -> str:
    found = sorted(name for name in names if name.endswith((SAFETENSORS, PICKLE)))
    return listed(found) if found else "none"
