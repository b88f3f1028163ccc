"""Reads a result of `precision` back. Its figures have to follow from its curves, its verdicts from
its figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose

import torch

from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.precision import published_tokens
from gyrfalcon.measure.precision.gate import (
    LIMITS,
    SENSE,
    Figure,
    limits_of,
    of_curves,
    read_figures,
)
from gyrfalcon.measure.precision.reference_file import read_origin
from gyrfalcon.measure.precision.run import PHASES

AGAIN = "measure again"
CURVES = ("cosine", "relative_l2", "kl")

Columns = Mapping[str, tuple[Figure, ...]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One prompt's figures, position by position; its last `num_decoded` were decoded. None: NaN."""

    cosine: tuple[float | None, ...]
    relative_l2: tuple[float | None, ...]
    kl: tuple[float | None, ...]
    num_decoded: int

    def part(self, phase: str, name: str) -> tuple[float | None, ...]:
        """The positions of a curve in one of PHASES."""
        values = {"cosine": self.cosine, "relative_l2": self.relative_l2, "kl": self.kl}[name]
        border = len(values) - self.num_decoded
        return values[:border] if phase == "prefill" else values[border:]


@dataclass(frozen=True, slots=True)
class Gate:
    """The findings of a logits gate: figures by phase; published figures are one phase."""

    precision: str
    reference: str
    figures: Columns
    curves: tuple[Curve, ...]


def read_gate(raw: Fields) -> Gate:
    """The `result` of a `precision` document; ConfigError or UsageError for anything else."""
    precision = raw.one_of(tuple(LIMITS), "precision")
    published = raw.nested("published") or raw.nested("golden")  # its first name
    curves: tuple[Curve, ...] = ()
    if published is not None:
        words, figures = _published_words(published), _published_figures(published)
    else:
        words, curves = _reference_words(raw), tuple(map(_curve, raw.objects("prompts")))
        figures = _phases(raw, precision, curves)
    held = all(figure.held for column in figures.values() for figure in column)
    if raw.need(bool, "passed") != held:
        wanted = f"passed to be {held}, as the figures say, in {raw.where}"
        raise UsageError(wanted, str(not held), AGAIN)
    return Gate(precision, words, figures, curves)


def _published_words(published: Fields) -> str:
    return f"published figures of {published.need(str, 'model')}: {published.need(str, 'source')}"


def _published_figures(published: Fields) -> Columns:
    limits = published_tokens.ALL_LIMITS
    figures = read_figures(
        published.objects("figures"), published_tokens.SENSE, limits, published.where
    )
    return {"published": figures}


def _reference_words(raw: Fields) -> str:
    origin = read_origin(raw.inside("reference"))
    return origin.description + (
        "" if origin.independent else " (not independent: it shares our code)"
    )


def _phases(raw: Fields, precision: str, curves: Sequence[Curve]) -> Columns:
    stated = raw.inside("figures")
    phases = [phase for phase in PHASES if any(one.part(phase, "kl") for one in curves)]
    if not phases or sorted(stated.raw) != sorted(phases):
        wanted = f"a prompt or more, and figures of each phase they had, in {raw.where}"
        raise UsageError(wanted, ", ".join(stated.raw) or "none", AGAIN)
    limits, columns = limits_of(precision), {}
    for phase in phases:
        where = f"{phase} of {stated.where}"
        columns[phase] = read_figures(stated.objects(phase), SENSE, limits, where)
        _check_against(columns[phase], _follow(phase, curves), where)
    return columns


def _follow(phase: str, curves: Sequence[Curve]) -> dict[str, float]:
    """The figures that follow from the curves; NaN where a position has none."""
    joined = [
        torch.tensor(
            [
                torch.nan if value is None else value
                for one in curves
                for value in one.part(phase, name)
            ],
            dtype=torch.float64,
        )
        for name in CURVES
    ]
    return of_curves(*joined)


def _check_against(figures: Sequence[Figure], follows: Mapping[str, float], where: str) -> None:
    for figure in figures:
        value = follows.get(figure.name)
        if value is None:
            continue
        alike = (
            value != value
            if figure.value is None
            else isclose(figure.value, value, rel_tol=1e-6, abs_tol=1e-12)
        )
        if not alike:
            wanted = f"{figure.name} {value:.6g}, as the curves say, in {where}"
            raise UsageError(wanted, str(figure.value), AGAIN)


def _curve(raw: Fields) -> Curve:
    length, decoded = raw.positive("num_tokens"), raw.count("num_decoded")
    cosine, relative_l2, kl = values = [_values(raw, name) for name in CURVES]
    if any(len(one) != length for one in values) or decoded >= length:
        wanted = f"{length} positions in every curve, all but one of them decoded at most"
        got = f"{', '.join(str(len(one)) for one in values)}, {decoded} decoded"
        raise UsageError(f"{wanted}, in {raw.where}", got, AGAIN)
    if any(value is not None and abs(value) > 1 + 1e-6 for value in cosine):
        raise UsageError(f"cosines from -1 to 1 in {raw.where}", "others", AGAIN)
    if any(value is not None and value < 0 for value in relative_l2):
        raise UsageError(f"relative_l2 of 0 or more in {raw.where}", "less", AGAIN)
    return Curve(cosine, relative_l2, kl, decoded)


def _values(raw: Fields, name: str) -> tuple[float | None, ...]:
    items = {f"{name} {number}": value for number, value in enumerate(raw.items(name))}
    fields = Fields(items, raw.where, raw.largest)
    return tuple(fields.take(float, item) for item in items)
