"""The package uses no name of torch that the oldest torch it asks for may lack."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch_api
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]


def oldest_torch() -> Version:
    """The lower bound of pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    [wanted] = [one for one in map(Requirement, project["dependencies"]) if one.name == "torch"]
    [bound] = [one.version for one in wanted.specifier if one.operator == ">="]
    return Version(bound)


def found(name: str) -> object:
    """What torch has under a name; a module comes before a function of the same name."""
    thing: object = torch
    parts = name.split(".")
    for count, part in enumerate(parts[1:], 2):
        thing = sys.modules.get(".".join(parts[:count])) or getattr(thing, part)
    return thing


def test_the_list_has_every_name_of_torch_in_the_package_and_no_other() -> None:
    used = torch_api.used(REPOSITORY / "src")
    new = {name: files for name, files in used.items() if name not in torch_api.APPEARED}
    assert new == {}, "look up when each appeared, and add it to tools/torch_api.py"
    assert set(torch_api.APPEARED) - set(used) == set()


def test_no_name_is_newer_than_the_oldest_torch_that_we_ask_for() -> None:
    bound = oldest_torch()
    newer = {name: since for name, since in torch_api.APPEARED.items() if Version(since) > bound}
    assert newer == {}, "raise the bound in pyproject.toml, or do without"


def test_this_torch_has_every_name() -> None:
    for name in torch_api.APPEARED:
        if "NCCL" not in name or torch.distributed.is_nccl_available():
            found(name)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\nx = torch.cuda.Event()", {"torch.cuda.Event"}),
        ("import torch.nn.functional as F\nF.silu(x)[0].y", {"torch.nn.functional.silu"}),
        ("import torch.distributed as dist\nx: dist.Store", {"torch.distributed.Store"}),
        ("import torch.cuda\ntorch.cuda.stream(1)", {"torch.cuda.stream"}),
        ("from torch.nn import functional\nfunctional.pad(x)", {"torch.nn.functional.pad"}),
        ("from torch import Tensor as T\nx: list[T]", {"torch.Tensor"}),
        ("def f():\n    from torch import nan\n    return nan", {"torch.nan"}),
        ("import torchrun\nx.torch.y, torchrun.z", set()),
    ],
)
def test_names_are_written_out_however_they_are_imported(source: str, names: set[str]) -> None:
    assert torch_api.names_in(source) == names
