"""ARCHITECTURE.md is true: the files, the direction of imports, the way of a decoded token."""

import ast
import inspect
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from types import CodeType, FrameType

import pytest

import gyrfalcon
from gyrfalcon import Engine, EngineConfig, SamplingParams

PACKAGE = Path(gyrfalcon.__file__).parent
PAGE = (PACKAGE.parent.parent / "ARCHITECTURE.md").read_text("utf-8")
LISTED = re.findall(
    r"^\| `([\w/]+\.py)` \| [^`|]*", PAGE.split("## The files")[1].split("## One")[0], re.M
)
MOST_FILES, MOST_LINES = 16, 440


def test_every_file_has_its_line() -> None:
    there = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.read_text().strip()
    }
    assert sorted(LISTED) == sorted(there)


def test_the_types_of_all_python_files_are_checked() -> None:
    root = PACKAGE.parent.parent
    checked = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["files"]
    folders = {path.parent.name for path in root.glob("*/*.py")} | {"src"}
    assert folders - {"build"} == set(checked)


@pytest.mark.parametrize("file", LISTED)
def test_a_file_imports_only_from_those_above_it(file: str) -> None:
    above = {_module(other) for other in LISTED[: LISTED.index(file)]}
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    imported = {
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _names(node)
    }
    assert imported <= above | {"gyrfalcon"}, imported - above


def _module(file: str) -> str:
    return ".".join(["gyrfalcon", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules of this package that an import statement reads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.startswith("gyrfalcon.")]
    module = node.module or ""
    if not module.startswith("gyrfalcon"):
        return []
    modules = {_module(file) for file in LISTED}
    inner = [
        f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in modules
    ]
    return inner or [module]


def decode_one_token() -> list[CodeType]:
    """The code of every function of ours that one decoding step enters, in the order of the first call."""
    entered: dict[CodeType, None] = {}

    def watch(frame: FrameType, event: str, arg: object) -> None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            entered[frame.f_code] = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYRFALCON_OPS", "reference")  # the definitions are what is read
        engine = Engine(EngineConfig(model="nestling", max_len=64))
    with engine:
        engine.add("The falcon", SamplingParams(max_new_tokens=8))
        engine.step()
        engine.step()
        sys.setprofile(watch)
        try:
            engine.step()
        finally:
            sys.setprofile(None)
    return [code for code in entered if "<" not in code.co_name]


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


def test_a_decoded_token_takes_the_way_on_the_page() -> None:
    way: dict[str, list[str]] = {}
    codes = decode_one_token()
    for code in codes:
        file = str(Path(code.co_filename).relative_to(PACKAGE))
        way.setdefault(file, []).append(code.co_qualname.replace(".<locals>", ""))
    total = sum(map(code_lines, codes))
    rows = [
        f"| `{file}` | {', '.join(f'`{name}`' for name in names)} |" for file, names in way.items()
    ]
    table = "\n".join(["| file | functions |", "|---|---|", *rows])
    assert table in PAGE, f"the table should be\n{table}"
    assert f"{len(way)} files, {len(codes)} functions, {total} lines" in PAGE, (
        len(way),
        len(codes),
        total,
    )
    assert len(way) <= MOST_FILES
    assert total <= MOST_LINES
