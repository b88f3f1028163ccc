"""The norms as the six models launch them."""

from kernel_cases import Case

from gyrfalcon.ops.triton import norm as triton_norm

NO_MATRICES: frozenset[str] = frozenset()

# Name, columns of a row, norms of one row: 40b and 180B norm it twice, 11B as 7b once.
MODELS = (
    ("7b", 4544, 1),
    ("40b", 8192, 2),
    ("180B", 14848, 2),
    ("rw-1b", 2048, 1),
    ("rw-7b 11B", 4096, 1),
)


def _norms(model: str, hidden: int, count: int, *, first: bool) -> Case:
    """The norms of one row; those of the first block add nothing to it."""
    config = triton_norm.config_for(hidden)
    tensors = ["x", "weight", "bias", "normed"]
    tensors += [] if first else ["part", "total"]
    seconds = ["second_weight", "second_bias", "second_normed"]
    tensors += seconds if count == 2 else []
    absent = {name for name in ("part", "total", *seconds) if name not in tensors}
    return Case(
        name=f"{'norms' if first else 'sum and norms'} {model} bf16",
        kernel=triton_norm._add_layer_norms,
        signature={name: "*bf16" for name in tensors}
        | {"x_stride": "i32", "part_stride": "i32", "eps": "fp32"},
        constants=dict.fromkeys(absent) | {"HIDDEN": hidden, "TILE": config.tile},
        warps=config.warps,
        stages=3,
        expects=NO_MATRICES,
        aligned=frozenset({"x_stride", "part_stride"}),
        ascend={"TILE": 4096} if hidden > config.tile else {},  # its unified buffer has 192 KiB
    )


CASES = [_norms(*model, first=first) for model in MODELS for first in (False, True)]
