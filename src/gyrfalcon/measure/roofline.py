"""The minimum work of a model, and what percentage of the machine's limit a time reaches.

Decoding is bound by the bytes read, prefill by multiplications (Williams, Waterman and Patterson
2009, "Roofline"). Counts are per rank: a GPU serves one rank, a CPU all of them.
"""

from dataclasses import dataclass
from math import prod

from gyrfalcon.config import ModelConfig
from gyrfalcon.model.architectures import make_layout
from gyrfalcon.model.layout import Layout, TensorSpec
from gyrfalcon.parallel.shards import Share, shares_of
from gyrfalcon.quant import stored_bytes


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Peak rates of one device, measured on the spot.

    On a CPU with native kernels the matrix peak is that of the instruction by which these multiply
    the prompts' tokens, and that of float32 multiply-adds is beside it; elsewhere both are None.
    """

    bandwidth_bytes_per_second: float
    matrix_flops_per_second: float
    instruction: str | None = None
    float32_flops_per_second: float | None = None

    @property
    def of_float32(self) -> float | None:
        """What percentages of the matrix peak are multiplied by to be of float32 multiply-adds."""
        if self.float32_flops_per_second is None:
            return None
        return self.matrix_flops_per_second / self.float32_flops_per_second


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model as it runs: number of ranks, bytes per number, quantisation, devices."""

    config: ModelConfig
    world_size: int
    number_bytes: int  # of one weight, and of one number in the KV cache
    quant: str  # none, or what the matrices are quantised to
    on_cards: bool  # a GPU per rank; else all ranks share one CPU

    @property
    def layout(self) -> Layout:
        """Its tensors; a tied head counts, for its matrix is read."""
        return make_layout(self.config, has_head=True, quant=self.quant)

    @property
    def num_devices(self) -> int:
        return self.world_size if self.on_cards else 1

    def busiest(self, per_rank: list[int]) -> int:
        """The work of the busiest device, given that of each rank."""
        return max(per_rank) if self.on_cards else sum(per_rank)


def percent_of_limit(work: float, limit_per_second: float, ms: float) -> float:
    """Percent of the limit that a device reaches with this much `work` in `ms` milliseconds."""
    return 100 * work / limit_per_second / (ms / 1000)


def decode_bytes(deployment: Deployment, batch: int, context: float) -> int:
    """Bytes that the busiest device has to read for one decoding step of `batch` sequences.

    Every weight once (for the head, which a tied model takes from the embedding, the whole matrix;
    of the embedding only the rows looked up), and keys and values of `context` tokens a sequence.
    """
    config, size = deployment.config, deployment.number_bytes
    layout = deployment.layout
    embedding = layout.tensors[0]
    per_rank = []
    for share in shares_of(config, deployment.world_size):
        weights = sum(_bytes(deployment, layout, spec, share) for spec in _read_whole(layout))
        looked_up = batch * _row_bytes(deployment, layout, embedding)
        kv = 2 * len(share.kv_heads) * config.head_dim * config.num_layers
        per_rank.append(weights + looked_up + int(size * batch * context * kv))
    return deployment.busiest(per_rank)


def prefill_flops(deployment: Deployment, batch: int, input_len: int) -> int:
    """Multiplications and additions that the busiest device does until `batch` prompts have their
    first token.

    2 for each weight matrix element and token; in attention 2 × 2 × head_dim for each query head and
    each of the n (n + 1) / 2 pairs of a token and one it may see (Kaplan et al. 2020, table 1, with
    causal pairs only). The head, and the last layer but for keys and values, only for the last token
    of a prompt: of the others nobody reads more.
    """
    config, layout = deployment.config, deployment.layout
    pairs = (config.num_layers - 1) * (input_len * (input_len + 1) // 2) + input_len
    per_rank = []
    for share in shares_of(config, deployment.world_size):
        every = last = 0  # elements for every token, and for the last one alone
        for spec in _read_whole(layout):
            if len(spec.shape) == 2:
                elements = prod(layout.local_shape(spec, share))
                if layout.layer_of.get(spec.name, config.num_layers) < config.num_layers - 1:
                    every += elements
                else:
                    last += elements
        cached = 2 * len(share.kv_heads) * config.head_dim * config.hidden_size
        products = (every + cached) * input_len + last - cached
        attention = _pair_flops(config, share) * pairs
        per_rank.append(batch * (2 * products + attention))
    return deployment.busiest(per_rank)


def pair_flops(deployment: Deployment) -> int:
    """What one layer's attention on the busiest device needs for one pair of tokens."""
    shares = shares_of(deployment.config, deployment.world_size)
    return deployment.busiest([_pair_flops(deployment.config, share) for share in shares])


def _pair_flops(config: ModelConfig, share: Share) -> int:
    return 4 * config.head_dim * len(share.query_heads)


def _read_whole(layout: Layout) -> list[TensorSpec]:
    """All tensors but the embedding."""
    return [spec for spec in layout.tensors if spec.role != "embedding"]


def _bytes(deployment: Deployment, layout: Layout, spec: TensorSpec, share: Share) -> int:
    """The size of a tensor on one rank."""
    shape, kind = layout.local_shape(spec, share), layout.kind_of(spec)
    return prod(shape) * deployment.number_bytes if kind == "none" else stored_bytes(kind, *shape)


def _row_bytes(deployment: Deployment, layout: Layout, spec: TensorSpec) -> int:
    """The size of a row of a matrix."""
    kind, columns = layout.kind_of(spec), spec.shape[1]
    return columns * deployment.number_bytes if kind == "none" else stored_bytes(kind, 1, columns)
