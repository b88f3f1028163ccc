"""What tells one job from another: its task, its model's files, and how the model computes. The files are
known by their content, so that workers on other machines may have copies of their own.
"""

import json

from gyrfalcon.checkpoint.fingerprint import model_identity
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.jobs.task import Task

OPTION_NAMES = {
    "kind": "the command",
    "model_files": "other files of the model…",
    "adapter_files": "other files of the adapter…",
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
    found = {
        **task.to_json(),
        "seed": seed,
        "device": config.device,
        "dtype": config.dtype,
        "quant": config.quant,
        "max_len": config.max_len,
        **model_identity(config),
    }
    plain: dict[str, object] = json.loads(json.dumps(found))
    return plain
