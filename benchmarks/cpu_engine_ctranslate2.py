"""CTranslate2 in benchmarks/cpu_peers.py. Needs transformers to convert."""

import json
from pathlib import Path

import ctranslate2
from cpu_engine import Generate, Generation, Prompts, Setup
from ctranslate2.converters import TransformersConverter

TYPES = {"bf16": "bfloat16", "int8": "int8"}


def versions() -> dict[str, str]:
    """CTranslate2."""
    return {"ctranslate2": ctranslate2.__version__}


def lacks() -> dict[str, str]:
    """The precisions in which it would compute in another type on this processor."""
    there = ctranslate2.get_supported_compute_types("cpu")
    why = f"on this processor it computes in {', '.join(sorted(there))} only"
    return {precision: why for precision, kind in TYPES.items() if kind not in there}


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """Its own format."""
    TransformersConverter(str(checkpoint)).convert(str(target), quantization=TYPES[precision])


def load(setup: Setup) -> Generate:
    """A generator that computes one batch at a time."""
    generator = ctranslate2.Generator(
        setup.path,
        device="cpu",
        compute_type=TYPES[setup.precision],
        inter_threads=1,
        intra_threads=setup.threads,
    )
    words = json.loads((Path(setup.path) / "vocabulary.json").read_text("utf-8"))

    def generate(prompts: Prompts, steps: int) -> Generation:
        ids: list[int] = []

        def report(result: ctranslate2.GenerationStepResult) -> bool:
            ids.append(result.token_id)
            if len(ids) == len(prompts):
                found.step_ended(ids)
                ids.clear()
            return False

        found = Generation()
        generator.generate_batch(
            [[words[number] for number in prompt] for prompt in prompts],
            min_length=steps + 1,
            max_length=steps + 1,
            include_prompt_in_result=False,
            callback=report,
        )
        return found

    return generate
