"""Memory that dequantising whole matrices takes. Imports no Triton: a plan asks, too."""

import torch

SCRATCH_WEIGHTS = 1 << 28  # widened at a time: all of the largest matrix of 40b


def scratch_bytes(largest: int, dtype: torch.dtype) -> int:
    """What widening matrices of at most `largest` weights takes of a card, beside results: once for captured
    prompts, which keep theirs, and once for others.
    """
    return 2 * min(largest, SCRATCH_WEIGHTS) * dtype.itemsize
