"""One rank's share of a checkpoint → its model: every tensor mapped or copied straight into place,
once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gyrfalcon.checkpoint.source import Checkpoint, read_local
from gyrfalcon.console.progress import Bar, bar
from gyrfalcon.device.dtypes import DTYPE_OF_WORD, WORD_OF_DTYPE
from gyrfalcon.errors import UsageError
from gyrfalcon.model.architectures import architecture_of
from gyrfalcon.model.builder import Block, LayerBuilder, Model
from gyrfalcon.model.layout import TensorSpec
from gyrfalcon.model.linear import VocabEmbedding
from gyrfalcon.model.positions import Rotary
from gyrfalcon.ops import Ops
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import Share, share_of
from gyrfalcon.quant import Quantised, Weight, quantise


def effective_dtype(checkpoint: Checkpoint, word: str) -> torch.dtype:
    """The dtype to compute in: the one asked for, or for `auto` the checkpoint's own."""
    if word != "auto":
        return DTYPE_OF_WORD[word]
    quantisation = None if checkpoint.manifest is None else checkpoint.manifest.quantisation
    stored = (
        checkpoint.source.dtype(checkpoint.layout.scheme.embedding)
        if quantisation is None
        else quantisation.dtype
    )
    return stored if stored in WORD_OF_DTYPE else torch.float32


def effective_quant(checkpoint: Checkpoint, quant: str) -> str:
    """What the matrices are quantised to: what is asked for, or what a cut's are already; UsageError
    where these are two.
    """
    if checkpoint.quant == "none" or quant in ("none", checkpoint.quant):
        return quant if checkpoint.quant == "none" else checkpoint.quant
    raise UsageError(
        f"`quant={checkpoint.quant}` for {checkpoint.folder}, whose matrices are quantised to that",
        quant,
        "leave `quant` out, or take the checkpoint that was cut",
    )


def load_model(
    checkpoint: Checkpoint,
    group: Group,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    quant: str = "none",
) -> Model:
    """The model of one rank; `quant` other than none quantises its matrices, unless they are in the cut.

    On the CPU, weights that are stored as they are used and whose rows are shared stay in the mapped
    file.
    """
    num_tensors = len(checkpoint.layout.stored)
    with bar(num_tensors, "tensors", "loading", shown=group.rank == 0) as progress:
        weights = RankWeights(checkpoint, group, ops, device, dtype, quant, progress)
        make = LayerBuilder(weights, group, ops, device, dtype)
        return architecture_of(checkpoint.config).model(make)


@dataclass(frozen=True, slots=True)
class Parts:
    """A model on one rank whose blocks are loaded when they are asked for."""

    embedding: VocabEmbedding
    rotary: Rotary | None
    block: Callable[[int], tuple[Block, dict[int, str]]]  # of a layer; its matrices' names by id


def load_parts(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> Parts:
    """What comes before the blocks of a model, and what loads these one by one."""
    group = Group(0, 1, None)
    with bar(0, "tensors", "loading", shown=False) as progress:
        weights = RankWeights(checkpoint, group, ops, device, dtype, "none", progress)
    make = LayerBuilder(weights, group, ops, device, dtype)
    load_block = architecture_of(checkpoint.config).block

    def block(layer: int) -> tuple[Block, dict[int, str]]:
        weights.names.clear()
        loaded = load_block(make, layer)
        return loaded, dict(weights.names)

    return Parts(make.embedding(), make.rotary(), block)


class RankWeights:
    """One rank's share of a checkpoint's tensors, read when they are asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        group: Group,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
        quant: str,
        progress: Bar,
    ) -> None:
        self.layout = checkpoint.layout
        self.share = share_of(checkpoint.config, group.size, group.rank)
        self.names: dict[int, str] = {}  # of the matrices that were read, by id
        self._checkpoint = checkpoint
        self._ops = ops
        self._device = device
        self._dtype = dtype
        self._quant = quant
        self._progress = progress
        self._heartbeat = group.heartbeat

    def matrix(self, name: str) -> Weight:
        """A matrix, quantised where that is asked for."""
        weight = self._matrix(name)
        self.names[id(weight)] = name
        return weight

    def tensor(self, name: str) -> Tensor:
        """A tensor in the dtype to compute in."""
        return self._read(self.layout.by_name[name], self.share).to(self._dtype).contiguous()

    def _matrix(self, name: str) -> Weight:
        """A matrix. A quantised one is this rank's part of the whole matrix quantised, so that a model is
        the same on any number of ranks; each row is quantised by itself.
        """
        spec = self.layout.by_name[name]
        kind = self.layout.quantised(self._quant).kind_of(spec)
        if kind == "none":
            return self.tensor(name)
        if self._checkpoint.quant != "none":
            parts = [self._read(part, self.share) for part in self.layout.stored_as(spec)]
            data, scales = (part.contiguous() for part in parts)
            return self._ops.prepack(Quantised(kind, data, scales))
        share = self.share if spec.dim == 0 else share_of(self.layout.config, 1, 0)
        quantised = quantise(self._read(spec, share), kind)
        if spec.dim == 1:
            quantised = quantised.columns(self.layout.ranges(spec, self.share))
        return self._ops.prepack(quantised)

    def _read(self, spec: TensorSpec, share: Share) -> Tensor:
        """What `share` has of a tensor, on our device in its stored dtype."""
        local = read_local(self._checkpoint, spec, share)
        self._progress.update()
        self._heartbeat.counter.value += 1
        return local.to(self._device)
