"""A report as one self-contained HTML page: style and plots inline, no scripts. All text passes
through `_text`, so that nothing in a result file can become markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from gyrfalcon.report.document import Highlight, Report, Section
from gyrfalcon.report.tables import Table

FEW_COLUMNS = 3  # that fit on a phone
HINT = "Scroll the table sideways for all its columns →"  # on a phone alone
LONG = 40  # letters of a cell that needs a wide column


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: `svg` is an element for an HTML page."""

    title: str
    caption: str
    svg: str


def page(report: Report, plots: Mapping[str, Sequence[Plot]]) -> str:
    """The whole file. plots: those of each section, by its name."""
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_text(f'{report.title}; {report.about}')}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{_text(report.title)}</h1>",
        f'<p class="about">{_text(report.about)}</p>',
        *_links(report.sections),
        *_cards(report.highlights),
    ]
    for section in report.sections:
        lines += _section(section, plots.get(section.name, ()))
    return "\n".join([*lines, "</main>", "</body>", "</html>"]) + "\n"


def _links(sections: Iterable[Section]) -> list[str]:
    links = [f'<a href="#{section.name}">{_text(section.title)}</a>' for section in sections]
    return ["<nav>", *links, "</nav>"]


def _cards(highlights: Iterable[Highlight]) -> list[str]:
    lines = ['<div class="cards">']
    for one in highlights:
        kind = "card" if one.good is None else "card good" if one.good else "card bad"
        texts = {"what": one.what, "value": one.value, "run": one.run, "detail": one.detail}
        spans = [f'<span class="{name}">{_text(text)}</span>' for name, text in texts.items()]
        lines += [f'<div class="{kind}">', *spans, "</div>"]
    return [*lines, "</div>"]


def _section(section: Section, plots: Sequence[Plot]) -> list[str]:
    """Its tables, its plots, then its folded tables."""
    shown = [line for table in section.tables if not table.folded for line in _table(table)]
    folded = [line for table in section.tables if table.folded for line in _table(table)]
    return [
        f'<section id="{section.name}">',
        f"<h2>{_text(section.title)}</h2>",
        *shown,
        *_plots(plots),
        *folded,
        "</section>",
    ]


def _plots(plots: Sequence[Plot]) -> list[str]:
    if not plots:
        return []
    lines = ['<div class="plots">']
    for plot in plots:
        caption = f"<figcaption><b>{_text(plot.title)}</b>{_text(plot.caption)}</figcaption>"
        drawn = plot.svg.replace("<svg", f'<svg role="img" aria-label="{_text(plot.title)}"', 1)
        lines += ['<figure><div class="panel">', caption, drawn, "</div></figure>"]
    return [*lines, "</div>"]


def _table(table: Table) -> list[str]:
    if table.folded:
        box, title = "details", f"<summary>{_text(table.title)}</summary>"
    else:
        box, title = "div", f"<h3>{_text(table.title)}</h3>"
    lines = [f'<{box} class="panel">', title]
    if table.rows:
        if len(table.headings) > FEW_COLUMNS:
            lines.append(f'<p class="hint">{HINT}</p>')
        lines += [
            f'<div class="scroll" role="region" aria-label="{_text(table.title)}" tabindex="0">',
            "<table>",
            f"<thead>{_row(table.headings, table.num_labels, 'th')}</thead>",
            "<tbody>",
            *(_row(row, table.num_labels, "td") for row in table.rows),
            "</tbody>",
            "</table>",
            "</div>",
        ]
    if table.note:
        lines.append(f'<p class="note">{_text(table.note)}</p>')
    return [*lines, f"</{box}>"]


def _row(cells: Sequence[str], num_labels: int, tag: str) -> str:
    kinds = [
        "number" if number >= num_labels else "word long" if len(cell) > LONG else "word"
        for number, cell in enumerate(cells)
    ]
    shown = [
        f'<{tag} class="{kind}">{_text(cell)}</{tag}>'
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    return f"<tr>{''.join(shown)}</tr>"


def _text(text: str) -> str:
    return escape(text, quote=True)
