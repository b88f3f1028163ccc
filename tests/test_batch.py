"""A batch has for each token of its chunks, one after the other, what is written down here token by token."""

import random
from collections.abc import Sequence as Seq
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata, Batch
from gyrfalcon.request import Chunk, Request, SamplingParams, Sequence

FIELDS = [field.name for field in fields(Batch) if field.name != "of_rows"]
METADATA = [field.name for field in fields(AttentionMetadata)]


def random_sequence(own: random.Random, block_size: int, blocks: list[int]) -> Sequence:
    """A sequence with some output and blocks for its tokens, one more, and sometimes more than that."""
    prompt = tuple(own.choices(range(500), k=own.randint(1, 3 * block_size)))
    params = SamplingParams(
        max_new_tokens=own.choice([0, 40]), prompt_logprobs=own.choice([None, None, 1])
    )
    sequence = Sequence(Request(0, prompt, params, seed=0), own.choice([0, 1]), list(prompt), 99)
    sequence.tokens += own.choices(range(500), k=own.choice([0, 0, 1, block_size, 20]))
    for _ in range((len(sequence.tokens) + 1) // block_size + own.randint(1, 3)):
        sequence.blocks.append(blocks.pop())
    return sequence


def random_chunk(own: random.Random, sequence: Sequence) -> Chunk:
    """Tokens from anywhere in a sequence: all, one, some, or the one that is not known yet."""
    length = len(sequence.tokens)
    start = own.choice([0, length - 1, own.randrange(length)])
    stop = own.choice([length, own.randint(start + 1, length)])
    return (
        Chunk(sequence, start, stop) if own.random() < 0.9 else Chunk(sequence, length, length + 1)
    )


def defined(chunks: Seq[Chunk], block_size: int) -> dict[str, object]:
    """A batch's fields, as its docstrings have them."""
    columns: dict[str, list[int]] = {name: [] for name in FIELDS if name != "block_tables"}
    columns["starts"].append(0)
    longest = max(len(chunk.sequence.blocks) for chunk in chunks)
    for chunk in chunks:
        sequence, first = chunk.sequence, columns["starts"][-1]
        for position in range(chunk.start, chunk.stop):
            block = sequence.blocks[position // block_size]
            columns["positions"].append(position)
            columns["rope_lengths"].append(max(position + 1, sequence.prompt_len))
            columns["slots"].append(block * block_size + position % block_size)
        columns["token_ids"] += sequence.tokens[chunk.start : chunk.stop]
        columns["rows"] += [first + row for row in chunk.rows]
        columns["query_lens"].append(chunk.stop - chunk.start)
        columns["contexts"].append(chunk.stop)
        columns["starts"].append(first + chunk.stop - chunk.start)
    columns["context_lens"] = columns["contexts"]
    tables = [(chunk.sequence.blocks + [0] * longest)[:longest] for chunk in chunks]
    return {**columns, "block_tables": tables}


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("seed", range(5))
def test_every_number_of_a_batch_is_as_defined_token_by_token(
    seed: int, count: int, block_size: int
) -> None:
    own = random.Random(seed)
    blocks = own.sample(range(10_000), 5_000)
    chunks = [random_chunk(own, random_sequence(own, block_size, blocks)) for _ in range(count)]
    batch, expected = Batch.build(chunks, block_size), defined(chunks, block_size)
    check(batch, expected, FIELDS)
    num_rows = [len(chunk.rows) for chunk in chunks]
    assert (batch.of_rows is None) == (num_rows == expected["query_lens"])
    if batch.of_rows is not None:
        starts = [sum(num_rows[:place]) for place in range(len(chunks) + 1)]
        check(batch.of_rows, {**expected, "query_lens": num_rows, "starts": starts}, METADATA)


def check(got: AttentionMetadata, expected: dict[str, object], names: Seq[str]) -> None:
    for name in names:
        value = getattr(got, name)
        listed = value.tolist() if isinstance(value, Tensor) else list(value)
        assert listed == expected[name], name


def test_a_batch_has_whole_numbers_of_64_bits_in_runs_without_gaps() -> None:
    """Native kernels read them by their address."""
    sequence = Sequence(Request(0, (5, 6, 7), SamplingParams(), seed=0), 0, [5, 6, 7], 9)
    sequence.blocks = [3, 1]
    batch = Batch.build([Chunk(sequence, 0, 3), Chunk(sequence, 2, 3)], 2)
    tensors = [got for name in FIELDS if isinstance(got := getattr(batch, name), Tensor)]
    assert len(tensors) == len(FIELDS) - 2
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert all(tensor.is_contiguous() for tensor in tensors)
