"""The command line: its help, its errors of one line each, its exit codes. Nothing here runs a model."""

import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

import gyrfalcon
from gyrfalcon import errors
from gyrfalcon.arguments import COMMANDS, PLANNED, parse
from gyrfalcon.cli import main
from gyrfalcon.errors import UsageError

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(words)
    return str(caught.value)


def without_torch(code: str, *words: str) -> int:
    """The exit code of Python code in a fresh process; fails when it left torch imported."""
    code += "\nassert 'torch' not in sys.modules, 'torch was imported'\nsys.exit(status)"
    command = [sys.executable, "-c", "import sys\n" + code, *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_needs_no_torch(words: list[str]) -> None:
    assert without_torch("from gyrfalcon.cli import main\nstatus = main()", *words) == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--colour"],
        ["fly"],
        ["speed"],
        ["cut", "a"],
        ["cut", "a", "b", "-w", "0"],
        ["generate", "m"],
    ],
    ids=" ".join,
)
def test_wrong_usage_needs_no_torch_and_exits_2(words: list[str]) -> None:
    assert without_torch("from gyrfalcon.cli import main\nstatus = main()", *words) == 2


@pytest.mark.parametrize("how", ["module", "script"])
def test_ctrl_c_while_python_imports_ends_without_a_traceback(how: str) -> None:
    """The signal comes as the first module behind the command is looked for."""
    code = """
import importlib, os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "gyrfalcon.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    home, _, name = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"][
        "gyrfalcon"
    ].partition(":")
    code += {
        "module": "runpy.run_module('gyrfalcon', run_name='__main__')",
        "script": f"from {home} import {name}\nsys.exit({name}())",
    }[how]
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_ends_a_command_whose_libraries_swallow_it() -> None:
    """torch's import catches any exception at some places; here every import of it does."""
    code = """
import contextlib, os, signal, sys
class Swallow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Swallow())
from gyrfalcon.cli import main
sys.exit(main(["verify", "nowhere"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_importing_the_package_needs_no_torch() -> None:
    assert without_torch("import gyrfalcon\nstatus = 0") == 0


@pytest.mark.parametrize("name", [name for name in gyrfalcon.__all__ if name != "Engine"])
def test_what_is_no_engine_needs_no_torch(name: str) -> None:
    assert without_torch(f"from gyrfalcon import {name}\nstatus = 0") == 0


def test_sampling_parameters_need_no_torch() -> None:
    assert without_torch("import gyrfalcon\nstatus = gyrfalcon.SamplingParams(top_k=3).top_k") == 3


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="Enginge"):
        _ = gyrfalcon.Enginge
    assert {"Engine", "EngineConfig", "SamplingParams", "__version__"} <= set(dir(gyrfalcon))


def test_all_errors_and_outputs_are_found_in_the_package() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    wanted = {kind.__name__ for kind in kinds if issubclass(kind, errors.GyrfalconError)}
    wanted |= {"Completion", "Delta", "FinishReason", "Message", "RequestOutput", "Token"}
    assert wanted <= set(gyrfalcon.__all__) == set(dir(gyrfalcon))
    assert {getattr(gyrfalcon, name).__name__ for name in wanted} == wanted


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: gyrfalcon {name}")
    assert "--json FILE" in text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gyrfalcon {gyrfalcon.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["cut", "a", "b"],
        ["cut", "a", "b", "-w"],
        ["cut", "a", "b", "-w", "two"],
        ["cut", "a", "b", "-w", "2", "--wings"],
        ["cut", "a", "b", "-w", "2", "--dtype", "bf17"],
        ["generate", "m", "--prompt", "x", "--top-p", "much"],
        ["generate", "m", "--prompt", "line\nbreak", "--prompt-file", "f"],
        ["generate", "m", "two\nlines"],
    ],
    ids=" ".join,
)
def test_an_error_is_one_line_of_three_parts(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("gyrfalcon: error: wanted ")
    assert ", got " in err
    assert "; " in err


@pytest.mark.parametrize("name", PLANNED)
def test_a_command_that_does_not_exist_yet_is_refused_by_name(name: str) -> None:
    assert f"got {name}, which is not built yet" in refusal(name, "model")


def test_an_unknown_command_is_told_the_known_ones() -> None:
    assert "generate" in refusal("genrate", "model")
    assert "got 'genrate'" in refusal("genrate", "model")


@pytest.mark.parametrize("words", [["cut", "a", "b", "-w", "2"], ["generate", "a"]])
def test_a_rounding_that_does_not_exist_is_told_the_known_ones(words: list[str]) -> None:
    refused = refusal(*words, "--quant", "int3")
    assert "--quant none | int8 | fp8 | int4 | int4-32 | int4-128, got 'int3'" in refused


def test_a_device_that_is_not_built_yet_is_refused_by_name() -> None:
    assert "got npu, which is not built yet" in refusal("generate", "m", "-", "--device", "npu")


def test_a_shortened_option_is_not_guessed() -> None:
    assert "'--over'" in refusal("cut", "a", "b", "-w", "2", "--over")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5gb", 1_500_000_000),
        ("2GiB", 2**31),
        ("4 KiB", 4096),
        ("77", 77),
    ],
)
def test_sizes_are_read_with_their_units(text: str, num_bytes: int) -> None:
    args = parse(["merge", "a", "b", "--max-shard-size", text])
    assert args.max_shard_size == num_bytes


@pytest.mark.parametrize("text", ["", "0", "-5GB", "5 apples", "GB", "1e9", "٣GB"])
def test_other_sizes_are_refused(text: str) -> None:
    assert f"got {text!r}" in refusal("merge", "a", "b", f"--max-shard-size={text}")


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), (".25", 0.25), ("1.0", 1.0), ("2GB", 2 * 10**9), ("1", 1)]
)
def test_cache_memory_is_a_fraction_or_bytes(text: str, value: int | float) -> None:
    parsed = parse(["generate", "m", "-", "--cache-memory", text]).cache_memory
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["0.0", "1.5", "half"])
def test_other_amounts_of_cache_memory_are_refused(text: str) -> None:
    assert f"got {text!r}" in refusal("generate", "m", "-", "--cache-memory", text)


def test_a_lone_dash_means_prompts_from_standard_input() -> None:
    args = parse(["generate", "m", "-"])
    assert (args.prompt, args.prompt_file) == (None, "-")
    args = parse(["generate", "m", "--seed", "1", "-"])
    assert (args.prompt, args.prompt_file) == (None, "-")


def test_prompts_come_in_the_order_they_were_given() -> None:
    assert parse(["generate", "m", "--prompt", "b", "--prompt", "a"]).prompt == ["b", "a"]


def test_two_sources_of_prompts_are_refused() -> None:
    assert "got --prompt and -;" in refusal("generate", "m", "-", "--prompt", "x")


def test_a_prompt_without_its_option_is_told_how() -> None:
    assert 'write --prompt "hello"' in refusal("generate", "m", "hello")
    assert 'write --prompt "hello"' in refusal("generate", "m", "--seed", "1", "hello")


def test_a_value_that_begins_with_a_dash_is_told_how() -> None:
    assert refusal("generate", "m", "--prompt", "-x").endswith("write --prompt=VALUE")
    assert refusal("cut", "a", "b", "-w").endswith("write --world-size=VALUE")
    assert parse(["generate", "m", "--prompt=-x"]).prompt == ["-x"]


def test_a_full_disk_is_told_as_such() -> None:
    command = [sys.executable, "-m", "gyrfalcon", "doctor"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"gyrfalcon: error: wanted room for the output, got No space left"
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_closed_standard_streams_are_no_traceback(descriptor: int) -> None:
    code = f"import os, sys; os.close({descriptor}); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-m", "gyrfalcon", "--version"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    shown = "" if descriptor == 1 else f"gyrfalcon {gyrfalcon.__version__}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_output_cannot_show_are_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, cut, file = tmp_path / "hf", tmp_path / os.fsdecode(b"m\xc3\xb6we-\xff"), tmp_path / "file"
    make_checkpoint(hf, "rw-1b", num_hidden_layers=1)

    def shown(*words: str) -> str:
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(words) == 0
        return stdout.buffer.getvalue().decode(encoding)

    assert "we-\\udcff (world size 2)" in shown("cut", str(hf), str(cut), "-w", "2")
    assert json.loads(shown("verify", str(cut), "--json", "-"))["folder"] == str(cut)
    shown("verify", str(cut), "--json", str(file))
    assert json.loads(file.read_text("utf-8"))["folder"] == str(cut)


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "gyrfalcon", *words]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_an_interrupt_ends_with_130_and_one_line(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with start("doctor", "--json", str(fifo)) as process:
        assert process.stderr is not None
        waiting = f"gyrfalcon: waiting for a reader of {fifo}\n"
        assert process.stderr.readline() == waiting
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "gyrfalcon: interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with start("doctor") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == ""
