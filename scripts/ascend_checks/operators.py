"""Which operators of torch_npu our code uses."""

import re
from pathlib import Path

HOME = Path(__file__).parents[2] / "src" / "gyrfalcon" / "ops" / "npu"

NAME = re.compile(r"(?<!device[./])\b_?npu_[a-z0-9_]+")  # but for modules of ours


def used_operators(folder: Path = HOME) -> set[str]:
    """Those that are named, in code or as a string."""
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*.py"))]
    return {name for text in texts for name in NAME.findall(text)}
