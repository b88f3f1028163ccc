"""Plants small faults in a module, one at a time, and tells which of them its own quick tests let pass.

    python tools/mutation_test.py                        every module of MODULES, at most 60 minutes
    python tools/mutation_test.py text/detokenizer.py --mutants 20   twenty mutants of one

A mutant is one edit of the syntax tree: a comparison with its bound moved or reversed, another
arithmetic or logical operator, a number one more, a flag flipped, a condition always true or never, a
statement left out, a result None. They are drawn with a seed, so a run can be repeated. Each is tested
in a fork of this process, which has imported torch and transformers once and nothing of gyrfalcon.
Survivors are printed with their line: each wants a test, or a reason why it changes nothing.
"""

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "gyrfalcon"
MODULES: dict[str, tuple[str, ...]] = {  # and the tests that are theirs
    "kv/blocks.py": ("engine/test_scheduler.py", "engine/test_scores.py"),
    "kv/pool.py": ("engine/test_engine.py",),
    "engine/scheduler.py": (
        "engine/test_scheduler.py",
        "engine/test_scores.py",
        "engine/test_simulation.py",
    ),
    "engine/prefix_cache.py": ("engine/test_scheduler.py", "engine/test_scores.py"),
    "engine/prompt_queue.py": ("engine/test_scheduler.py", "engine/test_simulation.py"),
    "engine/prefixes.py": ("engine/test_scheduler.py",),
    "engine/step_target.py": ("engine/test_step_target.py",),
    "engine/scores.py": ("engine/test_scores.py",),
    "engine/sampler.py": ("engine/test_sampler.py",),
    "text/detokenizer.py": ("text/test_text.py", "text/test_tokenizer.py", "text/test_end_ids.py"),
    "measure/precision/gate.py": ("measure/test_gate.py", "measure/test_read_back.py"),
}
SEED = 20261129
SLACK_SECONDS = 5  # beside three times what the tests take without a fault: then it is a hang
CAUGHT, SURVIVED, HUNG = "caught", "survived", "hung"

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
REMOVABLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Delete, ast.Continue, ast.Break, ast.Raise)
Edit = tuple[str, Callable[[], object]]  # its description, and the edit itself


@dataclass(frozen=True)
class Mutant:
    """One fault: the edit `number` of a module's source."""

    number: int
    line: int
    what: str


def mutants(source: str) -> list[Mutant]:
    """Every fault that can be planted in a source."""
    return [
        Mutant(number, line, what)
        for number, (line, what, _) in enumerate(_edits(ast.parse(source)))
    ]


def planted(source: str, mutant: Mutant) -> ast.Module:
    """The syntax tree with the fault in it."""
    tree = ast.parse(source)
    _, _, edit = list(_edits(tree))[mutant.number]
    edit()
    return ast.fix_missing_locations(tree)


def _edits(tree: ast.Module) -> Iterator[tuple[int, str, Callable[[], object]]]:
    """(line, description, edit) of every fault, in the order of the source. An edit is in place."""
    for node in _mutable(tree):
        for what, edit in (*_of_expression(node), *_of_branch(node), *_of_body(node)):
            yield getattr(node, "lineno", 0), what, edit


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything below it that takes part in the computation: no annotations, no
    messages.
    """
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc") or isinstance(
            node, ast.Import | ast.ImportFrom
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from _mutable(child)


def _of_expression(node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield (
                    f"{_word(operator)} → {other.__name__}",
                    partial(node.ops.__setitem__, place, other()),
                )
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        operation = OPERATORS[type(node.op)]
        yield f"{_word(node.op)} → {operation.__name__}", partial(setattr, node, "op", operation())
    elif isinstance(node, ast.BoolOp):
        logical = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{_word(node.op)} → {logical.__name__}", partial(setattr, node, "op", logical())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not x → x", partial(_drop_not, node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} → {value}", partial(setattr, node, "value", value)


def _of_branch(node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (False,) if isinstance(node, ast.While) else (True, False):
            yield (
                f"{type(node).__name__.lower()} → {value}",
                partial(setattr, node, "test", ast.Constant(value)),
            )
    elif isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            yield "filter left out", partial(node.ifs.__setitem__, place, ast.Constant(True))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return None", partial(setattr, node, "value", ast.Constant(None))


def _of_body(node: ast.AST) -> Iterator[Edit]:
    for name in ("body", "orelse", "finalbody"):
        body = getattr(node, name, None)
        if not isinstance(body, list):
            continue
        for place, statement in enumerate(body):
            if isinstance(statement, REMOVABLE) and not _is_text(statement):
                yield (
                    f"left out: {ast.unparse(statement).splitlines()[0][:60]}",
                    partial(body.__setitem__, place, ast.Pass()),
                )


def _drop_not(node: ast.UnaryOp) -> None:
    """`not x` as a truth value without the `not`."""
    node.op = ast.Not()
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _word(node: ast.AST) -> str:
    return type(node).__name__


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the package from a syntax tree; everything else as usual."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path, self.tree = path, tree
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        self.name = ".".join(parts)

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def start(module: str, tree: ast.Module) -> int:
    """Runs the module's tests on the tree in a fork; returns its process id. Exit code 0: all passed."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        sys.meta_path.insert(0, MutantFinder(PACKAGE / module, tree))
        import pytest

        tests = [str(REPOSITORY / "tests" / test) for test in MODULES[module]]
        options = ["-x", "-q", "-m", "not slow", "-n", "0", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, *tests]))
    finally:
        os._exit(code)


def outcome(pid: int, seconds: float) -> str:
    """Waits for a fork, at most this many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return SURVIVED if os.waitstatus_to_exitcode(status) == 0 else CAUGHT
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


def drawn(module: str, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants of a module, in the order of its source."""
    every = mutants((PACKAGE / module).read_text())
    some = random.Random(f"{seed} {module}").sample(every, min(count, len(every)))
    return sorted(some, key=lambda mutant: mutant.number)


def examine(module: str, count: int, seed: int, deadline: float) -> bool:
    """Tests the mutants of one module and prints the outcome; False when some survived."""
    source = (PACKAGE / module).read_text()
    begin = time.monotonic()
    if outcome(start(module, ast.parse(source)), seconds=600) != SURVIVED:
        raise SystemExit(f"the tests of {module} fail without a fault: mutate nothing that is red")
    limit = 3 * (time.monotonic() - begin) + SLACK_SECONDS
    chosen = drawn(module, count, seed)
    found: dict[str, list[Mutant]] = {CAUGHT: [], SURVIVED: [], HUNG: []}
    for mutant in chosen:
        if time.monotonic() > deadline:
            break
        fate = outcome(start(module, planted(source, mutant)), limit)
        found[fate].append(mutant)
        if fate == SURVIVED:
            print(f"{module}:{mutant.line}: {mutant.what}", flush=True)
    tested = sum(map(len, found.values()))
    print(
        f"{module}: {tested} of {len(mutants(source))} mutants, {len(found[CAUGHT])} caught, "
        f"{len(found[HUNG])} hung, {len(found[SURVIVED])} survived, "
        f"{time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return not found[SURVIVED] and tested == len(chosen)


def prepare() -> None:
    """Does once what every fork would otherwise do."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRITON_INTERPRET"] = "1"  # has to be there before triton is imported
    os.chdir(REPOSITORY)
    sys.path[:0] = [str(PACKAGE.parent), str(REPOSITORY / "tests")]
    for name in ("pytest", "torch", "transformers.models.falcon.modeling_falcon", "tokenizers"):
        importlib.import_module(name)
    assert not any(name.startswith("gyrfalcon") for name in sys.modules)


def main(words: Sequence[str]) -> int:
    """Examines the modules; 1 when mutants survived or time ran out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--mutants", type=int, default=200, help="of each module (default 200)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the draw (default {SEED})")
    parser.add_argument("--minutes", type=float, default=60, help="for all of it (default 60)")
    args = parser.parse_args(words)
    unknown = [module for module in args.modules if module not in MODULES]
    if unknown:
        parser.error(f"wanted modules out of {', '.join(MODULES)}, got {unknown[0]}")
    deadline = time.monotonic() + 60 * args.minutes
    prepare()
    sound = [
        examine(module, args.mutants, args.seed, deadline) for module in args.modules or MODULES
    ]
    return int(not all(sound))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
