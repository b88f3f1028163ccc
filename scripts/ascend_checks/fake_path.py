"""Takes every variant of the family through the operators for an NPU, without one and without numbers.

    python -m ascend_checks.fake_path [--without NAME ...] [--models NAME ...]

Runs in an environment with torch_npu. Tensors are torch's fake ones: they have a shape, a dtype and the
device npu:0, and each operation checks those against its real schema and shape function. Ranks are summed
by torch's fake process group. Prints one JSON object: each case with its error, if any, and the operators
that were called. `--without` takes functions away from torch_npu first, as an older one lacks them.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from model_sizes import MODELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from ascend_checks.fakes import graph_functions, register
from ascend_checks.operators import used_operators
from gyrfalcon.batch import Batch
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.lookup import kind_of
from gyrfalcon.device.npu_graphs import COPIES
from gyrfalcon.device.protocol import CannotCapture, Device
from gyrfalcon.engine.decode_graphs import DecodeGraph
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.model import builder
from gyrfalcon.model.architectures import config_from_json, make_layout
from gyrfalcon.model.builder import LayerBuilder, Model
from gyrfalcon.model.falcon import build_falcon
from gyrfalcon.ops import Ops
from gyrfalcon.ops.npu import ops as npu_ops
from gyrfalcon.parallel.backend import Backend
from gyrfalcon.parallel.group import Group, Vocabulary
from gyrfalcon.parallel.shards import share_of
from gyrfalcon.quant import Quantised, Weight
from gyrfalcon.request import Chunk, Request, SamplingParams
from gyrfalcon.request import Sequence as Sample

TORCH_NPU = import_module("torch_npu")  # makes npu a device of torch
PAGE = 128
LAYERS = 2  # the first adds nothing to its input, all others are alike
NAMESPACES = ("npu", "atb")
DEVICE = torch.device("npu", 0)
RANKS = (1, 4)
KINDS = ("none", "int8", "int4")
# Of each sequence: the tokens it has, and those of them that the step computes.
BATCHES: Mapping[str, Sequence[tuple[int, int]]] = {
    "prefill": ((200, 200), (33, 33), (1, 1)),
    "decode": ((1, 1), (128, 1), (129, 1), (300, 1)),
    "mixed": ((100, 1), (257, 40), (150, 7), (300, 1)),
}


@dataclass(frozen=True)
class FakeWeights:
    """One rank's share of a model, in shapes and dtypes alone."""

    config: ModelConfig
    group: Group
    ops: Ops
    dtype: torch.dtype
    quant: str

    @property
    def layout(self) -> Any:
        return make_layout(self.config, not self.config.tied)

    @property
    def share(self) -> Any:
        return share_of(self.config, self.group.size, self.group.rank)

    def tensor(self, name: str) -> Tensor:
        shape = self.layout.local_shape(self.layout.by_name[name], self.share)
        return torch.empty(shape, dtype=self.dtype, device=DEVICE)

    def matrix(self, name: str) -> Weight:
        layout = self.layout.quantised(self.quant)
        stored = layout.stored_as(layout.by_name[name])
        parts = [
            torch.empty(
                layout.local_shape(part, self.share), dtype=part.dtype or self.dtype, device=DEVICE
            )
            for part in stored
        ]
        if len(parts) == 1:
            return parts[0]
        data, scales = parts
        return self.ops.prepack(Quantised(stored[0].kind, data, scales))


class Called(TorchDispatchMode):
    """Notes the operators of NAMESPACES that are called. Fakes keep the values of what is made of numbers,
    such as torch.tensor([1]), and would really copy them to the device: here they forget them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.sums = 0  # all-reduces

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in NAMESPACES:
            self.names.add(func._schema.name.partition("::")[2])
        self.sums += func._schema.name == "c10d::allreduce_"
        result = func(*args, **(kwargs or {}))
        if isinstance(result, FakeTensor):
            result.constant = None
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what it found; the exit code is 0 whatever that was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options = parser.parse_args(arguments)
    for name in options.without:
        delattr(TORCH_NPU, name)
    for name, function in graph_functions().items():
        setattr(TORCH_NPU.npu, name, function)
    fakes, called = register(), Called()
    cases = list(_cases(options.models, called))
    document = {
        "versions": {"torch": torch.__version__, "torch_npu": TORCH_NPU.__version__},
        "fakes of ours": fakes,
        "cases": cases,
        "called": sorted(called.names),
        "schemas": _schemas(),
        "lacking": sorted(name for name in used_operators() if not hasattr(TORCH_NPU, name)),
    }
    print(json.dumps(document))
    return 0


def _schemas() -> list[str]:
    """Of all operators of NAMESPACES, a line each."""
    found = (str(schema) for schema in torch._C._jit_get_all_schemas())
    return sorted(text for text in found if text.partition("::")[0] in NAMESPACES)


def _cases(models: Sequence[str], called: Called) -> Iterator[dict[str, object]]:
    """Each variant in each precision, on the first and the last of the ranks."""
    for size in RANKS:
        for rank in sorted({0, size - 1}):
            with _group(rank, size) as group:
                for model, quant in product(models, KINDS):
                    yield _case(model, quant, group, called)


def _case(model: str, quant: str, group: Group, called: Called) -> dict[str, object]:
    """All batches of a model: what it was, and why it failed or was refused."""
    case: dict[str, object] = {
        "model": model,
        "quant": quant,
        "rank": group.rank,
        "ranks": group.size,
    }
    try:
        with FakeTensorMode(), called, torch.inference_mode():
            raw = {"model_type": "falcon", **MODELS[model], "num_hidden_layers": LAYERS}
            case["no graph"] = _run(config_from_json(raw), quant, group, called)
    except UsageError as error:
        return {**case, "refused": str(error)}
    except Exception as caught:  # of any operator's kind
        why = caught.__cause__ or caught  # what ended a collective
        place = traceback.extract_tb(why.__traceback__)[-1]
        text = f"{type(why).__name__}: {why} ({place.filename}:{place.lineno})"
        return {**case, "error": " ".join(text.split())[:600]}
    return case


def _run(config: ModelConfig, quant: str, group: Group, called: Called) -> str:
    """Loads the model, takes a step with each of the batches, up to the top-k tokens, and captures one;
    why that is not captured.
    """
    device = kind_of(DEVICE.type).at(0)
    ops = npu_ops.open_set(device)  # type: ignore[arg-type]  # of this kind
    weights = FakeWeights(config, group, ops, torch.bfloat16, quant)
    model = build_falcon(LayerBuilder(weights, group, ops, DEVICE, weights.dtype))
    shape = CacheShape(LAYERS, len(weights.share.kv_heads), config.head_dim, PAGE, weights.dtype)
    pool = KVPool(shape, 32, DEVICE, device.spare_blocks)
    vocabulary = Vocabulary.shared(config.vocab_size, group)
    for sequences in BATCHES.values():
        before = called.sums
        logits = model(batch_of(sequences).on(DEVICE), pool)
        sums = 1 + LAYERS * (1 if config.parallel else 2)  # the embedding's, and each block's
        assert called.sums - before == (sums if group.size > 1 else 0), called.sums - before
        assert logits.shape == (len(sequences), len(weights.share.vocab)), logits.shape
        vocabulary.top_k(logits, 1)
        vocabulary.top_k(logits, 5)
    return _capture(model, pool, device)


def _capture(model: Model, pool: KVPool, device: Device) -> str:
    """Captures a decoding step, and replays each of its copies with lengths; why it is not captured."""
    lengths = [length for length, _ in BATCHES["decode"]]
    try:
        graph = DecodeGraph.of(model, pool, len(lengths), max(lengths), device)
    except CannotCapture as error:
        return str(error)
    for _ in range(COPIES):
        assert len(graph.replay(lengths)) == len(lengths)
    return ""


def batch_of(sequences: Sequence[tuple[int, int]]) -> Batch:
    """A step of sequences, as the scheduler would give them; their blocks lie one after the other."""
    chunks, first = [], 0
    for number, (length, new) in enumerate(sequences):
        ids = tuple(range(20, 20 + length))
        sample = Sample(Request(number, ids, SamplingParams(), seed=0), 0, list(ids), length + 1)
        blocks = -(-length // PAGE)
        sample.blocks = list(range(first, first + blocks))
        first += blocks
        chunks.append(Chunk(sample, length - new, length))
    return Batch.build(chunks, PAGE)


@contextmanager
def _group(rank: int, size: int) -> Iterator[Group]:
    """A group whose collectives do nothing: their shapes are checked all the same."""
    if size == 1:
        yield Group(0, 1, None)
        return
    kinds = f"cpu:fake,{DEVICE.type}:fake"
    dist.init_process_group(kinds, store=FakeStore(), rank=rank, world_size=size)
    try:
        yield Group(rank, size, Backend(dist.group.WORLD, gloo=None))  # type: ignore[arg-type]  # none waits
    finally:
        dist.destroy_process_group()


def _adapt() -> None:
    """What fakes have not: values to compare, and memory to pin."""
    builder.equal = lambda one, other: False  # type: ignore[attr-defined]
    kind_of(DEVICE.type).pinned = lambda self, tensor: tensor  # type: ignore[method-assign]


if __name__ == "__main__":
    _adapt()
    sys.exit(main())
