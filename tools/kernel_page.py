"""What the kernels take of each GPU, as a page for people."""

import math
from collections.abc import Callable, Sequence

from kernel_limits import CARDS, MARGIN
from kernel_usage import TARGETS, Result, Usage


def as_page(version: str, results: Sequence[Result]) -> str:
    """Two tables, with a row for each case and a column for each target."""
    needs = "; ".join(
        f"{target} {' / '.join(f'{card.least_weights(kind):.1f}' for kind in ('int4', 'int8', 'fp8'))}"
        f" weights, {card.least_bytes / 1e6:.1f} MB"
        for target, card in CARDS.items()
    )
    streaming = [
        one for one in results if one.usage is not None and one.usage.streaming is not None
    ]
    return "\n".join(
        [
            "# What the kernels take of a GPU",
            "",
            f"Written by `python tools/compile_kernels.py`, which needs no GPU, with Triton {version}:"
            " registers of a",
            "thread / KiB of shared memory of a block; · where the assembly has matrix instructions.",
            "No kernel spills registers to memory. Tests compare this page with what the compiler says",
            "whenever a kernel or a case has changed.",
            "",
            *_table(results, _resources),
            "",
            "## How linears read their weights",
            "",
            "Instructions a weight in the main loop / weights a clock and multiprocessor that its issue"
            " slots allow /",
            "MB of weights under way on the whole card. On AMD's cards only vector instructions count: the"
            " others have",
            "slots of their own. No main loop for NVIDIA's cards has a slow conversion.",
            f"Needed for the memory's bandwidth, times {MARGIN:g}, with int4 / int8 / fp8 weights of up to 16"
            " tokens, and",
            f"of up to 64: {needs}.",
            "† has less: no card of NVIDIA's, whose kernels fail the tool then; others have no assembly of",
            "their own yet.",
            "",
            *_table(streaming, _reading),
            "",
        ]
    )


def _table(results: Sequence[Result], cell: Callable[[Usage], str]) -> list[str]:
    found = {(one.name, one.target): one.usage for one in results}
    heads = " | ".join(f"{name} ({target.remark})" for name, target in TARGETS.items())
    rows = [f"| kernel | {heads} |", f"|---|{'---|' * len(TARGETS)}"]
    for name in dict.fromkeys(one.name for one in results):
        usages = (found.get((name, target)) for target in TARGETS)
        cells = ("–" if usage is None else cell(usage) for usage in usages)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _resources(usage: Usage) -> str:
    matrix = " ·" if usage.matrix_instructions else ""
    return f"{usage.registers} / {math.ceil(usage.shared_bytes / 1024)}{matrix}"


def _reading(usage: Usage) -> str:
    found = usage.streaming
    assert found is not None
    numbers = f"{found.instructions_per_weight:.2f} / {found.weights_per_clock:.1f}"
    behind = "" if found.keeps_up else " †"
    return f"{numbers} / {found.bytes_in_flight / 1e6:.1f}{behind}"
