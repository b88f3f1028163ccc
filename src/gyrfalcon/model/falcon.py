"""The Falcon model, all variants. Ranks show only at the all-reduces: one in a parallel block, two in
a sequential one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.kv.pool import KVPool, LayerCache
from gyrfalcon.model import falcon_layout as names
from gyrfalcon.model.builder import LayerBuilder
from gyrfalcon.model.linear import ColumnLinear, Head, Norms, RowLinear, VocabEmbedding
from gyrfalcon.model.positions import Rotary
from gyrfalcon.ops import Angles, BlockWeights, Ops, RunBlocks
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.heartbeat import Heartbeat


@dataclass(frozen=True, slots=True)
class Attention:
    """This rank's heads; the output is its summand of the all-reduce."""

    qkv: ColumnLinear
    dense: RowLinear
    slopes: Tensor | None  # float32 [own heads], ALiBi only
    ops: Ops

    def attend(self, qkv: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache) -> Tensor:
        """The heads' outputs, [tokens, own heads × head_dim]."""
        q = self.ops.rotary_and_cache(qkv, angles, cache, batch.slots)
        return self.ops.attention(q, cache, batch, self.slopes)

    def attend_rows(
        self, qkv: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> Tensor:
        """The same of the batch's rows alone; keys and values of all tokens are cached."""
        assert batch.of_rows is not None
        q = self.ops.rotary_and_cache(qkv, angles, cache, batch.slots)
        return self.ops.attention(q[batch.rows], cache, batch.of_rows, self.slopes)

    def __call__(self, x: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache) -> Tensor:
        return self.dense(self.attend(self.qkv(x), angles, batch, cache))


@dataclass(frozen=True, slots=True)
class MLP:
    """This rank's columns of the feed-forward layer; the output is its summand of the all-reduce."""

    up: ColumnLinear
    down: RowLinear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


@dataclass(frozen=True, slots=True)
class ParallelBlock:
    """Attention and MLP side by side (7b, 40b, 180B, 11B): one all-reduce for both.

    Read the mathematics here. On the CPU all blocks usually run as one call of ops/native.py's
    NativeBlocks, and ranks are summed inside gf_run_blocks (native/all_reduce.cpp) instead.
    """

    norms: Norms  # one serves both attention and MLP
    attention: Attention
    mlp: MLP
    group: Group
    ops: Ops

    @property
    def weights(self) -> BlockWeights:
        """Its weights without biases, for operations that fuse blocks."""
        return BlockWeights(
            norms=self.norms.each,
            eps=self.norms.eps,
            qkv=self.attention.qkv.weight,
            up=self.mlp.up.weight,
            activation=self.mlp.up.activation,
            dense=self.attention.dense.weight,
            down=self.mlp.down.weight,
            slopes=self.attention.slopes,
        )

    def __call__(
        self, x: Tensor, part: Tensor | None, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x [tokens, hidden] with `part`, the output of the block before, added;
        and the output of this block, whole or as summands [parts, tokens, hidden].
        """
        x, normed = self.norms(x, part)
        qkv, up = self.attention.qkv.of(normed[0]), self.mlp.up.of(normed[-1])
        attend = partial(self.attention.attend, angles=angles, batch=batch, cache=cache)
        return x, self._output(*self.ops.branches(qkv, attend, up))

    def of_rows(
        self, x: Tensor, part: Tensor | None, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """The same of the batch's rows alone."""
        x, normed = self.norms(x, part)
        heads = self.attention.attend_rows(self.attention.qkv(normed[0]), angles, batch, cache)
        return x[batch.rows], self._output(heads, self.mlp.up(normed[-1][batch.rows]))

    def _output(self, heads: Tensor, up: Tensor) -> Tensor:
        parts = (heads, self.attention.dense.weight), (up, self.mlp.down.weight)
        biases = [one.bias for one in (self.attention.dense, self.mlp.down) if one.bias is not None]
        alone = self.group.size == 1 and not biases  # the next norms may sum what is not whole
        total = self.group.all_reduce(self.ops.sum_of_linears(*parts, as_parts=alone))
        return sum(biases, total)


@dataclass(frozen=True, slots=True)
class SequentialBlock:
    """The MLP after the attention (rw): an all-reduce after each."""

    attention_norm: Norms
    mlp_norm: Norms
    attention: Attention
    mlp: MLP
    group: Group

    def __call__(
        self, x: Tensor, part: Tensor | None, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """As a parallel block's."""
        x, [normed] = self.attention_norm(x, part)
        return self._output(x, self.attention(normed, angles, batch, cache))

    def of_rows(
        self, x: Tensor, part: Tensor | None, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """As a parallel block's."""
        x, [normed] = self.attention_norm(x, part)
        heads = self.attention.attend_rows(self.attention.qkv(normed), angles, batch, cache)
        return self._output(x[batch.rows], self.attention.dense(heads))

    def _output(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        x, [normed] = self.mlp_norm(x, self._reduce(attended, self.attention.dense))
        return x, self._reduce(self.mlp(normed), self.mlp.down)

    def _reduce(self, part: Tensor, layer: RowLinear) -> Tensor:
        total = self.group.all_reduce(part)
        return total if layer.bias is None else total + layer.bias


Block = ParallelBlock | SequentialBlock


@dataclass(frozen=True, slots=True)
class BlockLoop:
    """All blocks of a step, one after the other; of the last one only what the batch's rows need, and all
    keys and values. Operators may put one call in its place (`Ops.fuse_blocks`): the loader picks.
    """

    blocks: Sequence[Block]
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def __call__(
        self, x: Tensor, angles: Angles | None, batch: Batch, caches: Sequence[LayerCache]
    ) -> tuple[Tensor, Tensor | None]:
        """x as the last block reads it, and that block's output: both of the batch's rows."""
        part, of_rows = None, self.blocks[-1] if batch.of_rows else None
        for block, cache in zip(self.blocks, caches, strict=True):
            run = block.of_rows if block is of_rows else block
            x, part = run(x, part, angles, batch, cache)
            self.heartbeat.counter.value += 1
        return x, part


@dataclass(frozen=True, slots=True)
class Falcon:
    """One rank's share of a Falcon model."""

    embedding: VocabEmbedding
    rotary: Rotary | None  # None: ALiBi, inside the attention
    blocks: Sequence[Block]
    run_blocks: RunBlocks  # all of them: BlockLoop, or the operators' fused call
    final_norm: Norms
    head: Head

    def __call__(self, batch: Batch, pool: KVPool) -> Tensor:
        """Computes the batch's tokens, caches their keys and values, and returns this rank's logits,
        float32 [rows, own tokens].
        """
        x = self.embedding(batch.token_ids)  # [tokens, hidden]
        angles = self.rotary and self.rotary.angles(batch.positions, batch.rope_lengths)
        x, part = self.run_blocks(x, angles, batch, pool.layers)
        _, [normed] = self.final_norm(x, part)
        return self.head(normed)


def build_falcon(make: LayerBuilder) -> Falcon:
    """The model of one rank."""
    embedding = make.embedding()
    blocks = [falcon_block(make, layer) for layer in range(make.config.num_layers)]
    return Falcon(
        embedding=embedding,
        rotary=make.rotary(),
        blocks=blocks,
        run_blocks=_run_blocks(make, blocks),
        final_norm=make.norms(names.FINAL_NORM),
        head=make.head(embedding.weight),
    )


def falcon_block(make: LayerBuilder, layer: int) -> Block:
    """One block of a rank."""
    prefix = names.layer_prefix(layer)
    norms = [prefix + name for name in names.norm_names(make.config)]
    qkv, dense = make.column(prefix + names.QKV), make.row(prefix + names.DENSE)
    attention = Attention(qkv, dense, make.slopes(), make.ops)
    up = make.column(prefix + names.UP, make.config.activation)
    mlp = MLP(up, make.row(prefix + names.DOWN))
    if make.config.parallel:
        return ParallelBlock(make.norms(*norms), attention, mlp, make.group, make.ops)
    first, second = map(make.norms, norms)
    return SequentialBlock(first, second, attention, mlp, make.group)


def _run_blocks(make: LayerBuilder, blocks: Sequence[Block]) -> RunBlocks:
    """The loop over the blocks. Parallel ones without biases may be fused, where ranks, if there are
    several, share memory.
    """
    loop, memory = BlockLoop(blocks, make.group.heartbeat), make.group.memory
    weights = [block.weights for block in blocks if isinstance(block, ParallelBlock)]
    can_sum = make.group.size == 1 or memory is not None
    if len(weights) < len(blocks) or make.config.bias or not can_sum:
        return loop
    return make.ops.fuse_blocks(loop, weights, memory, make.group.heartbeat)
