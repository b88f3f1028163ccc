"""Ascend cards as devices: what is said where there are none, and what the emulated one may not be taken
for.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engines import make_engine, small
from npu_emulation import CARDS

from gyrfalcon.cli.main import main
from gyrfalcon.device import npu
from gyrfalcon.device.lookup import all_devices, kind_for, warn_once
from gyrfalcon.device.npu import BLOCK_SIZES, Npu, find_torch_npu
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.machine import examine

pytest_plugins = ["npu_fixtures"]

QUICK = ("--repeats", "1", "--in", "8", "--out", "2")


@pytest.fixture
def looked_for_anew() -> Iterator[None]:
    """What was found of torch_npu is forgotten, before and after."""
    find_torch_npu.cache_clear()
    warn_once.cache_clear()
    yield
    find_torch_npu.cache_clear()


def refused(patch: pytest.MonkeyPatch, folder: Path, code: str | None) -> str:
    """What --device npu says where torch_npu has this code; None: where there is none."""
    if code is not None:
        (folder / "torch_npu.py").write_text(code)
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "torch_npu", raising=False)
    with pytest.raises(UsageError) as caught:
        kind_for("npu")
    sys.modules.pop("torch_npu", None)
    assert [device.name for device in all_devices() if device.name == "npu"] == []
    return str(caught.value)


@pytest.mark.skipif(find_spec("torch_npu") is not None, reason="torch_npu is installed")
@pytest.mark.usefixtures("looked_for_anew")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, f"got no torch_npu; install the torch_npu that fits torch {torch.__version__}"),
        (
            "raise ImportError('libhccl.so: cannot open shared\\n object file')",
            "got a torch_npu that does not import: libhccl.so: cannot open shared object file; source",
        ),
        ("raise AttributeError('half of it')", "got a torch_npu that does not import: half of it"),
        (
            "from types import SimpleNamespace as S\nnpu = S(is_available=lambda: False)",
            "got torch_npu of no version and no card; see what npu-smi info says",
        ),
    ],
)
def test_a_machine_without_cards_says_in_one_line_what_is_missing(
    code: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(monkeypatch, tmp_path, code)
    assert line.startswith("wanted a Huawei Ascend device, ")
    assert message in line
    assert "\n" not in line


@pytest.mark.skipif(find_spec("torch_npu") is not None, reason="torch_npu is installed")
@pytest.mark.usefixtures("looked_for_anew")
def test_auto_passes_over_a_torch_npu_that_does_not_load_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert kind_for("auto").name != "npu"
    assert caplog.messages == []
    find_torch_npu.cache_clear()
    refused(monkeypatch, tmp_path, "raise ImportError('libhccl.so')")
    assert caplog.messages == []  # its error says it
    for _ in range(2):
        assert kind_for("auto").name != "npu"
    [line] = caplog.messages
    assert line.startswith("no Huawei Ascend device: a torch_npu that does not import: libhccl.so;")


@pytest.mark.skipif(find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_a_command_says_it_as_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "nestling", "--prompt", "a", "--device", "npu"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gyrfalcon: error: wanted a Huawei Ascend device, got no torch_npu; ")
    assert err.endswith("or use --device cpu\n")


def test_a_broken_torch_npu_does_not_keep_commands_from_running(tmp_path: Path) -> None:
    """As torch loads it by its entry point: gyrfalcon tells torch not to."""
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so')")
    information = tmp_path / "torch_npu-2.13.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n"
    )
    (information / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:load\n")
    code = (
        "import sys; from gyrfalcon.__main__ import main; sys.argv[1:] = ['inspect', 'nestling']; "
        "status = main(); assert 'torch_npu' not in sys.modules; sys.exit(status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")


def stub() -> SimpleNamespace:
    """A torch_npu whose cards do nothing but note what is asked of them."""
    asked: list[tuple[str, object]] = []
    cards = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        set_device=lambda index: asked.append(("set_device", index)),
        get_device_name=lambda device: "Ascend910B3",
        mem_get_info=lambda device: (60 << 30, 64 << 30),
        max_memory_allocated=lambda device: 7,
        synchronize=lambda device: asked.append(("synchronize", str(device))),
    )
    return SimpleNamespace(npu=cards, asked=asked)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two cards, on whose behalf torch's meta device stands: this torch knows no npu."""
    module = stub()
    monkeypatch.setattr(npu, "find_torch_npu", lambda: (module, ""))
    monkeypatch.setattr(Npu, "at", classmethod(lambda cls, index: cls(torch.device("meta", index))))
    return module


def test_each_rank_has_a_card_of_its_own(cards: SimpleNamespace) -> None:
    second = Npu.of_rank(1)
    assert cards.asked == [("set_device", 1)]
    assert second.model == "Ascend910B3"
    assert second.memory() == (60 << 30, 64 << 30)
    assert second.peak_memory([]) == [7]
    second.synchronise()
    assert cards.asked[1:] == [("synchronize", "meta:1")]
    with pytest.raises(UsageError, match="an Ascend card for every rank on this machine, got 2"):
        Npu.of_rank(2)


def test_auto_takes_a_card_before_all_others(cards: SimpleNamespace) -> None:
    assert kind_for("auto") is Npu


def test_cache_blocks_are_as_large_as_the_operators_read_them() -> None:
    found = [Npu.block_size(least) for least in (1, 16, 128, 129, 512)]
    assert found == [128, 128, 128, 256, 512]
    assert set(found) <= set(BLOCK_SIZES)
    with pytest.raises(UsageError, match=r"a block_size of at most 512 on .*, got 513; lower it"):
        Npu.block_size(513)


def test_an_engine_has_the_device_s_cache_blocks(
    tmp_path: Path, emulated: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path / "model")
    with make_engine(folder, device="npu", dtype="bf16", block_size=130) as engine:
        assert engine.config.block_size == engine._core.pool.block_size == 256
    with make_engine(folder, device="cpu") as engine:
        assert engine.config.block_size == 16


def test_eight_bit_floating_point_is_refused(tmp_path: Path, emulated: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="fp8, got an Ascend card; choose int8"):
        make_engine(small(tmp_path / "model"), device="npu", quant="fp8")


def test_its_operators_are_for_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", "npu")
    with pytest.raises(UsageError, match="the device for GYRFALCON_OPS=npu, got cpu; unset it"):
        make_engine(small(tmp_path / "model"))


@pytest.mark.usefixtures("emulated")
def test_doctor_names_its_operators_and_why() -> None:
    [card, *others] = [device for device in examine(Path.cwd()).devices if device.name != "cpu"]
    assert (card.operators, card.why) == ("npu", "torch_npu of no version's operators")
    assert len(others) == CARDS - 1


def test_what_is_emulated_says_so_has_no_speed_and_is_no_figure(
    tmp_path: Path, emulated: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, file = tmp_path / "speed.csv", tmp_path / "speed.json"
    options = ("nestling", "--device", "npu", "--dtype", "bf16")
    assert main(["speed", *options, "-f", str(table), *QUICK]) == 0
    said = capsys.readouterr()
    assert "1 rank on npu (emulated)" in said.err
    assert said.out.splitlines()[-1] == "1 case computed, none timed: npu (emulated) has no speed"
    assert "mean" not in said.out
    document = json.loads(file.read_text())
    assert document["settings"]["device"] == "npu (emulated)"
    [row] = document["result"]["rows"]
    assert row == {
        "batch": 1,
        "input_len": 8,
        "output_len": 2,
        "max_seq_len": row["max_seq_len"],
        "status": "emulated",
        "reason": "npu (emulated) has no speed",
    }
    assert document["result"]["limits"] is None
    assert (
        table.read_text().splitlines()[1].endswith("8, 2, emulated, emulated, emulated, emulated")
    )
    assert main(["report", str(file)]) == 2
    assert 'got "npu (emulated)"' in capsys.readouterr().err
    answer = tmp_path / "answer.json"
    words = ("--prompt", "The", "--max-new-tokens", "2", "--json", str(answer))
    assert main(["generate", *options, *words]) == 0
    assert json.loads(answer.read_text())["timing"] is None
    assert "tokens/s" not in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_of_a_command_are_emulated_each_in_its_process(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    options = ("nestling", "-w", "2", "--device", "npu", "--dtype", "bf16", "--json", str(file))
    run = subprocess.run(
        [sys.executable, "-m", "gyrfalcon", "speed", *options, *QUICK],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent / "site")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "2 ranks on npu (emulated), bf16" in run.stderr
    [row] = json.loads(file.read_text())["result"]["rows"]
    assert row["status"] == "emulated"
