"""The norms and the choice of a token as the six models launch them."""

from kernel_cases import Case

from gyrfalcon.ops import triton_norm, triton_sample

NO_MATRICES: frozenset[str] = frozenset()
VOCABULARIES = (65024, 50304)  # the second is rw-1b's

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
        kernel=triton_norm._add_norms,
        signature={name: "*bf16" for name in tensors}
        | {"x_stride": "i32", "part_stride": "i32", "eps": "fp32"},
        constants=dict.fromkeys(absent) | {"HIDDEN": hidden, "TILE": config.tile},
        warps=config.warps,
        stages=3,
        expects=NO_MATRICES,
        aligned=frozenset({"x_stride", "part_stride"}),
        ascend={"TILE": 4096} if hidden > config.tile else {},  # its unified buffer has 192 KiB
    )


def _best_of_tile(dtype: str, vocabulary: int) -> Case:
    config = triton_sample.config_for(vocabulary)
    return Case(
        name=f"likeliest token of a tile of {vocabulary} {dtype}",
        kernel=triton_sample._best_of_tile,
        signature={"logits": f"*{dtype}", "values": "*fp32", "ids": "*i32", "row_stride": "i32"},
        constants={"VOCABULARY": vocabulary, "TILE": config.tile},
        warps=config.warps,
        stages=3,
        expects=NO_MATRICES,
        aligned=frozenset({"row_stride"}),
    )


def _best_of_row(vocabulary: int) -> Case:
    tiles = -(-vocabulary // triton_sample.config_for(vocabulary).tile)
    return Case(
        name=f"likeliest token of {vocabulary}",
        kernel=triton_sample._best_of_row,
        signature={"tile_values": "*fp32", "tile_ids": "*i32", "values": "*fp32", "ids": "*i64"},
        constants={"TILES": tiles, "WIDTH": 1 << (tiles - 1).bit_length()},
        warps=1,
        stages=3,
        expects=NO_MATRICES,
    )


CASES = [
    *(_norms(*model, first=first) for model in MODELS for first in (False, True)),
    _best_of_tile("bf16", 65024),
    *(_best_of_tile("fp32", vocabulary) for vocabulary in VOCABULARIES),
    *(_best_of_row(vocabulary) for vocabulary in VOCABULARIES),
]
