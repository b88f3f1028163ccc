"""One rank's share of a checkpoint → its model: every tensor mapped or copied straight into place,
once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gyrfalcon.checkpoint import layout
from gyrfalcon.checkpoint.layout import TensorSpec
from gyrfalcon.checkpoint.source import Checkpoint, read_local
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.progress import Bar, bar
from gyrfalcon.device.dtypes import DTYPE_OF_WORD, WORD_OF_DTYPE
from gyrfalcon.errors import UsageError
from gyrfalcon.model.falcon import (
    MLP,
    Attention,
    Block,
    BlockLoop,
    Falcon,
    ParallelBlock,
    SequentialBlock,
)
from gyrfalcon.model.linear import ColumnLinear, Head, Norms, RowLinear, VocabEmbedding
from gyrfalcon.model.positions import Rotary, alibi_slopes
from gyrfalcon.ops import Ops, RunBlocks
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import Share, share_of
from gyrfalcon.quant import Quantised, Weight, equal, quantise


def effective_dtype(checkpoint: Checkpoint, word: str) -> torch.dtype:
    """The dtype to compute in: the one asked for, or for `auto` the checkpoint's own."""
    if word != "auto":
        return DTYPE_OF_WORD[word]
    quantisation = None if checkpoint.manifest is None else checkpoint.manifest.quantisation
    stored = (
        checkpoint.source.dtype(layout.EMBEDDING) if quantisation is None else quantisation.dtype
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
) -> Falcon:
    """The model of one rank; `quant` other than none rounds its matrices, unless they are in the cut.

    On the CPU, weights that are stored as they are used and whose rows are shared stay in the mapped
    file.
    """
    num_tensors = len(checkpoint.layout.stored)
    with bar(num_tensors, "tensors", "loading", shown=group.rank == 0) as progress:
        return _Loader(checkpoint, group, ops, device, dtype, quant, progress).model()


@dataclass(frozen=True, slots=True)
class Parts:
    """A model on one rank whose blocks are loaded when they are asked for."""

    embedding: VocabEmbedding
    rotary: Rotary | None
    block: Callable[[int], Block]  # of a layer


def load_parts(checkpoint: Checkpoint, ops: Ops, device: torch.device, dtype: torch.dtype) -> Parts:
    """What comes before the blocks of a model, and what loads these one by one."""
    with bar(0, "tensors", "loading", shown=False) as progress:
        loader = _Loader(checkpoint, Group(0, 1, None), ops, device, dtype, "none", progress)
    return Parts(loader.embedding(), loader.rotary(), loader.block)


class _Loader:
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
        self.checkpoint = checkpoint
        self.config: ModelConfig = checkpoint.config
        self.group = group
        self.ops = ops
        self.device = device
        self.dtype = dtype
        self.quant = quant
        self.share = share_of(self.config, group.size, group.rank)
        self.layout = checkpoint.layout
        self.progress = progress

    def model(self) -> Falcon:
        embedding = self.embedding()
        blocks = [self.block(layer) for layer in range(self.config.num_layers)]
        return Falcon(
            embedding=embedding,
            rotary=self.rotary(),
            blocks=blocks,
            run_blocks=self._run_blocks(blocks),
            final_norm=self._norms(layout.FINAL_NORM),
            head=self._head(embedding.weight),
        )

    def embedding(self) -> VocabEmbedding:
        weight = self._matrix(layout.EMBEDDING)
        return VocabEmbedding(weight, self.dtype, self.share.vocab, self.group)

    def rotary(self) -> Rotary | None:
        rope = self.config.rope
        return None if rope is None else Rotary(rope, self.config.head_dim, self.device)

    def block(self, layer: int) -> Block:
        prefix = layout.layer_prefix(layer)
        names = [prefix + name for name in layout.norm_names(self.config)]
        attention, mlp = self._attention(prefix), self._mlp(prefix)
        if self.config.parallel:
            return ParallelBlock(self._norms(*names), attention, mlp, self.group, self.ops)
        first, second = map(self._norms, names)
        return SequentialBlock(first, second, attention, mlp, self.group)

    def _run_blocks(self, blocks: Sequence[Block]) -> RunBlocks:
        """The loop over the blocks. Parallel ones without biases may be fused, where ranks, if there are
        several, share memory.
        """
        loop, memory = BlockLoop(blocks), self.group.memory
        weights = [block.weights for block in blocks if isinstance(block, ParallelBlock)]
        can_sum = self.group.size == 1 or memory is not None
        if len(weights) < len(blocks) or self.config.bias or not can_sum:
            return loop
        return self.ops.fuse_blocks(loop, weights, memory)

    def _attention(self, prefix: str) -> Attention:
        slopes = None
        if self.config.rope is None:  # of all heads, then cut: they depend on how many there are
            heads = self.share.query_heads
            slopes = alibi_slopes(self.config.num_heads)[heads.start : heads.stop].to(self.device)
        return Attention(
            qkv=self._column(prefix + layout.QKV),
            dense=self._row(prefix + layout.DENSE),
            slopes=slopes,
            ops=self.ops,
        )

    def _mlp(self, prefix: str) -> MLP:
        up = self._column(prefix + layout.UP, self.config.activation)
        return MLP(up, self._row(prefix + layout.DOWN))

    def _head(self, embedding: Weight) -> Head:
        """The embedding serves as the head when none is stored, or the stored one is the same."""
        weight = embedding
        if self.checkpoint.has_head:
            stored = self._matrix(layout.HEAD)
            weight = embedding if equal(stored, embedding) else stored
        return Head(weight, self.ops)

    def _column(self, name: str, activation: str | None = None) -> ColumnLinear:
        return ColumnLinear(self._matrix(f"{name}.weight"), self._bias(name), activation, self.ops)

    def _row(self, name: str) -> RowLinear:
        return RowLinear(self._matrix(f"{name}.weight"), self._bias(name), self.ops)

    def _norms(self, *names: str) -> Norms:
        each = [(self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")) for name in names]
        return Norms(each, self.config.norm_eps, self.ops)

    def _bias(self, name: str) -> Tensor | None:
        return self._tensor(f"{name}.bias") if self.config.bias else None

    def _matrix(self, name: str) -> Weight:
        """A matrix. A quantised one is this rank's part of the whole matrix quantised, so that a model is
        the same on any number of ranks; each row is quantised by itself.
        """
        spec = self.layout.by_name[name]
        kind = self.layout.quantised(self.quant).kind_of(spec)
        if kind == "none":
            return self._tensor(name)
        if self.checkpoint.quant != "none":
            parts = [self._read(part, self.share) for part in self.layout.stored_as(spec)]
            data, scales = (part.contiguous() for part in parts)
            return self.ops.prepack(Quantised(kind, data, scales))
        share = self.share if spec.dim == 0 else share_of(self.config, 1, 0)
        quantised = quantise(self._read(spec, share), kind)
        if spec.dim == 1:
            quantised = quantised.columns(self.layout.ranges(spec, self.share))
        return self.ops.prepack(quantised)

    def _tensor(self, name: str) -> Tensor:
        return self._read(self.layout.by_name[name], self.share).to(self.dtype).contiguous()

    def _read(self, spec: TensorSpec, share: Share) -> Tensor:
        """What `share` has of a tensor, on our device in its stored dtype."""
        local = read_local(self.checkpoint, spec, share)
        self.progress.update()
        return local.to(self.device)
