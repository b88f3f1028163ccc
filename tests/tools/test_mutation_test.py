"""The mutation tester plants what it says, each fault alone."""

import ast

import mutation_test

SOURCE = """
def largest(values: list[int], limit: int = 3) -> int | None:
    \"\"\"Not above the limit.\"\"\"
    best = None
    for value in values:
        if value <= limit and (best is None or not value < best):
            best = value
    if limit < 0:
        raise ValueError(f"{limit + 1} is wrong")
    return best
"""


def test_every_mutant_is_another_program() -> None:
    texts = {
        ast.unparse(mutation_test.planted(SOURCE, mutant))
        for mutant in mutation_test.mutants(SOURCE)
    }
    assert len(texts) == len(mutation_test.mutants(SOURCE))
    assert ast.unparse(ast.parse(SOURCE)) not in texts


def test_conditions_numbers_statements_and_results_are_mutated_and_messages_are_not() -> None:
    said = {(mutant.line, mutant.what) for mutant in mutation_test.mutants(SOURCE)}
    assert {
        (2, "3 → 4"),
        (6, "LtE → Lt"),
        (6, "Or → And"),
        (6, "not x → x"),
        (6, "left out: best = value"),
        (8, "if → False"),
        (8, "Lt → LtE"),
        (10, "return None"),
    } <= said
    assert not any(line == 9 and "→" in what for line, what in said)


def test_a_drawn_sample_is_the_same_for_the_same_seed() -> None:
    first, again, other = (mutation_test.drawn("kv/blocks.py", 10, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
