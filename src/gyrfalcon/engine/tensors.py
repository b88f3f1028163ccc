"""The guide's tensors ↔ prompts: which columns of a batch are real, and back into a batch of the
same shape.
"""

import torch
from torch import Tensor

from gyrfalcon.errors import RequestError

# An additive mask at or below this forbids; 0 allows; anything between is a bias we do not take.
MASKED = -1e4

AS_TENSOR = "pass torch.as_tensor() of it"


def real_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which tokens are no padding: bool [batch, seq].

    input_ids int64 [batch, seq]. attention_mask: [batch, seq] of 0 and 1, or additive float [batch,
    1, seq, seq] that is causal plus whole padding columns; RequestError for anything else.
    """
    _check_ids(input_ids)
    if not isinstance(attention_mask, Tensor | None):
        raise RequestError("a tensor or None as attention_mask", _named(attention_mask), AS_TENSOR)
    batch, seq = input_ids.shape
    if attention_mask is None:
        return torch.ones(batch, seq, dtype=torch.bool)
    mask = attention_mask.cpu()
    if mask.shape == (batch, seq):
        real = _from_flags(mask)
    elif mask.shape == (batch, 1, seq, seq):
        real = _from_additive(mask[:, 0])
    else:
        wanted = f"attention_mask [{batch}, {seq}] or [{batch}, 1, {seq}, {seq}]"
        raise RequestError(wanted, str(list(mask.shape)), "match it to input_ids")
    if not real.any(dim=1).all():
        raise RequestError("a real token in every row", "a row of padding", "leave that row out")
    return real


def _check_ids(input_ids: Tensor) -> None:
    wanted = "a tensor input_ids int64 [batch, seq]"
    if not isinstance(input_ids, Tensor):
        raise RequestError(wanted, _named(input_ids), AS_TENSOR)
    shape = f"{input_ids.dtype} {list(input_ids.shape)}"
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise RequestError(wanted, shape, "pass whole token ids, as torch.int64")
    if input_ids.ndim == 1:
        raise RequestError(wanted, shape, "pass a batch, as ids[None] is one")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise RequestError(wanted, shape, "pass a batch of token ids")


def _named(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _from_flags(mask: Tensor) -> Tensor:
    if not ((mask == 0) | (mask == 1)).all():
        raise RequestError(
            "an attention_mask of 0 and 1", "other values", "use 1 for tokens and 0 for padding"
        )
    return mask == 1


def _from_additive(mask: Tensor) -> Tensor:
    """mask [batch, seq, seq]: the last row shows the padding columns; every real row must be that
    plus causality.

    Rows of padding may say anything: nothing real looks at them.
    """
    allowed = mask == 0
    if mask.dtype != torch.bool and not (allowed | (mask <= MASKED)).all():
        raise RequestError(
            f"a 4-D mask of 0 and {MASKED:g} or less",
            "values between",
            "pass no position bias in the mask",
        )
    if mask.dtype == torch.bool:
        allowed = mask
    real = allowed[:, -1]  # [batch, seq]
    causal = torch.ones(mask.shape[1:], dtype=torch.bool).tril()
    fits = (allowed == (causal & real[:, None])) | ~real[:, :, None]
    if not fits.all():
        raise RequestError(
            "a 4-D mask that is causal plus whole padding columns",
            "another pattern",
            "use such a mask or a 2-D one",
        )
    return real
