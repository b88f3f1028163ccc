"""The names of a Hugging Face folder's weights, and the index of those in several files. Needs no torch."""

from pathlib import Path, PurePosixPath

from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.foreign import is_inside, read_json

# The first there is used, whole or by an index.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SAFETENSORS, PICKLE = ".safetensors", ".bin"


def read_index(path: Path) -> dict[str, str]:
    """Which file beside or below `path` an index says holds which tensor; CheckpointError for any other."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"a weight_map in {path}", repr(weight_map)[:80], "fetch the index again"
        )
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or not is_inside(file)
            or not file.endswith((SAFETENSORS, PICKLE))
        ):
            raise CheckpointError(
                f"a weights file beside or below {path} for {name}",
                repr(file),
                "fetch the index again",
            )
    return {name: str(PurePosixPath(file)) for name, file in weight_map.items()}
