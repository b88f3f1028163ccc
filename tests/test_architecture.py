"""ARCHITECTURE.md is true: the packages, what they import, the way of a decoded token."""

import ast
import re
from pathlib import Path

import decoded_token
import pytest

import gyrfalcon

PACKAGE = Path(gyrfalcon.__file__).parent
PAGE = (PACKAGE.parent.parent / "ARCHITECTURE.md").read_text("utf-8")
ROWS = re.findall(
    r"^\| `([\w/.]+)` \| ([^|]*) \| ([^|]*)\|$", PAGE.split("## The packages")[1], re.M
)
IMPORTS = {
    name.removesuffix(".py").removesuffix("/"): {
        word for word in imports.strip().split(", ") if word
    }
    for name, _, imports in ROWS
    if name not in decoded_token.OPS_OF_PATH
}
# Half of what the reference path once took, 14 files and 350 lines, would be golf; twice is too much.
MOST_FILES, MOST_LINES = 16, 500


def package_of(module: str) -> str:
    """The first part of a module's name below gyrfalcon."""
    return module.removeprefix("gyrfalcon").lstrip(".").split(".")[0]


def imported(path: Path) -> set[str]:
    """The packages that a file imports from, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("gyrfalcon.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gyrfalcon"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {package_of(module) for module in found}


def files_of(package: str) -> list[Path]:
    """Its files that are not empty."""
    folder = PACKAGE / package
    files = folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{package}.py"]
    return [file for file in files if file.read_text("utf-8").strip()]


def test_every_package_has_its_row() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {"__init__", "__main__", "__pycache__", "py"} == set(IMPORTS)


@pytest.mark.parametrize("package", IMPORTS)
def test_a_package_imports_what_its_row_says_from_those_above(package: str) -> None:
    names = list(IMPORTS)
    assert IMPORTS[package] <= set(names[: names.index(package)])
    used = {name for file in files_of(package) for name in imported(file)}
    assert used - {package, "__version__"} == IMPORTS[package]


@pytest.mark.parametrize("package", [name for name in IMPORTS if (PACKAGE / name).is_dir()])
def test_a_package_has_no_cycle_of_imports(package: str) -> None:
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in files_of(package)
    }
    left = {name: own_imports(file) & set(files) - {name} for name, file in files.items()}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left


def own_imports(path: Path) -> set[str]:
    """Modules below gyrfalcon that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gyrfalcon."):
            module = str(node.module).removeprefix("gyrfalcon.")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", [name for name in IMPORTS if (PACKAGE / name).is_dir()])
def test_a_package_s_row_names_each_of_its_files(package: str) -> None:
    row = next(text for name, text, _ in ROWS if name == f"{package}/")
    listed = {name for name in re.findall(r"`([\w/.]+)`", row)}
    if package == "cli":
        return
    folder = PACKAGE / package
    there = {file.stem for file in folder.glob("*.py") if file.read_text("utf-8").strip()}
    there |= {f"{entry.name}/" for entry in folder.iterdir() if (entry / "__init__.py").exists()}
    assert there - {"__init__"} <= listed


@pytest.mark.parametrize("path", decoded_token.OPS_OF_PATH)
def test_a_decoded_token_takes_the_way_on_the_page(path: str) -> None:
    if not decoded_token.can_trace(path):
        pytest.skip("this machine cannot take it")
    table = decoded_token.trace(path).table()
    assert table == decoded_token.on_page(path), "run python tools/decoded_token.py"


def test_the_reference_path_stays_short_enough_to_read() -> None:
    trace = decoded_token.trace("reference")
    assert len(trace.by_file) <= MOST_FILES
    assert trace.num_lines <= MOST_LINES
