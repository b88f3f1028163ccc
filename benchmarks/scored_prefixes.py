"""Prompt tokens that scored prompts of an exam compute, with and without cached prefixes: counts, no model.

    python benchmarks/scored_prefixes.py TOKENIZER -d MMLU [--subject astronomy] [--questions 40]

The scheduler is the engine's. Each question is a prompt with five worked examples, one after the other,
as `prompt_logprobs` asks for; with --letters it is four, one for each answer, as lm-evaluation-harness'
local-completions sends them. Distinct are tokens that differ in themselves or in what comes before.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from gyrfalcon import SamplingParams
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.measure.mmlu.exam import LETTERS, read_exam
from gyrfalcon.measure.mmlu.prompts import LM_EVAL, prompt_text
from gyrfalcon.request import Request, Token
from gyrfalcon.text.tokenizer import Tokenizer

LIMITS = StepLimits(max_len=2048, max_batch_tokens=512, max_sequences=64)
NUM_CACHED = 65_536  # tokens that the cache holds
PARAMS = SamplingParams(max_new_tokens=1, prompt_logprobs=1)


def main() -> None:
    """Counts and prints."""
    options = parse_options()
    prompts = list(read_prompts(options, LETTERS if options.letters else ""))
    distinct, lengths = num_distinct(prompts), sum(map(len, prompts))
    print(f"{len(prompts)} prompts, {lengths:,} tokens, {distinct:,} of them distinct")
    for block_size in (16, 8, 4, 1):
        num = num_computed(prompts, block_size, reuse=True)
        print(
            f"blocks of {block_size:2}: {num:,} computed, {num / distinct:.3f} × the distinct ones"
        )
    num = num_computed(prompts, 16, reuse=False)
    print(f"without reuse: {num:,} computed, {num / distinct:.3f} × the distinct ones")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "tokenizer", type=Path, metavar="TOKENIZER", help="a folder with a tokenizer"
    )
    parser.add_argument("-d", "--data", type=Path, required=True, metavar="MMLU")
    parser.add_argument("--subject", default="astronomy")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--letters", action="store_true", help="four prompts a question")
    return parser.parse_args()


def read_prompts(options: argparse.Namespace, letters: str = "") -> Iterator[tuple[int, ...]]:
    """The prompts as token ids, each with its own answer or these `letters`."""
    tokenizer = Tokenizer.load(options.tokenizer)
    [subject] = read_exam(options.data, "test", [options.subject])
    for question in subject.questions[: options.questions]:
        text = prompt_text(LM_EVAL, subject, question, 5)
        for letter in letters or question.answer:
            yield tuple(tokenizer.encode(f"{text} {letter}"))


def num_distinct(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that any engine has to compute at least once."""
    seen: set[int] = set()
    for ids in prompts:
        seen.update(accumulate(ids, lambda before, token: hash((before, token))))
    return len(seen)


def num_computed(prompts: Sequence[tuple[int, ...]], block_size: int, reuse: bool) -> int:
    """Tokens that our scheduler has computed for the prompts, one after the other."""
    allocator = BlockAllocator(NUM_CACHED // block_size, block_size, reuse)
    scheduler, computed = Scheduler(allocator, LIMITS), 0
    for number, ids in enumerate(prompts):
        scheduler.add(Request(number, ids, PARAMS, seed=0))
        while scheduler.has_work:
            chunks = scheduler.next_chunks(LIMITS.max_batch_tokens)
            computed += sum(chunk.stop - chunk.start for chunk in chunks)
            scheduler.commit(chunks, [Token(0) if chunk.samples else None for chunk in chunks])
    return computed


if __name__ == "__main__":
    main()
