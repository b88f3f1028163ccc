"""A step's numbers, counted pair by pair."""

import pytest

from gyrfalcon.plan.step_load import StepLoad, decoding_load, load_of


@pytest.mark.parametrize("chunks", [[range(0, 5)], [range(16, 48), range(3, 4)], [range(7, 7)]])
def test_a_chunk_attends_to_all_before_each_of_its_tokens(chunks: list[range]) -> None:
    load = load_of(chunks, contexts=[9, 1])
    pairs = [(token, key) for chunk in chunks for token in chunk for key in range(token + 1)]
    assert load.attended == len(pairs) + 9 + 1
    assert load.context_tokens == sum(chunk.stop for chunk in chunks) + 9 + 1
    assert load.tokens == sum(map(len, chunks)) + 2


def test_a_prompt_in_chunks_attends_to_as_much_as_in_one_go() -> None:
    whole = load_of([range(0, 700)])
    parts = [load_of([range(0, 512)]), load_of([range(512, 700)])]
    assert sum(part.attended for part in parts) == whole.attended == 700 * 701 // 2


def test_decoding_reads_each_key_once() -> None:
    assert decoding_load(3, 300) == load_of([], [100, 150, 50]) == StepLoad(0, 3, 300, 300)
