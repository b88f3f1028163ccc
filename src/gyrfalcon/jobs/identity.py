"""What tells one job from another: its task, its model's files, and how the model computes. The files are
known by their content, so that workers on other machines may have copies of their own.
"""

import hashlib
import json
from pathlib import Path

from gyrfalcon.checkpoint.adapter_folder import BESIDE, expanded
from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.files.foreign import open_foreign
from gyrfalcon.jobs.task import Task

END_BYTES = (
    1 << 20
)  # of each end of a file: all of a small one; a header and the last tensor of weights

OPTION_NAMES = {
    "kind": "the command",
    "model": "-m",
    "model_files": "other files of the model…",
    "adapter_files": "other files of the adapter…",
    "input": "other prompts…",
    "adapter": "--adapter",
    "device": "--device",
    "dtype": "--dtype",
    "quant": "--quant",
    "max_len": "--max-len",
    "part_rows": "--part-rows",
    "on_error": "--on-error",
    "id_field": "--id-field",
    "prompt_field": "--prompt-field",
    "continuation_field": "--continuation-field",
    "per_token": "--sums-only",
    "chat": "--chat",
    "max_new_tokens": "--max-new-tokens",
    "min_tokens": "--min-tokens",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repetition_penalty": "--repetition-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
    "n": "--n",
    "logprobs": "--logprobs",
    "stop": "--stop",
    "stop_ids": "--stop-id",
    "ignore_eos": "--ignore-eos",
    "structured": "another form of the text…",
}


def identity(task: Task, config: EngineConfig, seed: int | None) -> dict[str, object]:
    """All options that can change a result, as JSON gives them back; `seed` as it was typed."""
    word = config.adapter if config.merges_adapter else None
    beside = word in (None, BESIDE)
    found = {
        **task.to_json(),
        "seed": seed,
        "device": config.device,
        "dtype": config.dtype,
        "quant": config.quant,
        "max_len": config.max_len,
        "adapter": word,
        "model_files": files_digest(resolve_model(config.model)),
        "adapter_files": None if beside else files_digest(expanded(str(word))),
    }
    plain: dict[str, object] = json.loads(json.dumps(found))
    return plain


def files_digest(folder: Path) -> str:
    """SHA-256 of the names and sizes of a model's files and of what stands at their ends."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        total.update(json.dumps([path.relative_to(folder).as_posix(), size]).encode())
        with open_foreign(path) as file:
            total.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            total.update(file.read(END_BYTES))
    return total.hexdigest()
