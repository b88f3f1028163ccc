"""The tables of a report: the runs, the precision gate, perplexity. Cells are plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

from gyrfalcon.measure.precision.gate import TITLES, Figure
from gyrfalcon.measure.precision.result import Gate
from gyrfalcon.report.runs import Results, Run, TextScore

NOTHING = "–"
HOLDS = "holds"
SIGNS = {">": ">", ">=": "≥", "<=": "≤"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first `num_labels` columns are words, the others figures. A folded table is
    shown on demand.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int = 1
    note: str = ""
    folded: bool = False


def run_table(results: Results) -> Table:
    """Which models ran, how, on what and when."""
    return Table(
        "Runs",
        ("run", "kind", "model", "parameters", "ranks", "weights", "machine", "date", "file"),
        tuple(
            (
                label,
                f"{head.kind}, baseline" if head.is_baseline else head.kind,
                head.model,
                f"{head.parameters:,}",
                f"{head.ranks} on {head.device}",
                head.weights,
                head.machine,
                head.date,
                str(head.path),
            )
            for head, label in results.heads.items()
        ),
        num_labels=9,
        folded=True,
    )


def precision_tables(runs: Sequence[Run[Gate]]) -> list[Table]:
    """The guide's cosine of every run, then all figures of each."""
    if not runs:
        return []
    summary = Table(
        "Cosine similarity of the logits",
        ("run", "gate", "reference", "prefill", "decode", "limit"),
        tuple(
            (run.label, verdict(run.found), run.found.reference, *_cosines(run.found))
            for run in runs
        ),
        num_labels=3,
    )
    return [summary, *(_figure_table(run) for run in runs)]


def verdict(gate: Gate) -> str:
    """Whether all figures hold, else how many do not."""
    held = [figure.held for figures in gate.figures.values() for figure in figures]
    return HOLDS if all(held) else f"FAILS: {held.count(False)} of {len(held)} figures"


def _cosines(gate: Gate) -> tuple[str, str, str]:
    found = {
        phase: figure
        for phase, figures in gate.figures.items()
        for figure in figures
        if figure.name == "cosine"
    }
    prefill, decode = (
        found[phase].shown if phase in found else NOTHING for phase in ("prefill", "decode")
    )
    return prefill, decode, _limit(next(iter(found.values()), None))


def _figure_table(run: Run[Gate]) -> Table:
    phases = run.found.figures
    names = dict.fromkeys(figure.name for figures in phases.values() for figure in figures)
    rows = []
    for name in names:
        cells = [next((f for f in figures if f.name == name), None) for figures in phases.values()]
        there = [cell for cell in cells if cell is not None]
        holds = (
            "" if there[0].limit is None else "yes" if all(cell.held for cell in there) else "NO"
        )
        shown = [cell.shown if cell else NOTHING for cell in cells]
        rows.append((TITLES.get(name, name), *shown, _limit(there[0]), holds))
    title = f"All figures of {run.label}"
    held = verdict(run.found) == HOLDS
    return Table(title, ("figure", *phases, "limit", "holds"), tuple(rows), folded=held)


def _limit(figure: Figure | None) -> str:
    if figure is None or figure.limit is None:
        return NOTHING
    return f"{SIGNS[figure.sense]} {figure.limit:g}"


def perplexity_tables(runs: Sequence[Run[TextScore]]) -> list[Table]:
    """A table per text and window, one row per run; none without runs."""
    groups: dict[str, list[Run[TextScore]]] = {}
    for run in runs:
        found = run.found
        asked = f"{found.num_bytes} bytes of {found.file}, window {found.window}"
        groups.setdefault(f"{asked}, stride {found.stride}", []).append(run)
    counts, figures = ("window", "stride", "tokens", "bytes"), ("bits per token", "bits per byte")
    headings = ("run", "text", *counts, "perplexity", *figures)
    return [
        Table(
            "Perplexity" if len(groups) == 1 else f"Perplexity, {asked}",
            headings,
            tuple((run.label, *_text_cells(run.found)) for run in group),
            num_labels=2,
            note="Perplexities compare between models of one vocabulary, bits per byte between all.",
        )
        for asked, group in groups.items()
    ]


def _text_cells(found: TextScore) -> tuple[str, ...]:
    counts = (found.window, found.stride, found.num_tokens, found.num_bytes)
    figures = (found.perplexity, found.bits_per_token, found.bits_per_byte)
    return (found.file, *map(str, counts), *(f"{figure:.4f}" for figure in figures))
