"""The precision measurement: an engine's prefill and decode logits through the gate against a
reference. Each phase has to pass on its own, so that many good positions cannot hide a few bad
ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.console.progress import bar
from gyrfalcon.device.dtypes import DTYPE_OF_WORD, WORD_OF_DTYPE
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.precision.gate import (
    Figure,
    LogitsComparison,
    compare,
    failures,
    figures,
    joined,
)
from gyrfalcon.measure.precision.reference_file import Origin, Prompts, Reference, write_reference
from gyrfalcon.measure.precision.reference_transformers import (
    is_installed,
    reference_logits,
    require,
)
from gyrfalcon.parallel.group import solo
from gyrfalcon.parallel.ranks import RankInfo, Ranks

PHASES = ("prefill", "decode")
HALF_PRECISIONS = ("bf16", "fp16")

Compared = dict[str, LogitsComparison]  # by phase; a phase without a position is left out


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the gate."""

    precision: str
    origin: Origin
    phases: dict[str, tuple[Figure, ...]]
    prompts: tuple[Compared, ...]

    def __post_init__(self) -> None:
        assert self.phases  # a gate on nothing would hold
        assert self.prompts

    @property
    def failures(self) -> list[str]:
        """The figures that did not hold."""
        return failures(self.phases)

    def as_json(self) -> dict[str, object]:
        """The result for the document; the curves are for plots, a number per position."""
        return {
            "precision": self.precision,
            "passed": not self.failures,
            "reference": asdict(self.origin),
            "figures": {
                phase: [asdict(figure) for figure in rows] for phase, rows in self.phases.items()
            },
            "prompts": [_curves(compared) for compared in self.prompts],
        }


def precision_of(engine: Engine) -> str:
    """Which limits apply to an engine: its quantisation's, else its dtype's."""
    quant = engine.config.quant
    return WORD_OF_DTYPE[engine.dtype] if quant == "none" else quant


def judge(engine: Engine, reference: Reference, decode_steps: int) -> Outcome:
    """Compares the engine's logits with the reference's, prompt by prompt. The last `decode_steps`
    tokens of a prompt are computed one at a time.
    """
    precision = precision_of(engine)
    transformers = None
    if precision in HALF_PRECISIONS and reference.origin.independent and is_installed():
        transformers = _transformers_compared(engine, reference, precision, decode_steps)
    ours = our_logits(engine, reference.prompts, decode_steps)
    compared = _compared(reference, ours, decode_steps)
    phases = {
        phase: figures(total, precision, None if transformers is None else transformers[phase])
        for phase, total in _totals(compared).items()
    }
    return Outcome(precision, reference.origin, phases, tuple(compared))


def our_logits(engine: Engine, prompts: Prompts, decode_steps: int) -> Iterator[Tensor]:
    """The engine's logits of each prompt, float32 [tokens, vocab]. Under torchrun every rank has to
    call it.
    """
    with bar(len(prompts), "prompts", "our logits", engine.is_first_rank) as progress:
        for ids in prompts:
            steps = _num_decoded(ids, decode_steps)
            yield engine.logits(torch.tensor([ids]), single_steps=steps)[0]
            progress.update()


def make_reference(engine: Engine, kind: str, prompts: Prompts, path: Path) -> None:
    """Writes the logits of a reference of `kind`, transformers or fp32, for the prompts; UsageError
    for a quantised cut, which has no original weights to refer to.
    """
    refuse_quantised(open_checkpoint(resolve_model(engine.config.model), engine.config.adapter))
    config = engine.model_config
    if kind == "transformers":
        words = f"transformers {require()}, fp32, sdpa, on the CPU"
        origin = Origin(kind, words, independent=True)
        logits = _transformers_logits(engine, torch.float32, prompts)
    else:
        words = "our own path on one CPU rank, fp32, each prompt in one go"
        origin = Origin(kind, words, independent=False)
        logits = _own_logits(engine, prompts)
    write_reference(path, config, origin, prompts, logits)


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """UsageError for a quantised cut, which has no original weights to refer to."""
    if checkpoint.quant != "none":
        wanted = "a model that is not quantised as the reference"
        do = "make one of the checkpoint with `save_reference` and pass it as `reference`"
        raise UsageError(wanted, f"the cut {checkpoint.folder} in {checkpoint.quant}", do)


def _own_logits(engine: Engine, prompts: Prompts) -> Iterator[Tensor]:
    config = replace(
        engine.config,
        world_size=1,
        device="cpu",
        dtype="fp32",
        quant="none",
        max_batch_tokens=max(map(len, prompts)),
    )
    alone = Ranks(RankInfo(solo(), local_rank=0, ranks_here=engine.world_size))
    with (
        Engine(config, alone) as plain,
        bar(len(prompts), "prompts", "fp32 logits") as progress,
    ):
        for ids in prompts:
            yield plain.logits(torch.tensor([ids]))[0]
            progress.update()


def _transformers_logits(engine: Engine, dtype: torch.dtype, prompts: Prompts) -> Iterator[Tensor]:
    word, config = WORD_OF_DTYPE[dtype], engine.config
    checkpoint = open_checkpoint(resolve_model(config.model), config.adapter, word)
    with bar(len(prompts), "prompts", f"transformers {word}") as progress:
        for logits in reference_logits(checkpoint, dtype, prompts):
            yield logits
            progress.update()


def _transformers_compared(
    engine: Engine, reference: Reference, precision: str, decode_steps: int
) -> Compared:
    """How far transformers itself is from the reference in our half precision."""
    theirs = _transformers_logits(engine, DTYPE_OF_WORD[precision], reference.prompts)
    return _totals(_compared(reference, theirs, decode_steps))


def _compared(reference: Reference, logits: Iterable[Tensor], decode_steps: int) -> list[Compared]:
    """Compares each prompt's logits with the reference's, one prompt in memory at a time."""
    return [
        _by_phase(rows, reference.logits(number), _num_decoded(ids, decode_steps))
        for number, (ids, rows) in enumerate(zip(reference.prompts, logits, strict=True))
    ]


def _num_decoded(ids: Sequence[int], decode_steps: int) -> int:
    """A prompt's first token is never decoded."""
    return min(decode_steps, len(ids) - 1)


def _by_phase(ours: Tensor, reference: Tensor, num_decoded: int) -> Compared:
    border = len(ours) - num_decoded
    compared = {"prefill": compare(ours[:border], reference[:border])}
    if num_decoded:
        compared["decode"] = compare(ours[border:], reference[border:])
    return compared


def _totals(prompts: Sequence[Compared]) -> Compared:
    parts = {phase: [one[phase] for one in prompts if phase in one] for phase in PHASES}
    return {phase: joined(some) for phase, some in parts.items() if some}


def _curves(compared: Compared) -> dict[str, object]:
    whole = joined(list(compared.values()))
    return {
        "num_tokens": len(whole.cosine),
        "num_decoded": len(compared["decode"].cosine) if "decode" in compared else 0,
        "cosine": _numbers(whole.cosine),
        "relative_l2": _numbers(whole.relative_l2),
        "kl": _numbers(whole.kl),
    }


def _numbers(values: Tensor) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    finite = values.isfinite().tolist()
    return [value if good else None for value, good in zip(values.tolist(), finite, strict=True)]
