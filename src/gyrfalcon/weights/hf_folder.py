"""Finds the weights in a Hugging Face folder: safetensors before .bin, one file or many with an index."""

from collections.abc import Iterable
from pathlib import Path

from gyrfalcon.errors import CheckpointError
from gyrfalcon.foreign_file import read_json
from gyrfalcon.weights.pickle_file import PickleFile
from gyrfalcon.weights.safetensors_file import SafetensorsFile
from gyrfalcon.weights.tensors import ShardedSource, TensorSource, listed

WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
)  # the first there is used, whole or by an index
SAFETENSORS, PICKLE = ".safetensors", ".bin"


def open_weights(folder: Path) -> tuple[TensorSource, tuple[Path, ...], list[str]]:
    """The folder's tensors, the files they come from, and notes on files that are left aside."""
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
    if SAFETENSORS in chosen and len(forms) == 1 and any(name.endswith(PICKLE) for name in names):
        notes.append(f"{PICKLE} files are ignored: {chosen} is used")
    if not chosen.endswith(".json"):
        return _open_file(folder / chosen), (folder / chosen,), notes
    home = _weight_map(folder / chosen)
    paths = sorted({folder / file for file in home.values()})
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"the files that {folder / chosen} names", f"no {listed(missing)}", "fetch them"
        )
    opened = {path.name: _open_file(path) for path in paths}
    absent = [
        f"{name} in {file}" for name, file in home.items() if name not in opened[file].names()
    ]
    if absent:
        raise CheckpointError(
            f"the tensors that {folder / chosen} names", f"no {listed(absent)}", "fetch it again"
        )
    return ShardedSource({name: opened[file] for name, file in home.items()}), tuple(paths), notes


def _open_file(path: Path) -> TensorSource:
    return SafetensorsFile(path) if path.name.endswith(SAFETENSORS) else PickleFile(path)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"a weight_map in {index}", repr(weight_map)[:80], "fetch the index again"
        )
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith((SAFETENSORS, PICKLE))
        ):
            raise CheckpointError(
                f"a weights file beside {index} for {name}", repr(file), "fetch the index again"
            )
    return weight_map


def _weight_like(names: Iterable[str]) -> str:
    found = sorted(name for name in names if name.endswith((SAFETENSORS, PICKLE)))
    return listed(found) if found else "none"
