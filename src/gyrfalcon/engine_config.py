"""EngineConfig: the settings of an engine. No tensors, no files."""

import os
from dataclasses import dataclass
from typing import TypedDict

from gyrfalcon.bounds import ENGINE, FRACTIONS, shown
from gyrfalcon.console.suggestion import known_names
from gyrfalcon.device import CHOICES
from gyrfalcon.errors import UsageError

DTYPES = ("auto", "bf16", "fp16", "fp32")
CALIBRATE_TOKENS = 32768  # of the calibration text
DECODE_STEPS = 32  # of each prompt in `precision`
NO_ADAPTER = "none"
NEVER_NONE = (
    "block_size",
    "max_batch_tokens",
    "max_sequences",
    "num_speculative_tokens",
    "rank_timeout",
)
QUANTS = ("none", "int8", "fp8", "int4", "int4-32", "int4-128")


class EngineSettings(TypedDict, total=False):
    """EngineConfig's fields but for the model, as Engine() takes them."""

    world_size: int | None
    device: str
    dtype: str
    quant: str
    adapter: str | None
    max_len: int | None
    cache_memory: int | float | None
    block_size: int
    max_batch_tokens: int
    max_sequences: int
    num_speculative_tokens: int
    step_target: float | None
    rank_timeout: float
    max_queued_requests: int | None
    max_queued_tokens: int | None
    reuse_prefixes: bool
    seed: int | None
    threads: int | None


@known_names(UsageError, "settings of an engine")
@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The settings of an Engine. `None` means: derived from the model and the machine.

    model: a Hugging Face folder, a cut folder or a hub id.
    world_size: number of ranks; by default torchrun's, else the cut's own, else 1.
    device: auto or one of device.KINDS; auto takes an accelerator where there is one.
    dtype: the dtype of computation; auto is the checkpoint's own.
    quant: none, as the checkpoint or cut is; or int8, fp8, int4 (one scale per 64 weights of a row),
        int4-32, int4-128: matrices are quantised on load, embedding and head to 8 bits; computation
        stays in dtype.
    adapter: the folder of a LoRA adapter to merge into the weights on load; "." for the one beside
        them, "none" to ignore it.
    max_len: the longest sequence, prompt and new tokens together; by default as many tokens as the
        model has positions.
    cache_memory: the size of one rank's KV cache, in bytes (int) or as a fraction of the free memory (float).
    block_size: tokens per KV cache block; more where the device's operators read larger blocks alone.
    max_batch_tokens: tokens computed in one step; longer prompts are prefilled in chunks.
    max_sequences: sequences that run at once; further ones wait.
    num_speculative_tokens: how many tokens at most are drafted for a sequence in a step, by prompt lookup:
        those that followed where its last tokens stood before. All are computed at once, and as many are
        accepted as are what would have been picked anyway. Fewer or none where that takes longer than it
        saves. 0: never.
    step_target: seconds that a step may take. Sequences that decode get their token in every step;
        prompts are prefilled in smaller chunks where the last steps took longer, but of a block at
        least. None: as many tokens as `max_batch_tokens` leaves.
    rank_timeout: seconds that a rank may stand still, computing, loading and reporting nothing, before all
        are ended with RankDied.
    max_queued_requests, max_queued_tokens: what may wait: Engine.add() and stream() refuse with
        QueueFull a prompt that would be one more; None: any number. One that finds nothing waiting
        is taken, however long. generate() queues all of its prompts.
    reuse_prefixes: prompts that begin alike share the cached blocks of their common prefix.
    seed: for requests without one; by default a fresh one each time.
    threads: CPU threads per rank; by default the cores divided among the ranks.

    >>> EngineConfig(model="nestling", world_size=2, max_len=512).dtype
    'auto'
    """

    model: str
    world_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    quant: str = "none"
    adapter: str | None = None
    max_len: int | None = None
    cache_memory: int | float | None = None
    block_size: int = 16
    max_batch_tokens: int = 512
    max_sequences: int = 64
    num_speculative_tokens: int = 0
    step_target: float | None = None
    rank_timeout: float = 10.0
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    reuse_prefixes: bool = True
    seed: int | None = None
    threads: int | None = None

    @property
    def model_name(self) -> str:
        """The model as typed, with the adapter that is merged into it."""
        return f"{self.model} + adapter {self.adapter}" if self.merges_adapter else self.model

    @property
    def merges_adapter(self) -> bool:
        """Whether an adapter changes the model's own weights."""
        return self.adapter not in (None, NO_ADAPTER)

    def __post_init__(self) -> None:
        if not (isinstance(self.model, str) and self.model):
            do = "pass a folder, a cut, a hub id or nestling, as a string"
            raise UsageError("the name of a model", shown(self.model), do)
        words = (
            ("device", self.device, CHOICES),
            ("dtype", self.dtype, DTYPES),
            ("quant", self.quant, QUANTS),
        )
        for name, word, known in words:
            if word not in known:
                raise UsageError(
                    f"`{name}` {', '.join(known)}", shown(word), f"choose another `{name}`"
                )
        if self.adapter is not None and not isinstance(self.adapter, str):
            wanted = "a path or a word for `adapter`"
            raise UsageError(wanted, shown(self.adapter), "pass a string")
        if isinstance(self.cache_memory, float) and self.cache_memory not in FRACTIONS:
            wanted = f"`cache_memory` in bytes or a fraction {FRACTIONS}"
            raise UsageError(wanted, shown(self.cache_memory), "correct it")
        numbers = {
            "world_size": self.world_size,
            "max_len": self.max_len,
            "cache_memory": None if isinstance(self.cache_memory, float) else self.cache_memory,
            "block_size": self.block_size,
            "max_batch_tokens": self.max_batch_tokens,
            "max_sequences": self.max_sequences,
            "num_speculative_tokens": self.num_speculative_tokens,
            "max_queued_requests": self.max_queued_requests,
            "max_queued_tokens": self.max_queued_tokens,
            "seed": self.seed,
            "threads": self.threads,
        }
        for name, number in numbers.items():
            if number is None and name not in NEVER_NONE:
                continue
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not (whole and number in ENGINE[name]):  # type: ignore[operator]  # whole, so no None
                wanted = f"a whole number {ENGINE[name].words} for `{name}`"
                raise UsageError(wanted, shown(number), f"give another `{name}`")
        for name, seconds in (
            ("step_target", self.step_target),
            ("rank_timeout", self.rank_timeout),
        ):
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            absent = seconds is None and name not in NEVER_NONE
            if not absent and not (number and seconds in ENGINE[name]):  # type: ignore[operator]
                wanted = f"seconds {ENGINE[name].words} for `{name}`"
                raise UsageError(wanted, shown(seconds), f"give another `{name}`")
        if not isinstance(self.reuse_prefixes, bool):
            wanted = "True or False for `reuse_prefixes`"
            raise UsageError(wanted, shown(self.reuse_prefixes), "pass one of these")


def config_of(
    model: "str | os.PathLike[str] | EngineConfig", settings: EngineSettings
) -> EngineConfig:
    """The EngineConfig passed to Engine(), or one made of a model and settings; UsageError for both
    at once and for unknown settings.
    """
    if isinstance(model, EngineConfig):
        if settings:
            got = f"an EngineConfig and {', '.join(settings)}"
            raise UsageError("an EngineConfig, or a model and settings", got, "put all into one")
        return model
    return EngineConfig(str(model) if isinstance(model, os.PathLike) else model, **settings)
