"""The attention variants that the released Falcons need."""

from typing import Any

import torch
import triton
from kernel_cases import Case

from gyrfalcon.ops.triton import attention as triton_attention
from gyrfalcon.ops.triton import rotary as triton_rotary

MATRIX = frozenset({"mma"})
BLOCK_SIZE = 16
STRIDES = ("q_token_stride", "q_head_stride", "block_stride", "token_stride")

# Query heads of one KV head, their width, ALiBi. rw-1b and rw-7b are one variant; ranks of 7b differ
# from 40b and 180B by a constant only, as do 180B's prompts from 40b's and fp16 from bf16.
SHAPES = {
    "7b": (71, 64, False),
    "40b": (16, 64, False),
    "180B": (29, 64, False),
    "rw": (1, 64, True),
    "11B": (4, 128, False),
}
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def _signature(
    kernel: Any, types: dict[str, str], numbers: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Argument → type in the kernel's order, and the arguments that are None."""
    known = types | dict.fromkeys(numbers, "i32")
    named = {name: known[name] for name in kernel.arg_names if name in known}
    signature = {name: kind for name, kind in named.items() if kind != "None"}
    return signature, {name: None for name in named if name not in signature}


def _attention_types(dtype: str, alibi: bool) -> dict[str, str]:
    return {
        "q": f"*{dtype}",
        "keys": f"*{dtype}",
        "values": f"*{dtype}",
        "tables": "*i64",
        "contexts": "*i64",
        "slopes": "*fp32" if alibi else "None",
        "scale": "fp32",
    }


def _constants(
    shape: tuple[int, int, bool], config: triton_attention.AttentionConfig, block_size: int
) -> dict[str, Any]:
    group, dim, _ = shape
    return {
        "GROUP": group,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": dim,
        "DIM_TILE": dim,
        "ROWS": config.rows,
        "KEYS": config.keys,
    }


def _decode(model: str, dtype: str, several: bool, block_size: int = BLOCK_SIZE) -> Case:
    shape = SHAPES[model]
    config = triton_attention.config_for(min(shape[0], 64), shape[1], TYPES[dtype])
    signature, nothing = _signature(
        triton_attention.decode_kernel,
        _attention_types(dtype, shape[2])
        | {"parts": "*fp32" if several else f"*{dtype}", "logs": "*fp32" if several else "None"},
        (*STRIDES, "table_stride", "kv_heads", "splits"),
    )
    blocks = "" if block_size == BLOCK_SIZE else f" blocks of {block_size}"
    return Case(
        name=f"attention decode {model} {dtype}{' split' if several else ''}{blocks}",
        kernel=triton_attention.decode_kernel,
        signature=signature,
        constants=_constants(shape, config, block_size) | nothing | {"EARLY": False},
        warps=config.warps,
        stages=config.stages,
        expects=frozenset() if dtype == "fp32" else MATRIX,
        aligned=frozenset(STRIDES),
    )


def _prefill(model: str, dtype: str, rows: int, block_size: int = BLOCK_SIZE) -> Case:
    shape = SHAPES[model]
    config = triton_attention.config_for(rows, shape[1], TYPES[dtype])
    signature, nothing = _signature(
        triton_attention.prefill_kernel,
        _attention_types(dtype, shape[2]) | {"starts": "*i64", "out": f"*{dtype}"},
        (*STRIDES, "table_stride", "kv_heads", "sequences"),
    )
    blocks = "" if block_size == BLOCK_SIZE else f" blocks of {block_size}"
    return Case(
        name=f"attention prefill {model} {dtype} {rows} rows{blocks}",
        kernel=triton_attention.prefill_kernel,
        signature=signature,
        constants=_constants(shape, config, block_size)
        | nothing
        | {"SEQUENCES": triton_attention.SEQUENCE_TILE},
        warps=config.warps,
        stages=config.stages,
        expects=frozenset() if dtype == "fp32" else MATRIX,
        aligned=frozenset(STRIDES),
        ascend={"ROWS": 64} if config.rows == 128 and shape[1] > 64 else {},  # L0C holds no more
    )


def _merge(dim: int, splits: int) -> Case:
    return Case(
        name=f"attention merge {splits} splits of {dim} bf16",
        kernel=triton_attention.merge_kernel,
        signature={"parts": "*fp32", "logs": "*fp32", "out": "*bf16", "splits": "i32"},
        constants={"HEAD_DIM": dim, "DIM_TILE": dim, "SPLIT_TILE": splits, "EARLY": False},
        warps=1 if splits <= 16 else 4,
        stages=1,
        expects=frozenset(),
    )


def _place(model: str, dtype: str, parts: int = 1) -> Case:
    group, dim, alibi = SHAPES[model]
    angle, row = ("None", "None") if alibi else ("*fp32", "*i64")
    types = dict.fromkeys(("keys", "values", "q"), f"*{dtype}")
    types["qkv"] = f"*{dtype}" if parts == 1 else "*fp32"
    signature, nothing = _signature(
        triton_rotary.rotary_and_cache_kernel,
        types | {"cos": angle, "sin": angle, "rows": row, "slots": "*i64"},
        ("row_stride", "part_stride", "slot_stride", "kv_heads"),
    )
    return Case(
        name=f"rotary place {model} {dtype}{f' {parts} parts' * (parts > 1)}",
        kernel=triton_rotary.rotary_and_cache_kernel,
        signature=signature,
        constants={
            "GROUP": group,
            "HALF": dim // 2,
            "HALF_TILE": triton.next_power_of_2(dim // 2),
            "VECTORS": triton_rotary.VECTORS,
            "PARTS": parts,
            "EARLY": False,
        }
        | nothing,
        warps=2,
        stages=1,
        expects=frozenset(),
        aligned=frozenset({"row_stride", "part_stride", "slot_stride"}),
    )


CASES: list[Case] = [
    *(_decode(model, "bf16", True) for model in SHAPES),
    _decode("40b", "bf16", False),
    _decode("40b", "bf16", True, 128),
    *(_prefill(model, "bf16", 128) for model in ("7b", "40b", "rw", "11B")),
    *(_prefill(model, "bf16", 64) for model in ("40b", "rw", "11B")),
    _prefill("40b", "fp32", 32),
    _prefill("40b", "bf16", 128, 128),
    *(_merge(dim, splits) for dim, splits in ((64, 2), (64, 16), (64, 64), (128, 64))),
    *(_place(model, "bf16") for model in ("7b", "40b", "rw", "11B")),
    *(_place(model, "bf16", parts) for model, parts in (("7b", 14), ("40b", 2), ("40b", 7))),
]
