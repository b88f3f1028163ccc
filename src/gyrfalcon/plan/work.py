"""What a step asks of a device: bytes, operations, launches and collectives, for a model on some ranks."""

from dataclasses import dataclass
from functools import cache

from gyrfalcon.config import ModelConfig
from gyrfalcon.measure.roofline import Deployment, decode_bytes, pair_flops, prefill_flops
from gyrfalcon.plan.step_load import StepLoad

OTHER_LAUNCHES = 19  # embedding, final norm, head, choice of tokens, copies: a test counts
NUMBER_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ALL_REDUCES = {True: 1, False: 2}  # of a block that is parallel, or not


@dataclass(frozen=True, slots=True)
class Work:
    """Of the busiest device of a replica: a card serves one rank, a CPU all of them.

    Linear in a step's numbers: see `bytes_read` and `flops`. Everything comes from measure/roofline.py,
    which counts each weight once (Kaplan et al. 2020, table 1, for the operations).
    """

    ranks: int
    weight_bytes: int  # read in each step, whatever it computes
    row_bytes: int  # of the embedding, for each token
    key_bytes: int  # keys and values of one token
    token_flops: int  # for each token
    row_flops: int  # for each token whose logits are wanted: the head, and most of the last layer
    pair_flops: (
        int  # for each pair of a token and one that it attends to, in all layers but the last
    )
    row_pair_flops: int  # in the last layer, for each pair of a token whose logits are wanted
    num_layers: int
    all_reduces: int  # of a step, the one of the embedding included; 0 on one rank
    reduced_bytes: int  # of a token, in each

    def bytes_read(self, load: StepLoad) -> int:
        """weights + tokens × row of the embedding + contexts × (k, v), in bytes. What is written, and
        activations, are left out: they are under 2 % of it in decoding.
        """
        return (
            self.weight_bytes + self.row_bytes * load.tokens + self.key_bytes * load.context_tokens
        )

    def launches(self, of_a_layer: int) -> int:
        """Kernels of a step."""
        return of_a_layer * self.num_layers + OTHER_LAUNCHES

    def flops(self, load: StepLoad) -> int:
        """2 operations for each weight and token, and 4 × head_dim for each pair of tokens, query head and
        layer; the head's and most of the last layer's for each sequence that gets a token.
        """
        rows = load.decoding + (load.prompt_tokens > 0)
        return (
            self.token_flops * load.tokens
            + self.row_flops * rows
            + self.pair_flops * load.attended
            + self.row_pair_flops * load.context_tokens
        )


@cache
def work_of(config: ModelConfig, ranks: int, dtype: str, quant: str, on_cards: bool) -> Work:
    """The work of one replica. WorldSizeError for too many ranks; UsageError for matrices that cannot be
    quantised or cut so.
    """
    size = NUMBER_BYTES[dtype]
    deployment = Deployment(config, ranks, size, quant, on_cards)
    weights, row, cached = (
        decode_bytes(deployment, batch, context) for batch, context in ((0, 0), (1, 0), (1, 1))
    )
    none, one, two = (prefill_flops(deployment, 1, tokens) for tokens in (0, 1, 2))
    pair = two - 2 * one + none  # attention has n (n + 1) / 2 of them, all else is linear in n
    row_pair = pair_flops(deployment)
    return Work(
        ranks=ranks,
        weight_bytes=weights,
        row_bytes=row - weights,
        key_bytes=cached - row,
        token_flops=one - none - pair - row_pair,
        row_flops=none,
        pair_flops=pair,
        row_pair_flops=row_pair,
        num_layers=config.num_layers,
        all_reduces=ALL_REDUCES[config.parallel] * config.num_layers + 1 if ranks > 1 else 0,
        reduced_bytes=size * config.hidden_size,
    )
