"""A digest of all that Triton's compiler is given: while it stays the same, so does what comes out.

It covers the kernels' own source without comments, and the cases; not the host code around them.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from kernel_cases import Case

KERNELS = Path(__file__).resolve().parents[1] / "src" / "gyrfalcon" / "ops" / "triton"
SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)


def digest_of(
    version: str, targets: Iterable[object], cases: Iterable[Case], folder: Path = KERNELS
) -> str:
    """The same for equal kernels in `folder`, cases, targets and version of Triton."""
    parts = [version, *map(repr, targets), *map(_given, cases)]
    for path in sorted(folder.glob("*.py")):
        parts += kernels_in(path.read_text("utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def kernels_in(source: str) -> list[str]:
    """The functions of a file that Triton compiles, decorators included, without comments and docstring."""
    lines = source.splitlines(keepends=True)
    return [
        "\n".join(
            _tokens("".join(lines[function.decorator_list[0].lineno - 1 : function.end_lineno]))
        )
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(one) for one in function.decorator_list)
    ]


def _tokens(source: str) -> Iterator[str]:
    """Each token with its kind; a text that is a statement of its own is a docstring."""
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        begins = before in (tokenize.NEWLINE, tokenize.INDENT)
        if token.type in SKIPPED or (token.type == tokenize.STRING and begins):
            continue
        if token.type == tokenize.NEWLINE and begins:  # behind a docstring
            continue
        before = token.type
        kind = tokenize.tok_name[token.type]
        yield kind if token.type == tokenize.NEWLINE else f"{kind} {token.string}"


def _given(case: Case) -> str:
    """What a case hands to the compiler, the same in every process."""
    kernel = f"{case.kernel.fn.__module__}.{case.kernel.fn.__name__}"
    given = (case.signature, sorted(case.constants.items()), case.warps, case.stages, case.stream)
    return repr((case.name, kernel, *given, sorted(case.targets), sorted(case.aligned)))
