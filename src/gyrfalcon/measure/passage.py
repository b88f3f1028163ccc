"""Real text of any length: the beginning of Charlotte Brontë's Jane Eyre (1847, public domain)."""

from collections.abc import Sequence
from pathlib import Path

from gyrfalcon.errors import UsageError
from gyrfalcon.text.tokenizer import Tokenizer

PASSAGE = Path(__file__).with_name("passage.txt")


def passage_ids(tokenizer: Tokenizer) -> list[int]:
    """The passage in a model's tokens. UsageError for a tokenizer that produces none."""
    ids = tokenizer.encode(PASSAGE.read_text("utf-8"), add_special_tokens=False)
    if not ids:
        got = "one that makes no tokens of an English text"
        raise UsageError("the model's tokenizer", got, "check its tokenizer.json")
    return ids


def prompt_rows(ids: Sequence[int], length: int, rows: int) -> list[list[int]]:
    """Prompts of exactly `length` tokens, each from another position of the text, which repeats."""
    starts = (row * len(ids) // rows for row in range(rows))
    return [[ids[(start + place) % len(ids)] for place in range(length)] for start in starts]
