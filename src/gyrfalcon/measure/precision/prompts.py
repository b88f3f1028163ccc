"""The prompts of the precision gate: shipped lines in several scripts and a long passage, token ids
where a model has no tokenizer, or the lines of a file.
"""

import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import CheckpointError, PromptTooLong, UsageError
from gyrfalcon.files.text import contents, prompts_in
from gyrfalcon.measure.passage import passage_ids
from gyrfalcon.text.tokenizer import Tokenizer

LONG = 500  # tokens of the longest prompt
LENGTHS = (13, 60, LONG)  # for a model without a tokenizer


def default_prompts(engine: Engine) -> list[list[int]]:
    """The token ids of the shipped prompts, truncated to the longest that the engine takes."""
    tokenizer = _tokenizer(engine)
    if tokenizer is None:
        draw = random.Random(0)
        vocab = range(engine.model_config.vocab_size)
        prompts = [draw.choices(vocab, k=length) for length in LENGTHS]
    else:
        text = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8")
        prompts = [tokenizer.encode(line) for line in text.splitlines()]
        prompts.append(passage_ids(tokenizer)[:LONG])
    return [ids[: engine.max_len] for ids in prompts if ids]


def read_prompts(path: Path, engine: Engine) -> list[list[int]]:
    """One prompt per line of a file, as token ids; without a tokenizer the lines are ids."""
    lines = prompts_in(contents(path), str(path))
    tokenizer = _tokenizer(engine)
    if tokenizer is not None:
        prompts = [engine.encode(line) for line in lines]
    else:
        prompts = [_as_ids(line.split(), path) for line in lines]
    check_prompts(prompts, path, engine)
    return prompts


def check_prompts(prompts: Sequence[Sequence[int]], path: Path, engine: Engine) -> None:
    """UsageError for prompts of a file that the engine cannot take, before anything is computed."""
    if not all(prompts):
        raise UsageError(f"a token or more in every prompt of {path}", "none in one", "remove it")
    longest = max(map(len, prompts))
    if longest > engine.max_len:
        wanted = f"prompts of at most {engine.max_len} tokens in {path}"
        raise PromptTooLong(wanted, str(longest), engine.length_advice("shorten it"))
    vocab = range(engine.model_config.vocab_size)
    foreign = [token for ids in prompts for token in ids if token not in vocab]
    if foreign:
        wanted = f"token ids below {len(vocab)} in {path}"
        raise UsageError(wanted, str(foreign[0]), "use the model's own")


def _tokenizer(engine: Engine) -> Tokenizer | None:
    try:
        return engine.tokenizer
    except CheckpointError:
        return None


def _as_ids(words: Sequence[str], path: Path) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError:
        wanted = f"token ids in {path}, as the model has no tokenizer"
        raise UsageError(wanted, repr(" ".join(words)[:40]), "write numbers") from None
