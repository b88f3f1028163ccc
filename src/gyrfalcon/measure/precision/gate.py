"""The logits gate: how far our logits are from a reference's, in figures that no broken position
can hide behind, each with its limit. Pure functions of tensors, and reading figures back.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.quant import GROUPS

ROWS = 64  # rows taken at a time: 65024 logits each, several times over in float64
CLEAR_MARGIN = 0.1  # below it, the reference's best two logits have no clear favourite
TRANSFORMERS_FACTOR = 1.2  # of the error that transformers itself has in the same half precision

HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<=": operator.le,
}
SENSE = {  # every figure in table order, and how it has to compare with its limit
    "cosine": ">",
    "centred_cosine_p5": ">=",
    "relative_l2_p95": "<=",
    "relative_l2_to_transformers": "<=",
    "kl_mean": "<=",
    "kl_p99": "<=",
    "top1_agreement": ">=",
    "top1_in_top5": ">=",
    "non_finite": "<=",
}
TITLES: Mapping[str, str] = {  # of these figures, and of published_tokens.py's
    "cosine": "cosine of all logits",
    "centred_cosine_p5": "cosine of a token, 5th percentile",
    "relative_l2_p95": "relative L2 of a token, 95th percentile",
    "relative_l2_to_transformers": "the same ÷ that of transformers",
    "kl_mean": "KL divergence, mean",
    "kl_p99": "KL divergence, 99th percentile",
    "top1_agreement": "top-1 agreement, clear cases",
    "top1_in_top5": "top-1 within top-5, close cases",
    "non_finite": "NaN or infinite logits",
    "logprob_mean_error": "log-probability, mean difference",
    "logprob_max_error": "log-probability, largest difference",
    "nll_error": "mean log-probability, difference",
    "greedy_agreement": "same greedy tokens",
}
HALF = {
    "cosine": 0.999,
    "centred_cosine_p5": 0.99,
    "relative_l2_p95": 0.05,
    "relative_l2_to_transformers": TRANSFORMERS_FACTOR,
    "kl_mean": 1e-3,
    "top1_agreement": 0.9,
    "top1_in_top5": 0.8,
}
LIMITS: Mapping[str, Mapping[str, float]] = {
    "fp32": {**HALF, "relative_l2_p95": 1e-4},
    "bf16": HALF,
    "fp16": HALF,
    "int8": {"cosine": 0.999, "relative_l2_p95": 0.05, "kl_mean": 5e-3},
    "fp8": {"cosine": 0.99, "relative_l2_p95": 0.12},
    **{kind: {"cosine": 0.95, "relative_l2_p95": 0.35} for kind in GROUPS},
}


MAY_BE_EMPTY = ("top1_agreement", "top1_in_top5")  # without a value where no position counts
OPTIONAL = ("relative_l2_to_transformers",)  # only where transformers is installed
HELD = {True: "held", False: "not held"}
AGAIN = "measure again with this version"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the gate; without a limit it is informational."""

    name: str
    value: float | None  # None: not finite, or no position counts
    sense: str  # one of HOLDS: how the value has to compare with the limit
    limit: float | None
    held: bool

    @classmethod
    def of(cls, name: str, value: float | None, sense: str, limit: float | None) -> Self:
        """A figure for which no position counts holds; one that is not finite does not."""
        number = value if value is not None and math.isfinite(value) else None
        if value is None or limit is None:
            return cls(name, number, sense, limit, held=True)
        return cls(
            name, number, sense, limit, held=number is not None and HOLDS[sense](value, limit)
        )

    @property
    def shown(self) -> str:
        """The value for people."""
        if self.value is None:
            return "-"
        if self.name == "non_finite":
            return f"{self.value:.0f}"
        return f"{self.value:.3g}" if self.sense == "<=" else f"{self.value:.6f}"


def failures(columns: Mapping[str, Sequence[Figure]]) -> list[str]:
    """The figures that did not hold, such as "decode kl_mean"."""
    return [
        f"{name} {figure.name}"
        for name, figures in columns.items()
        for figure in figures
        if not figure.held
    ]


@dataclass(frozen=True, slots=True)
class LogitsComparison:
    """Our logits beside the reference's, position by position; all tensors are [positions]."""

    dot: float  # of all logits, flattened
    our_square: float
    reference_square: float
    cosine: Tensor  # float64, of the logits less their mean
    relative_l2: Tensor  # float64, |ours - reference| / |reference|
    kl: Tensor  # float64, KL(reference || ours) in nats
    clear: Tensor  # bool, the reference has a clear favourite
    same_top: Tensor  # bool, our favourite is the reference's
    in_top5: Tensor  # bool, our favourite is among the reference's five
    num_non_finite: int


def compare(ours: Tensor, reference: Tensor) -> LogitsComparison:
    """Compares logits of the same tokens, float32 [positions, vocab] each."""
    assert ours.shape == reference.shape
    assert len(ours) > 0
    pairs = zip(ours.split(ROWS), reference.split(ROWS), strict=True)
    return joined([_compare_rows(own, other) for own, other in pairs])


def joined(parts: Sequence[LogitsComparison]) -> LogitsComparison:
    """Several comparisons as one, in their order."""
    return LogitsComparison(
        dot=sum(part.dot for part in parts),
        our_square=sum(part.our_square for part in parts),
        reference_square=sum(part.reference_square for part in parts),
        cosine=torch.cat([part.cosine for part in parts]),
        relative_l2=torch.cat([part.relative_l2 for part in parts]),
        kl=torch.cat([part.kl for part in parts]),
        clear=torch.cat([part.clear for part in parts]),
        same_top=torch.cat([part.same_top for part in parts]),
        in_top5=torch.cat([part.in_top5 for part in parts]),
        num_non_finite=sum(part.num_non_finite for part in parts),
    )


def figures(
    comparison: LogitsComparison, precision: str, transformers: LogitsComparison | None = None
) -> tuple[Figure, ...]:
    """Every figure with its limit at `precision`, one of LIMITS.

    transformers: that of transformers in the same half precision with the same reference.
    """
    values = _values(comparison)
    if transformers is not None:
        theirs = _values(transformers)["relative_l2_p95"]
        values["relative_l2_to_transformers"] = _ratio(values["relative_l2_p95"], theirs)
    limits = limits_of(precision)
    return tuple(
        Figure.of(name, values[name], sense, limits.get(name))
        for name, sense in SENSE.items()
        if name in values
    )


def of_curves(cosine: Tensor, relative_l2: Tensor, kl: Tensor) -> dict[str, float]:
    """The figures computed from the curves, float64 [positions] each."""
    return {
        "centred_cosine_p5": float(cosine.quantile(0.05)),
        "relative_l2_p95": float(relative_l2.quantile(0.95)),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
    }


def limits_of(precision: str) -> dict[str, float]:
    """Every figure that has a limit at `precision`, one of LIMITS."""
    return {**LIMITS[precision], "non_finite": 0.0}


def read_figures(
    raws: Sequence[Fields], senses: Mapping[str, str], limits: Mapping[str, float], where: str
) -> tuple[Figure, ...]:
    """Figures from a result file. UsageError unless every figure with a limit is there once, with
    the limit and verdict of this version.
    """
    found = {raw.need(str, "name"): _read_figure(raw, senses, limits) for raw in raws}
    missing = [name for name in limits if name not in found and name not in OPTIONAL]
    if missing or len(found) != len(raws):
        got = f"none for {missing[0]}" if missing else "one twice"
        raise UsageError(f"every figure of the gate once in {where}", got, AGAIN)
    return tuple(found.values())


def _read_figure(raw: Fields, senses: Mapping[str, str], limits: Mapping[str, float]) -> Figure:
    name = raw.one_of(tuple(senses), "name")
    value, limit = raw.take(float, "value"), raw.take(float, "limit")
    found = Figure.of(name, value, senses[name], limits.get(name))
    if value is None and limit is not None and name not in MAY_BE_EMPTY:
        found = replace(found, held=False)  # NaN, for which JSON has no number
    stated = (raw.need(str, "sense"), limit, raw.need(bool, "held"))
    if stated != (found.sense, found.limit, found.held):
        words = [
            f"{sense} {limit}, {HELD[held]}" for sense, limit, held in (_verdict(found), stated)
        ]
        raise UsageError(f"{name} {words[0]} in {raw.where}", words[1], AGAIN)
    return found


def _verdict(figure: Figure) -> tuple[str, float | None, bool]:
    return figure.sense, figure.limit, figure.held


def _compare_rows(ours: Tensor, reference: Tensor) -> LogitsComparison:
    non_finite = (~ours.isfinite()).sum() + (~reference.isfinite()).sum()
    best = reference.topk(min(5, reference.shape[-1]), dim=-1)
    favourite = ours.argmax(dim=-1, keepdim=True)
    ours, reference = ours.double(), reference.double()
    log_p, log_q = reference.log_softmax(dim=-1), ours.log_softmax(dim=-1)
    return LogitsComparison(
        dot=float((ours * reference).sum()),
        our_square=float(ours.square().sum()),
        reference_square=float(reference.square().sum()),
        cosine=cosine_similarity(_centred(ours), _centred(reference), dim=-1),
        relative_l2=(ours - reference).norm(dim=-1) / reference.norm(dim=-1),
        kl=(log_p.exp() * (log_p - log_q)).sum(dim=-1),
        clear=best.values[:, 0] - best.values[:, 1] >= CLEAR_MARGIN,
        same_top=(favourite == best.indices[:, :1]).any(dim=-1),
        in_top5=(favourite == best.indices).any(dim=-1),
        num_non_finite=int(non_finite),
    )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def _values(compared: LogitsComparison) -> dict[str, float | None]:
    """The figures by name; None where no position counts, NaN where logits are not finite."""
    clear = compared.clear
    norms = math.sqrt(compared.our_square) * math.sqrt(compared.reference_square)
    return {
        "cosine": _ratio(compared.dot, norms),
        **of_curves(compared.cosine, compared.relative_l2, compared.kl),
        "top1_agreement": _share(compared.same_top[clear]),
        "top1_in_top5": _share(compared.in_top5[~clear]),
        "non_finite": float(compared.num_non_finite),
    }


def _share(flags: Tensor) -> float | None:
    return float(flags.double().mean()) if len(flags) else None


def _ratio(value: float | None, other: float | None) -> float:
    return value / other if value is not None and other else math.nan
