"""The guide's cases of prompt and output lengths, and their averages, from the times of a few steps."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PRECISIONS = ("bf16", "int8", "fp8", "int4")
LENGTHS = (32, 64, 128, 256, 512, 1024)  # in and out


def computed_sweep(
    steps: Sequence[Mapping[str, Any]], firsts: Mapping[int, float], lengths: Sequence[int]
) -> dict[str, Any]:
    """The guide's averages over its cases, from the times of steps at a few contexts and of first tokens, by
    prompt length; between the contexts a step's time is taken from the line through its neighbours.
    """
    rows = []
    for input_len, output_len in itertools.product(lengths, repeat=2):
        contexts = range(input_len + 1, input_len + output_len)
        decoding = sum(step_ms(steps, context) for context in contexts)
        rows.append((firsts[input_len], decoding / (output_len - 1), firsts[input_len] + decoding))
    return averages(rows)


def averages(rows: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Means over the cases of first token, time per token and response, in ms."""
    first, per_token, response = (statistics.fmean(column) for column in zip(*rows, strict=True))
    return {
        "cases": len(rows),
        "first_token_ms": first,
        "time_per_token_ms": per_token,
        "response_ms": response,
        "tokens_per_second": 1000 / per_token,
    }


def step_ms(steps: Sequence[Mapping[str, Any]], context: int) -> float:
    """A step's time at a context, from rows with `context` and `ms_per_token` in order."""
    known = [(row["context"], row["ms_per_token"]) for row in steps]
    if len(known) == 1 or context <= known[0][0]:
        return float(known[0][1])
    right = next((i for i, (at, _) in enumerate(known) if at >= context), len(known) - 1)
    (before, low), (after, high) = known[right - 1], known[right]
    return float(low + (high - low) * (context - before) / (after - before))
