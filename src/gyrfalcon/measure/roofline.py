"""The minimum work of a model, and what percentage of the machine's limit a time reaches.

Decoding is bound by the bytes read, prefill by multiplications (Williams, Waterman and Patterson
2009, "Roofline"). Counts are per rank: a GPU serves one rank, a CPU all of them.
"""

from dataclasses import dataclass

from gyrfalcon.checkpoint.layout import TensorSpec, local_ranges, quant_of, tensor_specs
from gyrfalcon.config import ModelConfig
from gyrfalcon.parallel.shards import Share, shares_of
from gyrfalcon.quant import stored_bytes


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Peak rates of one device, measured on the spot."""

    bandwidth_bytes_per_second: float
    matrix_flops_per_second: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model as it runs: number of ranks, bytes per number, quantisation, devices."""

    config: ModelConfig
    world_size: int
    number_bytes: int  # of one weight, and of one number in the KV cache
    quant: str  # none, or what the matrices are quantised to
    on_cards: bool  # a GPU per rank; else all ranks share one CPU

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
    embedding = tensor_specs(config, head=False)[0]
    per_rank = []
    for share in shares_of(config, deployment.world_size):
        weights = sum(_bytes(spec, deployment, share) for spec in _read_whole(config))
        looked_up = batch * _row_bytes(embedding, deployment)
        kv = 2 * len(share.kv_heads) * config.head_dim * config.num_layers
        per_rank.append(weights + looked_up + int(size * batch * context * kv))
    return deployment.busiest(per_rank)


def prefill_flops(deployment: Deployment, batch: int, input_len: int) -> int:
    """Multiplications and additions that the busiest device does until `batch` prompts have their
    first token.

    2 for each weight matrix element and token; the head only for the last token of a prompt; in
    attention 2 × 2 × head_dim for each query head and each of the n (n + 1) / 2 pairs of a token
    and one it may see (Kaplan et al. 2020, table 1, with causal pairs only).
    """
    config = deployment.config
    pairs = input_len * (input_len + 1) // 2
    per_rank = []
    for share in shares_of(config, deployment.world_size):
        elements = {"head": 0, "body": 0}
        for spec in _read_whole(config):
            if len(spec.shape) == 2:
                part = "head" if spec.role == "head" else "body"
                elements[part] += _elements(spec, config, share)
        attention = 4 * config.head_dim * len(share.query_heads) * pairs * config.num_layers
        per_rank.append(batch * (2 * (elements["body"] * input_len + elements["head"]) + attention))
    return deployment.busiest(per_rank)


def _read_whole(config: ModelConfig) -> list[TensorSpec]:
    """All tensors but the embedding; a tied head counts, for its matrix is read."""
    return [spec for spec in tensor_specs(config, head=True) if spec.role != "embedding"]


def _bytes(spec: TensorSpec, deployment: Deployment, share: Share) -> int:
    """The size of a tensor on one rank."""
    elements = _elements(spec, deployment.config, share)
    if quant_of(spec, deployment.quant) == "none":
        return elements * deployment.number_bytes
    rows = spec.shape[0] if spec.dim == 1 else elements // spec.shape[1]
    return stored_bytes(quant_of(spec, deployment.quant), rows, elements // rows)


def _row_bytes(spec: TensorSpec, deployment: Deployment) -> int:
    """The size of a row of a matrix."""
    kind, columns = quant_of(spec, deployment.quant), spec.shape[1]
    return columns * deployment.number_bytes if kind == "none" else stored_bytes(kind, 1, columns)


def _elements(spec: TensorSpec, config: ModelConfig, share: Share) -> int:
    """The number of elements of a tensor on one rank."""
    if spec.dim is None:
        return spec.elements
    held = sum(map(len, local_ranges(spec, config, share)))
    return spec.elements // spec.shape[spec.dim] * held
