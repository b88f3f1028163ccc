"""Kernels that an Ascend 910B3 cannot hold, which its compiler has to refuse: tiles made for GPUs."""

from dataclasses import replace

import kernel_cases_attention
import kernel_cases_norm
from kernel_cases import Case


def _as_for_gpus(cases: list[Case], name: str) -> Case:
    """A case without the smaller tiles that it takes on Ascend."""
    case = next(case for case in cases if case.name == name)
    assert case.ascend
    return replace(case, name=f"{name}, tiles as for GPUs", ascend={})


CASES = [
    _as_for_gpus(kernel_cases_norm.CASES, "sum and norms 180B bf16"),
    _as_for_gpus(kernel_cases_attention.CASES, "attention prefill 11B bf16 128 rows"),
]
