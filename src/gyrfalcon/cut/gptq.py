"""GPTQ: calibrated quantisation of a matrix to 4 bits. It minimises the error of the matrix's
outputs, not of its weights, for inputs with known second moments.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers": columns are quantised one after the other, and the columns still to come absorb, as
far as their inputs allow, the output error of each.
"""

import torch
from torch import Tensor

from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.quant import (
    GROUPS,
    Quantised,
    int4_scales,
    int4_values,
    pack_int4,
    quantise_in_chunks,
)

DAMPING = 0.01  # of the mean second moment, added to each: tells inputs that never differ apart
BLOCK = 128  # columns whose effect on later ones is computed at once; whole groups of every kind
ROW_CHUNK = 1 << 26  # weights at a time: 256 MiB in float32


def quantise_for(weight: Tensor, kind: str, moments: Tensor) -> Quantised:
    """Quantises a floating-point matrix [out, in] to a kind of int4 such that the squared error of
    its outputs is small, for inputs with the second moments E[x xᵀ] `moments`, float32 [in, in].

    The scale of a group is searched for as in `quantise`, errors weighted by the size of their
    input. UsageError for another kind, or a matrix that is not made of whole tiles and groups;
    CheckpointError for weights or moments that are not finite.
    """
    if kind not in GROUPS:
        raise UsageError(f"{', '.join(GROUPS)} to calibrate", kind, "leave the text out")
    factor, importance = _inverse_factor(moments), moments.diagonal()

    def convert(part: Tensor) -> tuple[Tensor, Tensor]:
        return pack_int4(*_quantise_columns(part, factor, importance, GROUPS[kind]))

    return quantise_in_chunks(weight, kind, convert, ROW_CHUNK)


def _quantise_columns(
    weight: Tensor, factor: Tensor, importance: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """Whole numbers [rows, in] and scales [rows, in / group]."""
    left = weight.t().contiguous()  # [in, rows], what is left to quantise of columns, row by row
    values, scales = torch.empty_like(left), []
    for start in range(0, len(left), BLOCK):
        block, later = left[start : start + BLOCK], left[start + BLOCK :]
        inner = factor[start : start + BLOCK, start : start + BLOCK]
        errors = torch.empty_like(block)
        for i, column in enumerate(block):
            if i % group == 0:
                span = slice(start + i, start + i + group)
                scale = int4_scales(left[span].t()[:, None], importance[None, span])[:, 0, 0]
                scales.append(scale)
            values[start + i] = int4_values(column, scale)
            errors[i] = (column - values[start + i] * scale) / inner[i, i]
            block[i + 1 :].addr_(inner[i, i + 1 :], errors[i], alpha=-1)
        later.addmm_(factor[start : start + BLOCK, start + BLOCK :].t(), errors, alpha=-1)
    return values.t(), torch.stack(scales, dim=1)


def _inverse_factor(moments: Tensor) -> Tensor:
    """U, upper triangular, with Uᵀ U the inverse of the damped moments; of M, upper triangular, with M Mᵀ
    the moments, it is the inverse. Their size cancels out in what U is used for.
    """
    mean = moments.diagonal().mean()
    if not moments.isfinite().all() or not mean.isfinite() or mean < 0:
        raise CheckpointError("finite inputs of a matrix", "others", "check the model and the text")
    scaled = moments / mean if mean > 0 else torch.zeros_like(moments)
    scaled.diagonal().add_(DAMPING)
    factor = torch.linalg.cholesky(scaled.flip(0, 1)).flip(0, 1)
    del scaled  # each of these may take gigabytes
    inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=True)
    return inverse
