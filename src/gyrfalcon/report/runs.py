"""The runs of a report: records whose values have been checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from gyrfalcon.console.format import counted
from gyrfalcon.measure.mmlu.compare import Comparison
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.score import Count
from gyrfalcon.measure.precision.result import Gate
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.cases import Case, Row

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What every document states about its run."""

    path: Path
    kind: str
    is_baseline: bool
    model: str
    model_kind: str  # which model it is, whatever it is called: as published.kind_of() says
    parameters: int
    ranks: int
    device: str
    dtype: str
    quant: str
    machine: str
    date: str
    version: str

    @property
    def name(self) -> str:
        """The model's name without its folder."""
        return Path(self.model).name or self.model

    @property
    def traits(self) -> tuple[str, ...]:
        """What distinguishes runs of one model, the most telling first."""
        return (self.weights, self.device, counted(self.ranks, "rank"), self.machine)

    @property
    def weights(self) -> str:
        """The precision: "bf16", or "int8, bf16" for int8 weights computed in bf16."""
        return self.dtype if self.quant == "none" else f"{self.quant}, {self.dtype}"


@dataclass(frozen=True, slots=True)
class Speed:
    """The cases of one batch size."""

    batch: int
    rows: tuple[Row, ...]
    limits: MachineLimits | None

    @property
    def measured(self) -> frozenset[Case]:
        """The cases that fit into memory."""
        return frozenset(row.case for row in self.rows if row.figures is not None)


@dataclass(frozen=True, slots=True)
class Compared:
    """A run compared with another one, whose answers are not available."""

    file: str
    model: str
    pairs: Comparison


@dataclass(frozen=True, slots=True)
class ExamScore:
    """The result of one exam: `result` has every answer, for comparisons question by question."""

    result: ExamResult
    compared: Compared | None = None  # with another run, when it was measured

    @property
    def all(self) -> Count:
        return self.result.score.all

    @property
    def categories(self) -> Mapping[str, Count]:
        return self.result.score.categories

    def subjects(self, category: str) -> dict[str, Count]:
        """The counts of a category's subjects."""
        home = self.result.categories
        counts = self.result.score.subjects
        return {name: counts[name] for name in sorted(home) if home[name] == category}


@dataclass(frozen=True, slots=True)
class TextScore:
    """How well a text was predicted."""

    file: str
    window: int
    stride: int
    num_tokens: int
    num_bytes: int
    perplexity: float
    bits_per_token: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Run(Generic[T_co]):
    """One measurement: its header, its label and its findings."""

    head: RunHeader
    label: str
    found: T_co


@dataclass(frozen=True, slots=True)
class Results:
    """All runs by kind, in the order of their files on the command line, baselines last."""

    precision: tuple[Run[Gate], ...]
    mmlu: tuple[Run[ExamScore], ...]
    speed: tuple[Run[Speed], ...]
    perplexity: tuple[Run[TextScore], ...]

    @property
    def heads(self) -> dict[RunHeader, str]:
        """Every file once, with the label of its run."""
        runs: list[Run[object]] = [*self.precision, *self.mmlu, *self.speed, *self.perplexity]
        return {run.head: run.label.split(", batch ")[0] for run in runs}
