"""Environments that have a gyrfalcon of their own: an installed copy, or another clone's source."""

import shutil
import venv
from pathlib import Path

# What an editable installation puts into an environment: a finder that comes before sys.path in every
# process.
FINDER = """
import importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "gyrfalcon":
            return importlib.util.spec_from_file_location(name, {file!r})
sys.meta_path.insert(0, Finder)
"""
SHOW_SOURCES = """
import subprocess, sys, gyrfalcon
print(gyrfalcon.__file__, flush=True)
subprocess.run([sys.executable, "-c", "import gyrfalcon; print(gyrfalcon.__file__)"], cwd="/")
"""


def environment_of(folder: Path, package: Path, editable: bool) -> Path:
    """A virtual environment with a gyrfalcon: a copy, or a clone's source; its command shows the file that
    it imports, and that of a process it starts.
    """
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    if editable:
        (packages / "_editable.py").write_text(FINDER.format(file=str(package / "__init__.py")))
        (packages / "_editable.pth").write_text("import _editable\n")
    else:
        shutil.copytree(package, packages / "gyrfalcon")
    command = folder / "bin/gyrfalcon"
    command.write_text(f"#!{folder}/bin/python\n{SHOW_SOURCES}")
    command.chmod(0o755)
    return packages
