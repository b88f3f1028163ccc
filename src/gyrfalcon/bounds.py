"""Bounds of numeric settings, shared by the command line and Python."""

from dataclasses import dataclass

from gyrfalcon.errors import shortened


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers from `least` to `most`, inclusive; never NaN."""

    least: float
    most: float
    above: bool = False  # `least` itself is not among them
    shown_as: str = ""  # instead of the numbers

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        if self.above:
            return f"above {self.least:,}, at most {self.most:,}"
        return self.shown_as or f"{self.least:,} to {self.most:,}"

    @property
    def words(self) -> str:
        """As in an error message: "from 0 to 1"."""
        return str(self) if self.above else f"from {self}"


def shown(value: object) -> str:
    """A wrong value for an error message, as Python writes it."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no whole numbers of thousands of digits
        return "a number of thousands of digits"


TOKENS = Bounds(0, 10_000_000)
ONE_TOKEN_OR_MORE = Bounds(1, TOKENS.most)
TOP_TOKENS = Bounds(0, 1_000_000)  # above any vocabulary
BYTES = Bounds(1, 10**15)
FRACTIONS = Bounds(0, 1, above=True)
SEEDS = Bounds(-(2**63), 2**64 - 1, shown_as="-2^63 to 2^64 - 1")  # those of torch.manual_seed
PENALTIES = Bounds(-2, 2)

SAMPLING = {
    "max_new_tokens": TOKENS,
    "min_tokens": TOKENS,
    "temperature": Bounds(0, 1000),
    "top_k": TOP_TOKENS,
    "top_p": FRACTIONS,
    "min_p": Bounds(0, 1),
    "repetition_penalty": Bounds(0.001, 1000),  # beyond, logits would not stay finite
    "presence_penalty": PENALTIES,
    "frequency_penalty": PENALTIES,
    "seed": SEEDS,
    "n": Bounds(1, 10_000),
    "logprobs": TOP_TOKENS,
    "prompt_logprobs": TOP_TOKENS,
}

ENGINE = {
    "world_size": Bounds(1, 1024),
    "max_len": ONE_TOKEN_OR_MORE,
    "cache_memory": BYTES,
    "block_size": Bounds(1, 65_536),
    "max_batch_tokens": ONE_TOKEN_OR_MORE,
    "max_sequences": Bounds(1, 100_000),
    "num_speculative_tokens": Bounds(0, 64),
    "step_target": Bounds(0, 3600, above=True),  # seconds
    "rank_timeout": Bounds(0, 86_400, above=True),  # seconds
    "max_queued_requests": Bounds(1, 100_000_000),
    "max_queued_tokens": Bounds(1, 10**12),
    "seed": SEEDS,
    "threads": Bounds(1, 4096),
}

REQUEST = {
    "priority": Bounds(-(2**31), 2**31 - 1, shown_as="-2^31 to 2^31 - 1"),
    "timeout": Bounds(0, 10**9, above=True),  # seconds
}
