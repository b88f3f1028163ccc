"""Suggests what was meant by a misspelt word, or by another engine's name for something."""

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from gyrfalcon.device import OTHER_NAMES as OTHER_NAMES_OF_DEVICES
from gyrfalcon.errors import GyrfalconError

T = TypeVar("T")

CUTOFF = 0.7  # difflib's ratio: below it, words are not similar

OTHER_NAMES = {  # what vLLM, llama.cpp and transformers call commands, options, parameters, values
    "chat": "generate",
    "run": "generate",
    "bench": "speed",
    "eval": "mmlu",
    "convert": "cut",
    "quantize": "cut",
    "--tensor-parallel-size": "-w",
    "-tp": "-w",
    "-p": "--prompt",
    "-cnv": "--chat",
    "--temp": "--temperature",
    "--n-predict": "--max-new-tokens",
    "--ctx-size": "--max-len",
    "--gpu-memory-utilization": "--cache-memory",
    "-t": "--threads",
    "--lora": "--adapter",
    "--grammar-file": "--grammar",
    "--quantization": "--quant",
    "--request-rate": "--rate",
    "--num-prompts": "--requests",
    "--max-concurrency": "--concurrency",
    "--random-input-len": "--in",
    "--random-output-len": "--out",
    "tensor_parallel_size": "world_size",
    "gpu_memory_utilization": "cache_memory",
    "max_num_seqs": "max_sequences",
    "max_num_batched_tokens": "max_batch_tokens",
    "enable_prefix_caching": "reuse_prefixes",
    "quantization": "quant",
    "num_return_sequences": "n",
    "eos_token_id": "stop_ids",
    "do_sample": "temperature",
    "structured_outputs": "structured",
    "guided_decoding": "structured",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    **OTHER_NAMES_OF_DEVICES,
    "8bit": "int8",
    "q8_0": "int8",
    "4bit": "int4",
    "q4_0": "int4",
}


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Asks whether the user meant the known word of the same meaning, or else the most similar one;
    `otherwise` where none is similar.
    """
    words = list(known)
    same = [OTHER_NAMES[word]] if OTHER_NAMES.get(word) in words else []
    near = same or get_close_matches(word, words, n=1, cutoff=CUTOFF)
    return f"did you mean {near[0]}?" if near else otherwise


def path_meant(path: str, otherwise: str, *words: str) -> str:
    """The same for a path: one of `words`, or a similar name in the same folder."""
    place, names = Path(path), list[str]()
    with suppress(OSError):
        names = [entry.name for entry in place.parent.iterdir()]
    near = get_close_matches(place.name, names, n=1, cutoff=CUTOFF)
    beside = f"did you mean {place.with_name(near[0])}?" if near else otherwise
    return did_you_mean(path, words, beside)


def known_names(error: type[GyrfalconError], wanted: str) -> Callable[[type[T]], type[T]]:
    """Makes a class raise `error` for an unknown argument, with the one that was probably meant,
    instead of Python's TypeError.
    """

    def checked(kind: type[T]) -> type[T]:
        plain = kind.__init__
        names = list(inspect.signature(kind).parameters)

        @functools.wraps(plain)
        def init(self: T, *values: object, **named: object) -> None:
            for name in named:
                if name not in names:
                    do = did_you_mean(name, names, f"see help({kind.__name__})")
                    raise error(wanted, name, do)
            plain(self, *values, **named)

        kind.__init__ = init  # type: ignore[method-assign, assignment]  # takes more, to refuse it
        return kind

    return checked
