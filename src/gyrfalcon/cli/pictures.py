"""The option --plot of the commands that draw: what a file may be called, and that it can be drawn."""

from importlib.util import find_spec

from gyrfalcon.errors import PIP_INSTALL, UsageError

SUFFIXES = (".png", ".svg")


def check_picture(path: str) -> None:
    """UsageError for another kind of file, or where matplotlib is missing."""
    if not path.lower().endswith(SUFFIXES):
        raise UsageError("a file for --plot that ends in .png or .svg", path, "rename it")
    if find_spec("matplotlib") is None:
        do = f"{PIP_INSTALL} matplotlib, or leave --plot out"
        raise UsageError("matplotlib for --plot", "none installed", do)
