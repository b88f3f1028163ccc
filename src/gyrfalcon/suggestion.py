"""What a misspelt word, or one that another engine uses, was probably meant to be."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

CUTOFF = 0.7  # of difflib's ratio: below, words are not near

OTHER_NAMES = {  # what vLLM, llama.cpp and transformers call commands, options and their values
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
    "--quantization": "--quant",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "gpu": "cuda",
    "8bit": "int8",
    "q8_0": "int8",
    "4bit": "int4",
    "q4_0": "int4",
}


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question that names the known word of the same meaning, or else the nearest to this one;
    `otherwise` where none is near.
    """
    words = list(known)
    same = [OTHER_NAMES[word]] if OTHER_NAMES.get(word) in words else []
    near = same or get_close_matches(word, words, n=1, cutoff=CUTOFF)
    return f"did you mean {near[0]}?" if near else otherwise


def path_meant(path: str, otherwise: str, *words: str) -> str:
    """The same for a path: one of `words`, or what lies in the same folder under a name that is near."""
    place, names = Path(path), list[str]()
    with suppress(OSError):
        names = [entry.name for entry in place.parent.iterdir()]
    near = get_close_matches(place.name, names, n=1, cutoff=CUTOFF)
    beside = f"did you mean {place.with_name(near[0])}?" if near else otherwise
    return did_you_mean(path, words, beside)
