"""Traces one decoding step of nestling and writes the tables of ARCHITECTURE.md's last section.

    python tools/decoded_token.py        writes every table that can be traced on this machine

Three paths: `reference`, plain torch; `native`, what a CPU takes by default; `accelerator`, Triton's
kernels, padded batches and overlapped steps, interpreted on the CPU (without a graph's capture).
"""

import ast
import contextlib
import ctypes
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType

import gyrfalcon
from gyrfalcon import Engine, EngineConfig, SamplingParams

PACKAGE = Path(gyrfalcon.__file__).parent
PAGE = PACKAGE.parent.parent / "ARCHITECTURE.md"
OPS_OF_PATH = {"reference": "reference", "native": "native", "accelerator": "triton"}
INTERPRETER = "TRITON_INTERPRET"
NATIVE_ROW = "native/*.cpp"


@dataclass(frozen=True)
class Trace:
    """The functions that a step entered, in order of the first call."""

    functions: Sequence[CodeType]
    native_calls: Sequence[str]  # functions of the C++ library, which the profiler cannot look into

    @property
    def by_file(self) -> dict[str, list[str]]:
        """The names of the functions of each file."""
        files: dict[str, list[str]] = {}
        for code in self.functions:
            file = str(Path(code.co_filename).relative_to(PACKAGE))
            files.setdefault(file, []).append(code.co_qualname.replace(".<locals>", ""))
        if self.native_calls:
            files[NATIVE_ROW] = list(self.native_calls)
        return files

    @property
    def num_lines(self) -> int:
        """Lines of Python without docstrings and blank lines."""
        return sum(map(code_lines, self.functions))

    def table(self) -> str:
        """What ARCHITECTURE.md shows."""
        rows = [
            f"| `{file}` | {', '.join(f'`{name}`' for name in names)} |"
            for file, names in self.by_file.items()
        ]
        num_python = len(self.by_file) - bool(self.native_calls)
        sizes = f"{num_python} files, {len(self.functions)} functions, {self.num_lines} lines"
        return "\n".join([f"{sizes}:", "", "| file | functions |", "|---|---|", *rows])


def can_trace(path: str) -> bool:
    """Whether this machine can run the path."""
    from gyrfalcon.native.library import library

    if path == "native":
        return library() is not None
    return path == "reference" or find_spec("triton") is not None


def trace(path: str) -> Trace:
    """The trace of one decoding step."""
    with (
        _environment(GYRFALCON_OPS=OPS_OF_PATH[path], **{INTERPRETER: "1"}),
        _native_calls(path) as native_calls,
        Engine(EngineConfig(model="nestling", max_len=64)) as engine,
    ):
        if path == "accelerator":
            _take_steps_of_an_accelerator(engine)
        return Trace(_entered(engine, native_calls), native_calls)


def _entered(engine: Engine, native_calls: list[str]) -> list[CodeType]:
    entered: dict[CodeType, None] = {}  # everybody's: Triton's interpreter makes millions of calls

    def watch(frame: FrameType, event: str, arg: object) -> None:
        entered[frame.f_code] = None

    engine.add([30], SamplingParams(max_new_tokens=8))
    for _ in range(2):  # the prompt; what a first call alone does
        engine.step()
    native_calls.clear()
    sys.setprofile(watch)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    return [
        code
        for code in entered
        if Path(code.co_filename).is_relative_to(PACKAGE) and not code.co_name.startswith("<")
    ]


def _take_steps_of_an_accelerator(engine: Engine) -> None:
    """Padded batches and overlapped steps, as engine/build.py has them on a GPU. One block says as much as
    all, and the interpreter is slow.
    """
    from gyrfalcon.engine import sampler
    from gyrfalcon.engine.graphs import Graphs
    from gyrfalcon.engine.overlap import Overlap
    from gyrfalcon.model.falcon import BlockLoop, Falcon

    core = engine._core
    assert isinstance(core.model_runner, Falcon)
    model = replace(core.model_runner, run_blocks=BlockLoop(core.model_runner.blocks[:1]))
    del core.pool.layers[1:]
    choose = partial(sampler.greedy, vocabulary=core.vocabulary)
    core.model_runner = Graphs(model, choose, engine.max_len, core.device)
    engine._take_step = Overlap(core).step


@contextlib.contextmanager
def _native_calls(path: str) -> Iterator[list[str]]:
    """Records calls of the library's functions, in order of the first call."""
    calls: list[str] = []
    if path != "native":
        yield calls
        return
    from gyrfalcon.ops import native

    class Watched:
        """The library, each of whose functions notes its name."""

        def __getattr__(self, name: str) -> Callable[..., object]:
            function = getattr(library, name)

            def called(*arguments: object) -> object:
                if name not in calls:
                    calls.append(name)
                return function(*arguments)

            return called

    library: ctypes.CDLL = native.LIBRARY
    native.LIBRARY = Watched()  # type: ignore[assignment]
    try:
        yield calls
    finally:
        native.LIBRARY = library


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def code_lines(code: CodeType) -> int:
    """Lines of a function without its docstring and blank lines."""
    source = textwrap.dedent(inspect.getsource(code))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    docstring = ast.get_docstring(function, clean=False) or ""
    written = sum(bool(line.strip()) for line in source.splitlines())
    described = sum(bool(line.strip()) for line in docstring.splitlines())
    closing = docstring.endswith(" ")  # the closing quotes stand on a line of their own
    return written - described - closing


def on_page(path: str) -> str:
    """The table that the page has for a path."""
    return _section(path).search(PAGE.read_text("utf-8"))[2]  # type: ignore[index]


def _section(path: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- trace: {path} -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Writes the tables."""
    text = PAGE.read_text("utf-8")
    for path in OPS_OF_PATH:
        if can_trace(path):
            begin, end = _section(path).search(text).span(2)  # type: ignore[union-attr]
            text = text[:begin] + trace(path).table() + text[end:]
        else:
            print(f"{path}: left as it was, this machine cannot take it", file=sys.stderr)
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    os.environ.setdefault(INTERPRETER, "1")  # read when triton is imported
    main()
