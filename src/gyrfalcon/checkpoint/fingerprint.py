"""What tells whether the files of a model are those of an earlier run: their content, not where they lie or
when they were written.
"""

import hashlib
import json
from pathlib import Path

from gyrfalcon.checkpoint.adapter_folder import BESIDE, expanded
from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.files.foreign import open_foreign

# Read at each end of a file: all of a small one; the header of weights and their last tensors.
END_BYTES = 1 << 20


def model_identity(config: EngineConfig) -> dict[str, str | None]:
    """What an unfinished run is compared by, of the files that an engine with this config loads. An adapter
    beside the weights is among the model's own.
    """
    adapter = config.adapter if config.merges_adapter else None
    apart = adapter not in (None, BESIDE)
    return {
        "model_files": files_digest(resolve_model(config.model)),
        "adapter": adapter,
        "adapter_files": files_digest(expanded(str(adapter))) if apart else None,
    }


def files_digest(folder: Path) -> str:
    """SHA-256 of the names and sizes of a folder's files and of the END_BYTES at both of their ends."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        total.update(json.dumps([path.relative_to(folder).as_posix(), size]).encode())
        with open_foreign(path) as file:
            total.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            total.update(file.read(END_BYTES))
    return total.hexdigest()
