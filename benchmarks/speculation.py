"""What speculative decoding by prompt lookup saves, where texts repeat their prompts much, a little or not.

    python benchmarks/speculation.py [MODEL ...] [--quant int8] [--counts 1,8] [--most 8] [--rounds 3]

The model computes everything, but its logits are replaced by ones that make it write a given text: so steps
cost what they cost, and texts are those of real tasks, whatever the weights are. A is model A of
benchmarks/cpu_peers.py, with random weights. Texts are in nestling's tokens, each after a prompt:

    copy      the prompt once more
    edit      a passage of a novel with one word in 25 replaced
    code      a file of this package with an identifier renamed
    ordinary  how the passage goes on

With and without drafts by turns, --rounds times; --json FILE keeps the rows. Printed are medians of tokens/s
from the first token on and of their ratio in each round, and of the last round tokens a step and the part of
the draft tokens that was accepted. Run nothing else beside it.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from cpu_peers_model import SHAPES, VOCAB_SIZE, make_checkpoint
from torch import Tensor

import gyrfalcon.engine.prompts
from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.checkpoint.tokenizer import load_tokenizer
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.measure.passage import PASSAGE
from gyrfalcon.measure.result import machine_facts

PROMPT_LEN, OUTPUT_LEN = 384, 256  # tokens at most
EVERY = 25  # words of an edited text, one of which is another


@dataclass(frozen=True, slots=True)
class Row:
    """One text, with and without drafts, this many sequences side by side."""

    model: str
    quant: str
    text: str
    count: int
    plain_tokens_per_second: float
    tokens_per_second: float
    ratio: float
    tokens_per_step: float
    accepted: float


def texts() -> Iterator[tuple[str, list[int], list[int]]]:
    """The name, prompt and output of each text."""
    tokenizer = load_tokenizer(open_checkpoint(resolve_model("nestling")))
    assert tokenizer is not None
    novel, draw = PASSAGE.read_text("utf-8"), random.Random(1)
    words = novel.split(" ")
    edited = [draw.choice(words) if draw.random() < 1 / EVERY else word for word in words]
    source = Path(gyrfalcon.engine.prompts.__file__).read_text("utf-8")
    renamed = re.sub(r"\bAsked\b", "Wanted", source)
    encode = tokenizer.encode
    for name, prompt, output in (
        ("copy", encode(novel), encode(novel)),
        ("edit", encode(novel), encode(" ".join(edited))),
        ("code", encode(source), encode(renamed)),
        ("ordinary", encode(novel), encode(novel)[PROMPT_LEN:]),
    ):
        yield name, prompt[:PROMPT_LEN], output[:OUTPUT_LEN]


def write(engine: Engine, text: Sequence[int]) -> None:
    """Has the model write this text, which begins with the prompt, at every place of every sequence."""
    run, ids = engine._core.model_runner, torch.tensor(text)

    def forced(batch: Batch, pool: KVPool) -> Tensor:
        logits = run(batch, pool)
        following = ids[(batch.positions[batch.rows] + 1).clamp(max=len(ids) - 1)]
        return torch.zeros_like(logits).scatter_(1, following[:, None], 1.0)

    engine._core.model_runner = forced


def timed(engine: Engine, prompt: list[int], output: list[int], count: int) -> tuple[float, int]:
    """Seconds from the first tokens on, and steps."""
    params = SamplingParams(max_new_tokens=len(output), ignore_eos=True)
    given: dict[int, list[int]] = {engine.add(prompt, params): [] for _ in range(count)}
    begin, num_steps = perf_counter(), 0
    while engine.has_work:
        deltas = engine.step()
        num_steps += 1
        for delta in deltas:
            assert delta.token is not None
            given[delta.request_id].append(delta.token.id)
        if not all(given.values()) or sum(map(len, given.values())) == count:
            begin, num_steps = perf_counter(), 0
    seconds = perf_counter() - begin
    assert all(ids == output for ids in given.values()), "not the text"
    return seconds, num_steps


def measured(name: str, folder: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one model."""
    settings = {"quant": options.quant, "max_len": PROMPT_LEN + OUTPUT_LEN}
    with (
        Engine(folder, **settings) as plain,
        Engine(folder, **settings, num_speculative_tokens=options.most) as drafting,
    ):
        engines, runs = (plain, drafting), [one._core.model_runner for one in (plain, drafting)]
        for text, prompt, output in texts():
            for count in options.counts:
                seconds: list[list[float]] = [[], []]
                for _ in range(options.rounds):
                    for own, engine, run in zip(seconds, engines, runs, strict=True):
                        engine._core.model_runner = run
                        write(engine, [*prompt, *output])
                        before = engine.stats()
                        took, num_steps = timed(engine, prompt, output, count)
                        own.append(took)
                after, num = engine.stats(), count * (len(output) - 1)
                drafted = after.num_draft_tokens - before.num_draft_tokens
                accepted = after.num_accepted_tokens - before.num_accepted_tokens
                ratios = [one / other for one, other in zip(*seconds, strict=True)]
                yield Row(
                    name,
                    options.quant,
                    text,
                    count,
                    num / statistics.median(seconds[0]),
                    num / statistics.median(seconds[1]),
                    statistics.median(ratios),
                    num / num_steps,
                    accepted / max(drafted, 1),
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each text and number of sequences."""
    options = _options(argv)
    rows: list[Row] = []
    print(f"{'text':9} {'sequences':>9} {'plain':>9} {'drafts':>9} {'ratio':>6} a step accepted")
    with tempfile.TemporaryDirectory() as made:
        for name in options.models:
            folder = name
            if name in SHAPES:
                folder = str(Path(made) / name)
                make_checkpoint(Path(folder), SHAPES[name].config(VOCAB_SIZE))
            print(f"{name}, {options.quant}; tokens/s")
            for row in measured(name, folder, options):
                rows.append(row)
                print(
                    f"{row.text:9} {row.count:9} {row.plain_tokens_per_second:9.1f} "
                    f"{row.tokens_per_second:9.1f} {row.ratio:6.2f} {row.tokens_per_step:6.2f} "
                    f"{row.accepted:8.2f}",
                    flush=True,
                )
    if options.json:
        result = {"machine": machine_facts(), "command": sys.argv, "rows": list(map(asdict, rows))}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["nestling"], metavar="MODEL")
    parser.add_argument("--quant", default="none")
    parser.add_argument(
        "--counts", type=lambda text: [int(one) for one in text.split(",")], default=[1]
    )
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
