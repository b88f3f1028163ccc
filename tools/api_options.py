"""Writes docs/api.md: every option of the server's requests, from its table. Run it after a change there."""

import json
from pathlib import Path

from gyrfalcon.serve.options import Endpoint, Kind, Option, options_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

HEAD = """# Options of requests

What `gyrfalcon serve` does with each option of a request; [serving.md](serving.md) has everything else.
This page is written by `python tools/api_options.py` from `serve/options.py`, the table that requests are
checked against. `/openapi.json` is made of it, too.

An option whose value is null counts as absent. An option that no table has is refused with 400, or with
`--unknown-options ignore` left out and named in the answer's header `x-ignored-options`.
"""
MEANINGS = {
    Kind.SERVED: "",
    Kind.AT_NO_EFFECT: "Accepted at its no-effect value alone; any other is refused with 400.",
    Kind.WITHOUT_EFFECT: "Accepted with any value, and without effect.",
    Kind.REFUSED: "Refused with 400.",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for endpoint in Endpoint:
        parts.append(f"## {endpoint.value}\n")
        for kind in Kind:
            rows = [one for one in options_of(endpoint).values() if one.kind is kind]
            if rows:
                parts.append(_table(kind, rows))
    return "\n".join(parts)


def _table(kind: Kind, options: list[Option]) -> str:
    meaning = f"{MEANINGS[kind]}\n\n" if MEANINGS[kind] else ""
    if kind is Kind.SERVED:
        head = "| option | value | default | what it does |\n|---|---|---|---|\n"
        rows = [
            f"| `{one.name}` | {one.value.words} | {_default(one)} | {one.text} |\n"
            for one in options
        ]
    elif kind is Kind.AT_NO_EFFECT:
        head = "| option | its value without effect | why |\n|---|---|---|\n"
        rows = [f"| `{one.name}` | {one.value.words} | {one.text} |\n" for one in options]
    else:
        head = "| option | why |\n|---|---|\n"
        rows = [f"| `{one.name}` | {one.text} |\n" for one in options]
    return meaning + head + "".join(rows)


def _default(option: Option) -> str:
    if option.required:
        return "required"
    if option.default_words:
        return option.default_words
    return "none" if option.default is None else json.dumps(option.default)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
