"""An environment for each version of torch_npu: its wheel, the torch it was built against, stand-ins of CANN.

All else, numpy, transformers and pytest among it, is borrowed from the project's own environment. torch
comes without what it depends on: on PyPI it is built for CUDA, whose libraries get stand-ins as well.
"""

import os
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from serve_checks.environment import Environment, clean_environ, environment
from serve_checks.report import NotRun

from ascend_checks.stand_ins import CARD, make_stand_ins

PINS = Path(__file__).with_name("pins")
ROOT = Path(__file__).parents[2]
VERSIONS = ("2.7.1", "2.13.0")  # of torch_npu: what most machines have, and the newest
MADE = ".stand-ins"
OPENED_LATER = ("libopapi.so",)  # by torch_npu 2.7.1, when it is imported


@dataclass(frozen=True, slots=True)
class AscendEnvironment:
    """An environment in which torch_npu can be imported, without a card."""

    made: Environment
    stand_ins: Path

    @property
    def python(self) -> str:
        return self.made.python

    @property
    def environ(self) -> dict[str, str]:
        """Variables under which its Python runs the source of this folder."""
        return (
            clean_environ()
            | source_path()
            | {
                "LD_LIBRARY_PATH": str(self.stand_ins),
                CARD: "1",
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # it is imported where it is asked for
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            }
        )

    def torch_alone(self, folder: Path) -> dict[str, str]:
        """Variables under which the project's Python has this torch, without its torch_npu: links to it
        in a new folder come first. It has no native kernels, which are built for the project's torch.
        """
        folder.mkdir()
        for path in _site_packages(self.made.folder).glob("*torch*"):
            if not path.name.startswith("torch_npu"):
                (folder / path.name).symlink_to(path)
        return {
            "PYTHONPATH": f"{folder}{os.pathsep}{source_path()['PYTHONPATH']}",
            "LD_LIBRARY_PATH": str(self.stand_ins),
            "GYRFALCON_NATIVE": "0",
        }


def source_path() -> dict[str, str]:
    """The variable by which a Python finds the source of this folder."""
    folders = ("src", "tests", "tools", "scripts", "benchmarks")
    return {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders)}


def ascend_environment(version: str, parent: Path) -> AscendEnvironment:
    """The environment for a version of torch_npu, made where it is not there yet. NotRun when a package
    or a compiler cannot be had.
    """
    _check_torch(version)
    made = environment(f"torch-npu-{version}", parent, borrows=True, pins_folder=PINS)
    stand_ins = made.folder / "stand-ins"
    stamp = stand_ins / MADE
    if not stamp.exists():
        print("  making stand-ins of the libraries that it lacks", flush=True)
        names = make_stand_ins(_packages(made.folder), stand_ins, OPENED_LATER)
        stamp.write_text("\n".join(names), "utf-8")
    return AscendEnvironment(made, stand_ins)


def _check_torch(version: str) -> None:
    """NotRun where torch would be borrowed and is another; a wheel's operators load beside its own alone."""
    own = f"torch=={version}" in (PINS / f"torch-npu-{version}.txt").read_text("utf-8")
    found = metadata.version("torch").partition("+")[0]
    if not own and found != version:
        raise NotRun(f"wanted torch {version} to borrow, got {found}; install by constraints.txt")


def _packages(folder: Path) -> list[Path]:
    """torch_npu, and torch: its own or the project's."""
    own = _site_packages(folder)
    homes = (own, Path(sysconfig.get_path("purelib")))
    torch = next(home / "torch" for home in homes if (home / "torch").is_dir())
    return [own / "torch_npu", torch]


def _site_packages(folder: Path) -> Path:
    [found] = (folder / "lib").glob("python*/site-packages")
    return found
