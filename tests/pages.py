"""The pages that users read, and what they show commands to print."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


def blocks(page: str, kind: str) -> list[str]:
    """What stands in a page's fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def pattern_of(shown: str) -> str:
    """Output on a page as a regular expression; … stands for the rest of its line and any lines after it."""
    return re.escape(shown).replace("…\\\n", "(?:.*\n)*")


def masked(text: str) -> str:
    """Output without what the machine decides: numbers, the width of columns, lines of progress, and what
    `speed` adds where native kernels tell the instruction that they multiply by.
    """
    text = re.sub(r"^.* left\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" +", " ", re.sub(r"\d[\d.]*(e-\d+)?", "#", text))
    text = text.replace("prefill of float#\n", "prefill\n").replace("# % # % # %\n", "# % # %\n")
    with_instruction = r"of \S+'s peak, # TOP/s, and of float# multiply-adds, # TFLOP/s; all"
    return re.sub(with_instruction, "of the matrix peak, # TFLOP/s; both", text)
