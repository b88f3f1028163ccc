"""What the plan for a card compiles and launches, counted without a card: its models at full size on torch's
meta device, which has shapes and no numbers, where Triton's launches are noted instead of run.
"""

import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from gpu_models import BLOCK_SIZE, config_of, decode_batch, make_pool, prompt_batch, quant_word
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gyrfalcon.batch import Batch
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.lookup import device_of
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.architectures import make_layout
from gyrfalcon.model.builder import LayerBuilder
from gyrfalcon.model.falcon import Falcon, build_falcon
from gyrfalcon.ops.triton import ops as triton_ops
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import share_of
from gyrfalcon.quant import GROUPS, Quantised, Weight
from gyrfalcon.quant_words import UNIT

META = torch.device("meta")
ALIGNMENT = 16  # pointers and numbers divisible by it have a kernel of their own
LOOKS = frozenset(  # operators that only look at memory, or take some
    """
    view _unsafe_view expand slice select split split_with_sizes transpose permute t detach alias unbind
    unsqueeze squeeze as_strided empty empty_like new_empty empty_strided
    """.split()
)


def counts(plan: Any) -> dict[str, Any]:
    """Kernels that the plan's steps need compiled, and what a step launches: of Triton's, and operators of
    torch's that compute something.
    """
    vars(device_of(META))["runs_ptx"] = True  # as an NVIDIA card's
    kernels: Counter[str] = Counter()
    rows = []
    for shape in plan.shapes:
        for precision in plan.precisions:
            one, two = (
                _counted(config_of(shape, num_hidden_layers=layers), precision, plan)
                for layers in (1, 2)
            )
            more = config_of(shape).num_layers - 1  # layers, all alike
            for (step, own, operators), (_, twice, more_operators) in zip(one, two, strict=True):
                kernels.update(twice)
                triton = own.total() + more * (twice.total() - own.total())
                row = {"triton": triton, "torch": operators + more * (more_operators - operators)}
                rows.append({"shape": shape, "precision": precision} | step | row)
    names = Counter(json.loads(key)[0] for key in kernels)
    return {"passed": True, "kernels": len(kernels), "by_name": dict(names), "steps": rows}


def _counted(
    config: ModelConfig, precision: str, plan: Any
) -> list[tuple[dict[str, int], Counter[str], int]]:
    """Of each step its launches of Triton's kernels and of torch's."""
    model, found = model_of(config, plan.dtype, quant_word(precision)), []
    for word, number, batch in _steps(config, plan):
        pool = make_pool(config, BLOCK_SIZE, META, plan.dtype)
        with noted_launches() as own:
            operators = _run(model, batch, pool)
        found.append(({word: number}, own, operators))
    return found


def _steps(config: ModelConfig, plan: Any) -> Iterator[tuple[str, int, Batch]]:
    for size in plan.batches:
        yield "batch", size, decode_batch(config, size, max(plan.contexts))
    for length in plan.prompts:
        yield "prompt", length, prompt_batch(config, length)


def _run(model: Falcon, batch: Batch, pool: KVPool) -> int:
    with Operators() as operators:  # type: ignore[no-untyped-call]  # torch's has no types
        model(batch.on(META), pool)
    return operators.count


class Operators(TorchDispatchMode):
    """Counts torch's operators but for those that only look at memory."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, _, _ = func.name().removeprefix("aten::").partition(".")
        self.count += name not in LOOKS
        return func(*args, **kwargs or {})


@contextmanager
def noted_launches() -> Iterator[Counter[str]]:
    """Counts the launches of Triton's kernels, none of which runs, by what each is compiled for."""
    from triton.runtime.interpreter import InterpretedFunction

    noted: Counter[str] = Counter()

    def note(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        noted[_key(self, arguments, named)] += 1

    launch = InterpretedFunction.run
    InterpretedFunction.run = note
    try:
        yield noted
    finally:
        InterpretedFunction.run = launch


def _key(kernel: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """What Triton compiles a kernel for: types, constants, and which numbers are 1 or divisible."""
    parameters = inspect.signature(kernel.fn).parameters
    given = {**dict(zip(parameters, arguments, strict=False)), **named}
    unspecialised = kernel.kwargs.get("do_not_specialize") or ()
    of_each = {
        name: _specialisation(given[name], parameter, name in unspecialised)
        for name, parameter in parameters.items()
    }
    how = {name: given.get(name) for name in ("num_warps", "num_stages")}
    return json.dumps([kernel.fn.__name__, of_each, how], sort_keys=True, default=str)


def _specialisation(value: Any, parameter: inspect.Parameter, unspecialised: bool) -> object:
    if isinstance(value, Tensor):
        return str(value.dtype)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if "constexpr" in str(parameter.annotation) or not is_number:
        return str(value)
    if unspecialised or isinstance(value, float):
        return type(value).__name__
    return "1" if value == 1 else f"int, {'' if value % ALIGNMENT == 0 else 'not '}divisible"


def model_of(config: ModelConfig, dtype: torch.dtype, quant: str, ranks: int = 1) -> Falcon:
    """A model without numbers, or rank 0's share of it, on Triton's kernels."""
    group = Group(0, ranks, None)
    shapes = _Shapes(config, dtype, quant, ranks)
    return build_falcon(LayerBuilder(shapes, group, triton_ops, META, dtype))


class _Shapes:
    """Weights of a model's shapes, quantised ones in words."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, quant: str, ranks: int) -> None:
        self.layout = make_layout(config, not config.tied)
        self.share = share_of(config, ranks, 0)
        self._dtype, self._quant = dtype, quant

    def tensor(self, name: str) -> Tensor:
        shape = self.layout.local_shape(self.layout.by_name[name], self.share)
        return torch.empty(shape, dtype=self._dtype, device=META)

    def matrix(self, name: str) -> Weight:
        kind = self.layout.quantised(self._quant).kind_of(self.layout.by_name[name])
        whole = self.tensor(name)
        if kind == "none":
            return whole
        rows, columns = whole.shape
        units = -(-columns // UNIT)
        if kind not in GROUPS:
            data = torch.empty(rows, units * UNIT // 2, dtype=torch.int16, device=META)
            return Quantised(kind, data, torch.empty(rows, device=META), columns)
        group = GROUPS[kind]
        packed = torch.bfloat16 if group == UNIT else torch.int32
        scales = torch.empty(units * max(1, 64 // group), rows, dtype=packed, device=META)
        data = torch.empty(rows, units * UNIT // 4, dtype=torch.int16, device=META)
        return Quantised(kind, data, scales, columns)
