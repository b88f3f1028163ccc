"""The norms as the six models launch them."""

from kernel_cases import Case

from gyrfalcon.ops.triton import norm as triton_norm

NO_MATRICES: frozenset[str] = frozenset()
STRIDES = ("x_stride", "part_stride", "parts_stride")

# Name, columns of a row, norms of one row: 40b and 180B norm it twice, 11B as 7b once.
MODELS = (
    ("7b", 4544, 1),
    ("40b", 8192, 2),
    ("180B", 14848, 2),
    ("rw-1b", 2048, 1),
    ("rw-7b 11B", 4096, 1),
)


def _norms(model: str, hidden: int, count: int, *, first: bool, parts: int = 1) -> Case:
    """The norms of one row; those of the first block add nothing to it, others that many `parts`."""
    config = triton_norm.config_for(hidden)
    tensors = ["x", "weight", "bias", "normed"]
    tensors += [] if first else ["part", "total"]
    seconds = ["second_weight", "second_bias", "second_normed"]
    tensors += seconds if count == 2 else []
    absent = {name for name in ("part", "total", *seconds) if name not in tensors}
    types = dict.fromkeys(tensors, "*bf16") | dict.fromkeys(STRIDES, "i32") | {"eps": "fp32"}
    types |= {"part": "*fp32"} if parts > 1 else {}
    kernel = triton_norm._add_layer_norms
    return Case(
        name=f"{'norms' if first else 'sum and norms'} {model} bf16{f' {parts} parts' * (parts > 1)}",
        kernel=kernel,
        signature={name: types[name] for name in kernel.arg_names if name in types},
        constants=dict.fromkeys(absent)
        | {"PARTS": parts * (not first), "HIDDEN": hidden, "TILE": config.tile, "EARLY": False},
        warps=config.warps,
        stages=3,
        expects=NO_MATRICES,
        aligned=frozenset(STRIDES),
        # Its unified buffer has 192 KiB; parts are those of a kernel that it lacks.
        ascend=None if parts > 1 else {"TILE": 4096} if hidden > config.tile else {},
    )


CASES = [
    *(_norms(*model, first=first) for model in MODELS for first in (False, True)),
    *(
        _norms(*MODELS[model], first=False, parts=parts)
        for model, parts in ((0, 3), (0, 14), (1, 2), (1, 8), (2, 4))  # most with int4
    ),
]
