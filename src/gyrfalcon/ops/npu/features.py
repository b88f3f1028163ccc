"""Which operators torch_npu has here, by their names: those of one version are missing in another, and what
stands in for them is decided once.
"""

from dataclasses import dataclass
from typing import Any

import torch

ROTARY_DIMS = (64, 128)  # of a head, that npu_apply_rotary_pos_emb takes


@dataclass(frozen=True, slots=True)
class Features:
    """Whether each operator is there."""

    attention: bool  # npu_fused_infer_attention_score
    attention_in_graphs: bool  # its form that writes into a tensor, and the size of its workspace
    scatter_kv: bool  # npu_scatter_pa_kv_cache, with a cache_mode
    reshape_and_cache: bool  # _npu_reshape_and_cache, of ATB
    rotate_both: bool  # npu_apply_rotary_pos_emb
    rotate: bool  # npu_rotary_mul
    gelu: bool  # npu_gelu
    add_layer_norm: bool  # npu_add_layer_norm
    quantised_linear: bool  # npu_weight_quant_batchmatmul
    pack_int4: bool  # npu_convert_weight_to_int4pack

    @classmethod
    def of(cls, torch_npu: Any) -> "Features":
        """Those of a torch_npu that is imported."""

        def has(name: str) -> bool:
            return hasattr(torch_npu, name)

        return cls(
            attention=has("npu_fused_infer_attention_score"),
            attention_in_graphs=has("_npu_fused_infer_attention_score_get_max_workspace")
            and hasattr(getattr(torch_npu, "npu_fused_infer_attention_score", None), "out"),
            scatter_kv=has("npu_scatter_pa_kv_cache") and _takes_cache_mode(),
            reshape_and_cache=has("_npu_reshape_and_cache"),
            rotate_both=has("npu_apply_rotary_pos_emb"),
            rotate=has("npu_rotary_mul"),
            gelu=has("npu_gelu"),
            add_layer_norm=has("npu_add_layer_norm"),
            quantised_linear=has("npu_weight_quant_batchmatmul"),
            pack_int4=has("npu_convert_weight_to_int4pack"),
        )


def _takes_cache_mode() -> bool:
    """The first versions told the cache's layout by its shape alone, and took the one for another."""
    schema = torch.ops.npu.npu_scatter_pa_kv_cache.default._schema
    return any(argument.name == "cache_mode" for argument in schema.arguments)
