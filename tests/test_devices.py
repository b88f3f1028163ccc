"""The device seam: what is special about a kind of device is said in its file under device/ alone."""

import ast
import contextlib
import re
from pathlib import Path

import pytest
import torch

import gyrfalcon
from gyrfalcon.device import HOST, KINDS
from gyrfalcon.device.lookup import all_devices, device_of, kind_for, kind_of
from gyrfalcon.errors import UsageError

PACKAGE = Path(gyrfalcon.__file__).parent
HOMES = ("device/", "ops/triton/", "ops/npu/", "native/")
NAMED = re.compile(r"cuda|nccl|hccl|(?<![a-z])npu(?![a-z])", re.IGNORECASE)  # no inputs


def device_words(path: Path) -> list[str]:
    """Code in a file that names a kind of accelerator or asks a torch device for its type; no comments
    or docstrings.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                node.value = ast.Constant(value=None)  # a docstring
            case ast.Constant(value=str(text)) if NAMED.search(text):
                found.append(text)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                found += [name] if NAMED.search(name) else []
            case ast.Import(names=names):
                found += [each.name for each in names if NAMED.search(each.name)]
            case ast.ImportFrom(module=str(name)) if NAMED.search(name):
                found.append(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found += [name] if NAMED.search(name) else []
            case ast.Attribute(attr=name):
                text = ast.unparse(node)
                kinds = re.search(r"(^|[._])device\.type$", text) or name == "is_cuda"
                found += [text] if NAMED.search(name) or kinds else []
            case _:
                pass
    return found


def test_only_a_device_s_own_file_knows_what_kind_it_is() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith(HOMES) and (words := device_words(path)):
            found[name] = words
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "if x.device.type == 'cpu': pass",
        "if device.type != HOST: pass",
        "torch.cuda.synchronize()",
        "connect(store, cuda=True)",
        "print('a CUDA device')",
        "def start(uses_cuda): pass",
        "def uses_cuda(): pass",
        "dist.ProcessGroupNCCL",
        "import torch_npu",
        "from torch_npu import npu_gelu",
        "from gyrfalcon.ops.npu import ops",
        "torch.npu.synchronize()",
        "attend(npu=True)",
        "dist.init_process_group('hccl')",
    ],
)
def test_code_that_knows_a_kind_of_device_is_found(code: str, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(code)
    assert device_words(file)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_the_list_has_its_file(name: str) -> None:
    assert kind_of(name).name == name
    assert kind_of(name).on_host == (name == HOST)
    if name in known_to_torch():
        assert device_of(torch.device(name, 0)).name == name


def known_to_torch() -> set[str]:
    """Kinds that this torch has devices of; others are known once their library is imported."""
    found = set()
    for name in KINDS:
        with contextlib.suppress(RuntimeError):
            found.add(torch.device(name, 0).type)
    return found


def test_auto_takes_an_accelerator_before_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(kind_of("cuda"), "count", lambda number=number: number)
        assert kind_for("auto").name == name
        assert kind_for("cpu").name == "cpu"
        assert list(map(str, all_devices())) == ["cpu", "cuda:0", "cuda:1"][: 1 + number]


def test_a_kind_this_machine_has_none_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_of("cuda"), "count", lambda: 0)
    wanted = "wanted a CUDA or ROCm device, got none; use device=cpu, or install a torch built for your card"
    with pytest.raises(UsageError, match=wanted):
        kind_for("cuda")


def test_more_ranks_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_of("cuda"), "count", lambda: 2)
    with pytest.raises(
        UsageError, match="a CUDA or ROCm device for every rank on this machine, got 2 of them"
    ):
        kind_of("cuda").of_rank(2)
