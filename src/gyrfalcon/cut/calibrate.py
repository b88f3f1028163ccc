"""Calibrated quantisation (GPTQ) of a model: runs a text through it block by block and collects the
second moments of every matrix's inputs, with one block of the model in memory at a time.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gyrfalcon import ops
from gyrfalcon.batch import Batch
from gyrfalcon.checkpoint.load import effective_dtype, load_parts
from gyrfalcon.checkpoint.manifest import TextSum
from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.cut.gptq import quantise_for
from gyrfalcon.device.lookup import device_of
from gyrfalcon.device.threads import torch_threads
from gyrfalcon.engine_config import CALIBRATE_TOKENS
from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.ops import Attend, LinearCall, Ops
from gyrfalcon.quant import Quantised, Weight
from gyrfalcon.request import Chunk, Request, SamplingParams, Sequence
from gyrfalcon.text.tokenizer import Tokenizer

LETTERS_OF_A_TOKEN = 32  # many times as many as there are
WINDOW = 512  # tokens that attend to each other
BLOCK_SIZE = 16  # of their cache
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """The text to calibrate on, and how many of its tokens to read."""

    text: str
    most_tokens: int = CALIBRATE_TOKENS

    def __post_init__(self) -> None:
        if not isinstance(self.most_tokens, int) or self.most_tokens < 1:
            got, do = repr(self.most_tokens), "choose another number"
            raise UsageError("1 or more tokens to calibrate on", got, do)


def windows_of(source: CalibrationText, checkpoint: Checkpoint) -> Tensor:
    """Windows spread over the text: token ids, int64 [windows, tokens of each]. UsageError for a
    text shorter than one; CheckpointError for ids outside the model's vocabulary.
    """
    size = min(WINDOW, checkpoint.config.max_positions, source.most_tokens)
    tokenizer = Tokenizer.load(
        checkpoint.tokenizer_folder, stated_class=checkpoint.raw_config.get("tokenizer_class")
    )
    found = [tokenizer.encode(part, add_special_tokens=False) for part in _parts(source, size)]
    most = 1 if len(found) > 1 else None  # of each part
    windows = [
        ids[start : start + size]
        for ids in found
        for start in range(0, len(ids) - size + 1, size)[:most]
    ]
    if not windows:
        wanted, got = f"a text of at least {size} tokens to calibrate on", f"one of {len(found[0])}"
        raise UsageError(wanted, got, "take a longer one or lower `calibrate_tokens`")
    count = min(len(windows), source.most_tokens // size)
    chosen = torch.tensor([windows[i * len(windows) // count] for i in range(count)])
    if (largest := int(chosen.max())) >= checkpoint.config.vocab_size:
        wanted = f"token ids below {checkpoint.config.vocab_size}"
        raise CheckpointError(wanted, str(largest), "use the model's own tokenizer")
    return chosen


def _parts(source: CalibrationText, size: int) -> list[str]:
    """The text; of a long one, excerpts spread over it, a window in each with room to spare."""
    text, count = source.text, source.most_tokens // size
    letters = LETTERS_OF_A_TOKEN * size
    if len(text) <= count * letters:
        return [text]
    starts = [i * len(text) // count for i in range(count)]
    return [text[start : start + letters] for start in starts]


def sum_of(windows: Tensor) -> TextSum:
    """The checksum of these tokens."""
    ids = windows.numpy().astype("<i8").tobytes()
    return TextSum(windows.numel(), hashlib.sha256(ids).hexdigest())


class Calibration:
    """Quantises the matrices of a model's blocks with GPTQ, by the inputs of each when the model
    reads `windows`. A block's input is the output of the unquantised blocks before it. Cheapest in
    the order of the layers.
    """

    def __init__(self, checkpoint: Checkpoint, windows: Tensor) -> None:
        config, dtype = checkpoint.config, effective_dtype(checkpoint, "auto")
        self._threads = torch.get_num_threads()
        self._recording = _RecordingOps(ops.choose(device_of(CPU)))
        self._parts = load_parts(checkpoint, cast(Ops, self._recording), CPU, dtype)
        self._layer_of = checkpoint.layout.layer_of
        self._windows = windows
        size = windows.shape[1]
        blocks = range(-(-size // BLOCK_SIZE))
        shape = CacheShape(1, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
        self._cache = KVPool(shape, len(blocks), CPU).layers[0]
        request = Request(0, (0,) * size, SamplingParams(), seed=0)
        sequence = Sequence(request, 0, [0] * size, size, blocks=list(blocks))
        self._batch = Batch.build([Chunk(sequence, 0, size)], BLOCK_SIZE)
        rotary = self._parts.rotary
        self._angles = rotary and rotary.angles(self._batch.positions, self._batch.rope_lengths)
        self._begin()

    def quantised(self, name: str, weight: Tensor, kind: str) -> Quantised:
        """The matrix of that name, quantised to a kind of int4."""
        with torch_threads(self._threads):
            return quantise_for(weight, kind, self._moments(name))

    def _moments(self, name: str) -> Tensor:
        found, layer = self._recording.moments, self._layer_of[name]
        if name not in found:
            found.clear()
            if layer < self._layer:
                self._begin()
            while self._layer <= layer:
                self._run_block(observed=self._layer == layer)
        return found.pop(name)

    def _begin(self) -> None:
        """Starts at the first block."""
        self._layer = 0
        self._streams: list[tuple[Tensor, Tensor | None]] = [
            (self._parts.embedding(ids), None) for ids in self._windows
        ]

    def _run_block(self, observed: bool) -> None:
        block, names = self._parts.block(self._layer)
        self._recording.watch(names if observed else {})
        for i, (x, part) in enumerate(self._streams):
            self._streams[i] = block(x, part, self._angles, self._batch, self._cache)
        self._recording.watch({})
        self._layer += 1


class _RecordingOps:
    """Operators that also accumulate the second moments Σ x xᵀ of the inputs of watched matrices:
    float32 [in, in]; matrices with the same input share them.
    """

    def __init__(self, operations: Ops) -> None:
        self.moments: dict[str, Tensor] = {}
        self._operations = operations
        self.watch({})

    def watch(self, names: dict[int, str]) -> None:
        """Watches the matrices with these ids, and no others."""
        self._names = names
        self._last: tuple[Tensor | None, Tensor | None] = None, None

    def linear(self, x: Tensor, weight: Weight, *others: Any) -> Tensor:
        self._see(x, weight)
        return self._operations.linear(x, weight, *others)

    def branches(self, qkv: LinearCall, attend: Attend, up: LinearCall) -> tuple[Tensor, Tensor]:
        for one in (qkv, up):
            self._see(one.x, one.weight)
        return self._operations.branches(qkv, attend, up)

    def sum_of_linears(self, *each: tuple[Tensor, Weight], as_parts: bool = False) -> Tensor:
        for x, weight in each:
            self._see(x, weight)
        return self._operations.sum_of_linears(*each, as_parts=as_parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    def _see(self, x: Tensor, weight: Weight) -> None:
        name = self._names.get(id(weight))
        if name is None:
            return
        last, total = self._last
        if x is not last:
            total = self.moments.get(name)
            total = torch.zeros(x.shape[1], x.shape[1]) if total is None else total
            total.addmm_(x.float().t(), x.float())
        assert total is not None
        self._last = x, total
        self.moments[name] = total
