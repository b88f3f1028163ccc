"""Python reads this first in processes that tests start with this folder in PYTHONPATH: there `--device npu`
is the emulated device, in every rank. Nothing is imported before gyrfalcon asks for the device.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = "gyrfalcon.device.npu"
TESTS = Path(__file__).parents[1]


class Emulating(Loader):
    """Loads a module as it is, then has it emulated."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        sys.path.append(str(TESTS))
        from npu_emulation import emulate_for_good

        emulate_for_good()


class Finder(MetaPathFinder):
    """Finds that one module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == HOME else None
        if spec is None or spec.loader is None:
            return None
        spec.loader = Emulating(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
