"""Which shares of the peaks gyrfalcon is predicted to reach: fitted ones where it was timed, else those
of what comes nearest. The table is efficiencies.json, made by tools/fit_efficiencies.py.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import median

from gyrfalcon.plan.prediction import Efficiency

FORMAT, VERSION = "gyrfalcon-efficiencies", 1
ENGINE = "gyrfalcon"
CPU = "cpu-"  # what the platforms of processors begin with
PLAIN = f"{CPU}torch"  # one without native kernels, which is as fast as another engine on torch
ON_TORCH = "transformers"
SIXTEEN_BITS = "16 bits"  # bf16 and fp16 are as fast
QUANTISED = ("int8", "int4", "fp8")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row of the table; a share is None where nothing told it."""

    platform: str
    engine: str
    precision: str
    bytes: float | None
    flops: float | None
    few_flops: float | None
    rows: int
    median_error: float | None  # percent, each row predicted from the others
    worst_error: float | None

    @property
    def on_cards(self) -> bool:
        return not self.platform.startswith(CPU)

    @property
    def kind(self) -> str:
        """Its precision, 16 bits as one."""
        return precision_kind(self.precision)

    def __str__(self) -> str:
        return f"{self.engine} on {self.platform} in {self.precision}"


@cache
def fitted() -> tuple[Fitted, ...]:
    """The table."""
    text = resources.files(__package__).joinpath("efficiencies.json").read_text("utf-8")
    return tuple(Fitted(**row) for row in json.loads(text)["fitted"])


def precision_of(dtype: str, quant: str) -> str:
    """The precision whose shares count for a model in this dtype, its matrices in `quant`."""
    return dtype if quant == "none" else quant.partition("-")[0]


def precision_kind(precision: str) -> str:
    """Its name among those that are alike."""
    return precision if precision in QUANTISED else SIXTEEN_BITS


def efficiency_for(platform: str, precision: str) -> Efficiency:
    """What gyrfalcon is predicted to reach on a platform: its own shares there in this precision; else, in
    this order, those of other engines there, its own on other platforms of the kind (cards or processors),
    other engines' there, and the same of any precision. Where several are as near, their median.
    """
    kind, on_cards = precision_kind(precision), not platform.startswith(CPU)
    engine = ON_TORCH if platform == PLAIN else ENGINE
    same_kind = [row for row in fitted() if row.on_cards == on_cards]
    tests: tuple[Callable[[Fitted], bool], ...] = (
        lambda row: row.platform == platform and row.engine == engine and row.kind == kind,
        lambda row: row.platform == platform and row.kind == kind,
        lambda row: row.engine == engine and row.kind == kind,
        lambda row: row.kind == kind,
        lambda row: row.platform == platform,
        lambda row: True,
    )
    ranked = [[row for row in same_kind if test(row)] for test in tests]
    moved, moved_from = _nearest(ranked, lambda row: row.bytes)
    computed, computed_from = _nearest(ranked, lambda row: row.flops)
    few = computed  # of cards nobody has told: their steps of few tokens are limited by bytes
    if not on_cards:
        few, _ = _nearest(ranked, lambda row: row.few_flops)
    return Efficiency(moved, computed, few, _basis(moved_from, computed_from))


def _nearest(
    ranked: Iterable[list[Fitted]], share: Callable[[Fitted], float | None]
) -> tuple[float, list[Fitted]]:
    """The median of the first rows that know a share, and these."""
    for rows in ranked:
        known = [(row, value) for row in rows if (value := share(row)) is not None]
        if known:
            return median(value for _, value in known), [row for row, _ in known]
    raise AssertionError("no row knows it")


def _basis(moved: list[Fitted], computed: list[Fitted]) -> str:
    if moved == computed:
        return _listed(moved)
    return f"bytes: {_listed(moved)}; flops: {_listed(computed)}"


def _listed(rows: list[Fitted]) -> str:
    names = [str(row) for row in rows]
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} others"]
    word = "median of " if len(rows) > 1 else ""
    alone = ", a single observation" if len(rows) == 1 and rows[0].rows == 1 else ""
    return f"{word}{', '.join(names)}{alone}"
