"""scripts/ascend-check: its exit codes, and how stand-ins of libraries are made."""

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ascend_checks import stand_ins
from ascend_checks.__main__ import BUILD, main
from ascend_checks.checks import CHECKS, WAYS, Check, Context
from ascend_checks.environments import PINS, VERSIONS, ascend_environment
from ascend_checks.operators import used_operators
from npu_gate import STEPS
from serve_checks.report import NotRun, Report

COMPILER = pytest.mark.skipif(
    not all(map(shutil.which, ("cc", "nm", "readelf"))), reason="no C compiler with binutils"
)
CARD = """
extern int card_count(unsigned *n);
extern long card_table[4];
extern int aclrtGetDeviceCount(unsigned *n);
unsigned found(void) { unsigned n = 7; return aclrtGetDeviceCount(&n) + n; }
int answer(void) { return card_count(0); }
"""


def _holds(context: Context, report: Report) -> None:
    report.claim("one", context.end > 0, "seen")


def _fails(context: Context, report: Report) -> None:
    report.claim("one", False)


def _lacks(context: Context, report: Report) -> None:
    raise NotRun("packages cannot be had: no such package")


def _is_endless(context: Context, report: Report) -> None:
    context.call(["sleep", "600"], {})


@pytest.mark.parametrize(
    ("run", "code", "verdict"),
    [(_holds, 0, "held"), (_fails, 1, "failed"), (_lacks, 77, "not run")],
)
def test_the_exit_code_and_the_file_say_what_came_of_a_check(
    run: Callable[[Context, Report], None], code: int, verdict: str, tmp_path: Path
) -> None:
    options = ["--out", str(tmp_path), "--environments", str(tmp_path / "environments")]
    assert main(options, {"one": Check("a check", run)}) == code
    document = json.loads((tmp_path / "ascend-check-one.json").read_text("utf-8"))
    assert (document["format"], document["verdict"]) == ("gyrfalcon-ascend-check", verdict)
    assert document["command"].startswith("scripts/ascend-check --out ")


def test_a_check_that_does_not_end_is_ended_and_has_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--environments", str(tmp_path), "--minutes", "0.001"]
    assert main(options, {"one": Check("a check", _is_endless)}) == 1
    assert "sleep did not end in time; raise --minutes" in capfd.readouterr().out


@pytest.mark.parametrize("words", [["shape"], ["--minutes", "0"]])
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("ascend-check: error: wanted ")


def test_the_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CHECKS)


def test_every_step_of_the_gate_has_its_check() -> None:
    assert {f"gate-{step}" for step in STEPS} <= set(CHECKS)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_torch_npu_has_exact_pins(version: str) -> None:
    first, *pins = (PINS / f"torch-npu-{version}.txt").read_text("utf-8").splitlines()
    assert first.removeprefix("# ").split(", ") == pins
    assert pins[0] == f"torch-npu=={version}"


def test_operators_are_found_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("torch_npu.npu_gelu(x)\nnames = ('_npu_reshape_and_cache',)\n")
    (tmp_path / "two.py").write_text("def gelu(): return find('npu_gelu')\nprint('torch_npu')\n")
    assert used_operators(tmp_path) == {"npu_gelu", "_npu_reshape_and_cache"}


def test_a_torch_that_cannot_be_borrowed_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.99.0+cpu")
    with pytest.raises(NotRun, match=r"wanted torch 2\.13\.0 to borrow, got 2\.99\.0"):
        ascend_environment("2.13.0", tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_path_of_a_variant_fits_the_schemas_of_torch_npu(version: str) -> None:
    """Where scripts/ascend-check has made the environment; it takes all variants, and in each way."""
    if not (BUILD / "environments" / f"torch-npu-{version}" / ".complete").exists():
        pytest.skip(f"no torch_npu {version}: run scripts/ascend-check shapes-{version}")
    place = ascend_environment(version, BUILD / "environments")
    environ = place.environ | dict(WAYS["CANN from 8.3 on"][0])
    words = ["--models", "falcon-7b"]
    command = [place.python, "-m", "ascend_checks.fake_path", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["versions"]["torch_npu"] == version
    assert [case for case in found["cases"] if "error" in case] == []
    assert "npu_fused_infer_attention_score" in found["called"]


@COMPILER
def test_a_library_loads_with_stand_ins_of_what_it_lacks(tmp_path: Path) -> None:
    package, made = tmp_path / "package", tmp_path / "stand-ins"
    package.mkdir()
    _shared(
        tmp_path / "libcard.so", "int card_count(unsigned *n) { return 3; } long card_table[4];"
    )
    _shared(package / "user.so", CARD, "-L", str(tmp_path), "-lcard")
    (tmp_path / "libcard.so").unlink()
    with pytest.raises(OSError, match=r"libcard\.so"):
        ctypes.CDLL(str(package / "user.so"))
    assert stand_ins.make_stand_ins([package], made) == ["libcard.so"]
    ctypes.CDLL(str(made / "libcard.so"), ctypes.RTLD_GLOBAL)
    user = ctypes.CDLL(str(package / "user.so"))
    assert (user.answer(), user.found()) == (0, 0)


def _shared(path: Path, source: str, *options: str) -> None:
    text = path.with_suffix(".c")
    text.write_text(source)
    soname = f"-Wl,-soname,{path.name}"
    command = ["cc", "-shared", "-fPIC", "-w", str(text), "-o", str(path), soname, *options]
    subprocess.run(command, check=True, capture_output=True)


def test_without_a_compiler_a_check_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any.so").touch()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotRun, match="wanted readelf to make stand-ins of libraries, got none"):
        stand_ins.make_stand_ins([tmp_path], tmp_path / "made")
