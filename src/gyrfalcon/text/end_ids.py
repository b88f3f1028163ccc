"""Where a text ends: the ids that end it, from every file of a model that names one, the strings
that end it, and the padding id.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.request import SamplingParams
from gyrfalcon.text.tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"
# The begin and end ids that Falcon's first releases state, and the tokens that they really are.
WRONG = {1: ">>ABSTRACT<<", 2: ">>INTRODUCTION<<"}
FALCON_END = 11
GPT2_END = 50256
# The embedding of rw-1b has a few rows more than GPT-2 has tokens.
GPT2_VOCAB_SIZES = range(50257, 50305)


@dataclass(frozen=True, slots=True)
class Ends:
    """ids: what ends a text, that which transformers names first before the others.
    fill: what stands in a row of generate_ids() after its end.
    stop_strings: what else ends a text, where there is a tokenizer.
    notes: where this is not what transformers does.
    """

    ids: tuple[int, ...]
    fill: int
    stop_strings: tuple[str, ...]
    notes: tuple[str, ...]

    def added_to(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the model's stop strings added, unless they ignore the end of text."""
        if params.ignore_eos or not self.stop_strings:
            return params
        return replace(params, stop=(*params.stop_strings, *self.stop_strings))


@dataclass(frozen=True, slots=True)
class _Stated:
    """What one file states."""

    file: str
    begin: object
    ends: tuple[int, ...]
    pad: int | None
    stop_strings: tuple[str, ...]

    @classmethod
    def of(cls, raw: Mapping[str, object], file: str) -> "_Stated":
        pad, ends = _ids(raw, "pad_token_id", file), _ids(raw, "eos_token_id", file)
        stops = _strings(raw, "stop_strings", file)
        return cls(file, raw.get("bos_token_id"), ends, pad[0] if pad else None, stops)


def _ids(raw: Mapping[str, object], name: str, file: str) -> tuple[int, ...]:
    listed = _listed(raw.get(name))
    if all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
        return tuple(listed)
    raise _refused("token ids", raw, name, file)


def _strings(raw: Mapping[str, object], name: str, file: str) -> tuple[str, ...]:
    listed = _listed(raw.get(name))
    with suppress(UnicodeEncodeError):  # half a surrogate pair
        if all(isinstance(one, str) and one.encode() for one in listed):
            return tuple(listed)
    raise _refused("texts", raw, name, file)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _refused(wanted: str, raw: Mapping[str, object], name: str, file: str) -> CheckpointError:
    got = f"{raw[name]!r:.60}"
    return CheckpointError(f"{wanted} for {name} in {file}", got, "correct the file")


def find_ends(
    folder: Path, config: Mapping[str, object], vocab_size: int, tokenizer: Tokenizer | None
) -> Ends:
    """The ends of text by generation_config.json in `folder`, by `config`, which is the model's
    config.json, and by the tokenizer. CheckpointError for ids that are not whole numbers and stop
    strings that are not texts.
    """
    path = folder / GENERATION_CONFIG
    stated = [_Stated.of(config, "config.json")]
    if path.is_file():
        stated.insert(0, _Stated.of(read_json(path), GENERATION_CONFIG))
    wrong = _wrong(stated, tokenizer)
    named = [end for one in stated for end in one.ends if end not in wrong]
    named += tokenizer.end_ids if tokenizer is not None else ()
    ids = tuple(dict.fromkeys(end for end in named if 0 <= end < vocab_size))
    if not ids and tokenizer is None:
        ids = (GPT2_END if vocab_size in GPT2_VOCAB_SIZES else FALCON_END,)
    fill = stated[0].pad if stated[0].pad is not None else next(iter(ids), FALCON_END)
    stop_strings = () if tokenizer is None else stated[0].stop_strings
    return Ends(ids, fill, stop_strings, tuple(_notes(ids, stated, tokenizer)))


def _wrong(stated: Sequence[_Stated], tokenizer: Tokenizer | None) -> set[int]:
    """The ids of the first releases' mistake, where they are wrong here."""
    if tokenizer is not None:
        return {i for i, text in WRONG.items() if tokenizer.token_bytes(i) == text.encode()}
    begins = any(one.begin == 1 for one in stated)
    return set(WRONG) if begins and any(2 in one.ends for one in stated) else set()


def _notes(
    ids: Sequence[int], stated: Sequence[_Stated], tokenizer: Tokenizer | None
) -> Iterable[str]:
    theirs = stated[0]
    more = [end for end in ids if end not in theirs.ends]
    if more:
        named = _described(theirs.ends, tokenizer) or "none"
        yield (
            f"a text ends at {_described(more, tokenizer)}, where transformers goes on:"
            f" {theirs.file} names {named}"
        )
    if theirs.stop_strings:
        named = " and ".join(map(repr, theirs.stop_strings))
        end = (
            "ends before" if tokenizer is not None else "does not end before, without a tokenizer,"
        )
        yield f"a text {end} the stop strings of {theirs.file}: {named}"
    if not ids:
        yield "no file names a token that ends a text: only lengths and stops end it"


def _described(ids: Iterable[int], tokenizer: Tokenizer | None) -> str:
    """Ids with their texts: "11 <|endoftext|> and 2 >>INTRODUCTION<<"."""
    texts = {i: tokenizer.decode([i], skip_special=False) if tokenizer else "" for i in ids}
    return " and ".join(f"{i} {text}".strip() for i, text in texts.items())
