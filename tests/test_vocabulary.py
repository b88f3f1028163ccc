"""Words that were replaced stay replaced: CONTRIBUTING.md has the glossary of those in use."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = {".py", ".md", ".h", ".cpp", ".inl", ".css"}

# Old word → the field's own. Names are matched as whole words, in the case given.
NAMES = {
    "add_norms": "add_layer_norms",
    "BlockParts": "BlockWeights",
    "Place": "RankInfo, TensorLocation",
    "PlacedSource": "MultiFileSource",
    "Replica": "EngineCore",
    "lookahead": "overlap",
    "Lookahead": "Overlap",
    "_Flight": "_InFlight",
    "_settle": "_commit",
    "take_kept": "pop_prompt_logits",
    "obey": "handle",
    "_obey": "_handle",
    "_Way": "SamplingMode",
    "_chance": "_uniform_draw",
    "likeliest": "top_k, argmax, greedy",
    "run_quant": "effective_quant",
    "run_dtype": "effective_dtype",
    "Sockets": "Backend",
    "open_sockets": "open_backend",
    "Piece": "Delta, Part",
    "Rounding": "Quantisation",
    "TurnedTokens": "TransposedTokens",
    "RoundedToken": "QuantisedToken",
    "ShortPanel": "Int16Tile",
    "PARTED": "DEINTERLEAVED",
    "Golden": "PublishedFigures",
    "golden": "published",  # not the hidden option --golden
    "golden_tokens": "published_tokens",
    "peer_logits": "reference_logits",
    "PEER_FACTOR": "TRANSFORMERS_FACTOR",
    "ChatForm": "ChatTemplate",
    "read_form": "read_template",
    "take_up": "resume",
    "told_each": "print_each",
    "int4_packed": "pack_int4",
    "layout_of": "deployment_of",
    "_half_read": "_prefilling",
    "_read_prompts": "_prefill",
}

ALLOWED = {("src/gyrfalcon/measure/precision/result.py", "golden")}  # the key of earlier results

# Parts of sentences, in any case and across line ends.
PHRASES = {
    "mend it": "fix it",
    "mend the": "correct the",
    "what is no number": "NaN",
    "ranks say to each other": "collectives",
    "returns what it gave": "returns one output per sequence",
    "gives up what is left": "cancels",
    "not computed yet": "deferred",
    "rounding by a text": "calibrated quantisation (GPTQ)",
    "to round by": "to calibrate on",
    "calibrate by": "calibrate on",
    "to round to": "to quantise to",
    "round weights": "quantise weights",
    "rounded weights": "quantised weights",
    "rounded matri": "quantised matrix",
    "matrices are rounded": "matrices are quantised",
    "matrices rounded": "matrices quantised",
    "weights rounded": "weights quantised",
    "is taken up": "resumes",
    "taken up again": "resumed",
    "rarer to repeat": "discourages tokens that already occurred",
    "of every token put out": "of each generated token",
    "cut a cut": "re-shard a cut",
    "puts questions to": "evaluates",
    "put side by side on every rank": "all-gathered",
    "processors know AVX": "CPU kernels target AVX",
    "proven, not hoped": "tested against transformers",
    "golden figures": "published figures",
    "taken back on": "dequantised on",
    "what it is told": "its arguments",
    "half read": "partially prefilled",
    "prompt is read": "prompt is prefilled",
    "prompts are read": "prompts are prefilled",
    "rounds the matrices": "quantises the matrices",
    "over backend": "through the backend",
}


def files() -> list[Path]:
    """The texts of src/, tools/ and docs/ and the README; docs/log.md is history."""
    found = [ROOT / "README.md"]
    for folder in ("src", "tools", "docs"):
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    return [path for path in found if path != ROOT / "docs" / "log.md"]


def found_in(texts: dict[str, str]) -> list[str]:
    """Every old word, with its file and line and the word in use."""
    names = {rf"(?<![\w-]){re.escape(old)}(?!\w)": new for old, new in NAMES.items()}
    phrases = {
        rf"(?i:\b{old})".replace(" ", r"[\s/#*]+"): new  # the marks of a comment's next line
        for old, new in PHRASES.items()
    }
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; say {new}"
        for name, text in texts.items()
        for pattern, new in (names | phrases).items()
        for match in re.finditer(pattern, text)
        if (name, match[0]) not in ALLOWED
    ]


def test_replaced_words_do_not_come_back() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in files()}
    assert len(texts) > 100
    assert found_in(texts) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = run_quant(checkpoint)", True),
        ("x = dry_run_quantised(checkpoint)", False),
        ("# Mend\n# the option", True),
        ("They amend it.", False),
        ("golden\n    figures", True),
        ("--golden stays as a hidden alias", False),
    ],
)
def test_a_word_is_found_as_a_whole_and_a_phrase_across_lines(text: str, found: bool) -> None:
    assert bool(found_in({"a file": text})) == found
