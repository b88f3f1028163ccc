"""The command line: its help, its errors of one line each, its exit codes. Nothing here runs a model."""

import argparse
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

import gyrfalcon
from gyrfalcon import errors
from gyrfalcon.cli.commands import COMMANDS
from gyrfalcon.cli.main import main
from gyrfalcon.cli.option_types import Number, Size, Whole, Wholes, cache_memory
from gyrfalcon.cli.parser import flags, parse
from gyrfalcon.console.interrupted import interrupt_message, interrupts_tell
from gyrfalcon.console.suggestion import OTHER_NAMES
from gyrfalcon.engine_config import DTYPES, QUANTS, EngineConfig
from gyrfalcon.errors import UsageError
from gyrfalcon.files import text as text_file
from gyrfalcon.request import SamplingParams

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
REQUIRED = {  # what a command cannot do without, and what other options cannot
    **{name: ["m"] for name in COMMANDS},
    "doctor": [],
    "cut": ["a", "b", "-w=1", "--calibrate=f"],
    "recut": ["a", "b", "-w=1"],
    "merge": ["a", "b"],
    "generate": ["m", "--prompt-file=p", "-o=o", "--json=f"],
    "score": ["p", "o", "-m=m"],
    "mmlu": ["m", "-d=d"],
    "verify": ["a"],
    "perplexity": ["m", "f"],
    "load": ["http://a"],
    "plan": ["m", "--hardware=h200"],
}
NO_TORCH = {"demo", "load"}  # demo's steps are processes


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
    assert without_torch("from gyrfalcon.cli.main import main\nstatus = main()", *words) == 0


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
    assert without_torch("from gyrfalcon.cli.main import main\nstatus = main()", *words) == 2


@pytest.mark.parametrize("how", ["module", "script"])
def test_ctrl_c_while_python_imports_ends_without_a_traceback(how: str) -> None:
    """The signal comes as the first module behind the command is looked for."""
    code = """
import importlib, os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "gyrfalcon.cli.main":
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


@pytest.mark.parametrize("name", sorted({*COMMANDS} - NO_TORCH))
def test_ctrl_c_ends_a_command_whose_libraries_swallow_it(name: str, tmp_path: Path) -> None:
    """torch's import catches any exception at some places; here every import of it does."""
    code = """
import contextlib, os, signal, sys
class Swallow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Swallow())
from gyrfalcon.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, name, *REQUIRED[name]]
    if name == "report":
        command.append("--no-plots")
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False
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
    assert ("--json FILE" in text) == (name != "serve")  # which has no result


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gyrfalcon {gyrfalcon.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["cut", "a", "b"],
        ["cut", "a", "b", "-w"],
        ["cut", "a", "b", "-w", "two"],
        ["cut", "a", "b", "-w", "2", "--wings"],
        ["cut", "a", "b", "-w", "2", "--dtype", "bf17"],
        ["generate", "m", "--prompt", "x", "--top-p", "much"],
        ["generate", "m", "--prompt", "line\nbreak", "--prompt-file", "f"],
        ["generate", "m", "two\nlines", "--prompt", "x"],
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


def test_an_unknown_command_is_told_the_known_ones() -> None:
    assert "generate" in refusal("genrate", "model")
    assert "got 'genrate'" in refusal("genrate", "model")


@pytest.mark.parametrize("words", [["cut", "a", "b", "-w", "2"], ["generate", "a"]])
def test_a_rounding_that_does_not_exist_is_told_the_known_ones(words: list[str]) -> None:
    refused = refusal(*words, "--quant", "int3")
    assert "--quant none | int8 | fp8 | int4 | int4-32 | int4-128, got 'int3'" in refused


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
    assert args.max_shard_bytes == num_bytes


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


@pytest.mark.parametrize(
    "words",
    [["hello big world"], ["hello", "big", "world"], ["--seed", "1", "hello big world"],
     ["hello", "--seed", "1", "big", "world"]],
    ids=" ".join,
)  # fmt: skip
def test_words_after_the_model_are_one_prompt(words: list[str]) -> None:
    assert parse(["generate", "m", *words]).prompt == ["hello big world"]


def test_log_probabilities_that_nothing_would_show_are_refused() -> None:
    words = ["generate", "m", "x", "--logprobs", "3"]
    assert refusal(*words) == (
        "wanted --json with --logprobs, which only JSON shows, got none; "
        "add --json FILE (- for standard output), or leave --logprobs out"
    )
    assert parse([*words, "--json", "-"]).logprobs == 3


def test_a_value_of_an_unknown_option_is_no_prompt() -> None:
    assert "got '--wings'" in refusal("generate", "m", "--prompt", "x", "--wings", "5")
    assert "got PROMPT and --prompt;" in refusal("generate", "m", "y", "--prompt", "x")


def test_a_value_that_begins_with_a_dash_is_told_how() -> None:
    assert refusal("generate", "m", "--prompt", "-x").endswith("write --prompt=VALUE")
    assert refusal("cut", "a", "b", "-w").endswith("write --world-size=VALUE")
    assert parse(["generate", "m", "--prompt=-x"]).prompt == ["-x"]


def test_a_full_disk_is_told_as_such() -> None:
    command = [sys.executable, "-m", "gyrfalcon", "doctor", "--quick"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"gyrfalcon: error: wanted room for the output, got No space left"
    )
    assert done.stderr.count(b"\n") == 1


ENDLESS = [
    "generate nestling --prompt-file /dev/zero",
    "perplexity nestling /dev/zero",
    "precision nestling --prompts /dev/zero",
    "speed nestling --baseline /dev/zero",
    "report /dev/zero",
    "cut nestling {folder}/cut -w 1 --quant int4 --calibrate /dev/zero",
]


@pytest.mark.parametrize("line", ENDLESS)
def test_a_file_without_an_end_is_refused_before_it_fills_the_memory(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_file, "MOST_BYTES", 3 * text_file.CHUNK_BYTES)
    assert main(line.format(folder=tmp_path).split()) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "wanted at most 3,145,728 bytes in /dev/zero, got more" in err[0]


def test_a_full_log_neither_ends_the_work_nor_changes_the_exit_code(tmp_path: Path) -> None:
    hf = make_checkpoint(tmp_path / "hf", "rw-1b", num_hidden_layers=1)
    for line, code in ((f"cut {hf} {tmp_path}/cut -w 1", 0), (f"verify {hf}", 2)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "gyrfalcon", *line.split()],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=full,
                check=False,
            )
        assert (done.returncode, b"save succ" in done.stdout) == (code, code == 0)


def with_closed(descriptor: int, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, sys; os.close({descriptor}); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-m", "gyrfalcon", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("descriptor", [0, 2])
def test_a_closed_standard_input_or_error_is_an_empty_one(descriptor: int) -> None:
    done = with_closed(descriptor, "--version")
    shown = f"gyrfalcon {gyrfalcon.__version__}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


@pytest.mark.parametrize(
    "line",
    ["--version", "--help", "inspect nestling", "inspect nestling --json -", "generate nestling a"],
)
def test_a_closed_standard_output_is_refused_before_the_work(line: str) -> None:
    done = with_closed(1, *line.split())
    assert (done.returncode, done.stderr) == (
        2,
        "gyrfalcon: error: wanted an open standard output for the result, got a closed one; "
        "send it to a file, or to /dev/null\n",
    )


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
    with start("doctor", "--quick", "--json", str(fifo)) as process:
        assert process.stderr is not None
        waiting = f"gyrfalcon: waiting for a reader of {fifo}\n"
        assert process.stderr.readline() == waiting
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "gyrfalcon: interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with start("doctor", "--quick") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == ""


# ---- help ----


def options_of(name: str) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    COMMANDS[name].add_arguments(parser)
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]


def help_of(*words: str) -> str:
    with pytest.raises(SystemExit):
        parse([*words, "--help"])
    return ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_states_its_default_and_every_number_its_range(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    help_of(name)
    entries = re.split(r"\n  (?=-)|\n\n", capsys.readouterr().out)
    texts = {entry.split(maxsplit=1)[0].strip(","): " ".join(entry.split()) for entry in entries}
    for action in options_of(name):
        option = action.option_strings[0]
        said = texts[option]
        assert action.required or "default" in said, option
        if isinstance(action.type, Whole | Wholes | Number):
            assert str(action.type.bounds) in said, option
        elif isinstance(action.type, Size) or action.type is cache_memory:
            assert "1000 TB" in said, option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_are_right(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    help_of(name)
    paragraph = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0]
    examples = [shlex.split(line) for line in paragraph.splitlines()]
    assert examples
    for words in examples:
        launcher, words = words[: words.index("gyrfalcon")], words[words.index("gyrfalcon") + 1 :]
        assert launcher[:1] in ([], ["torchrun"])
        assert parse(words).command == name


@pytest.mark.parametrize("option", ["--baseline", "--output"])  # of several values, of one
def test_an_option_without_a_value_is_told_so(option: str) -> None:
    wanted = f"wanted a value for {option}, got none; write {option}=VALUE"
    assert refusal("report", "x", option) == wanted


def test_the_first_help_has_examples_that_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    help_of()
    paragraph = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0]
    for line in paragraph.splitlines():
        parse(shlex.split(re.split("  +", line.strip())[0])[1:])


def test_no_command_is_the_help_and_then_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: gyrfalcon ")
    assert err.splitlines()[-1].startswith("gyrfalcon: error: wanted a command (cut, ")


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["help"], ["--help"]),
        (["help", "cut"], ["cut", "--help"]),
        (["help", "cut", "HF"], ["cut", "--help"]),
        (["version"], ["--version"]),
        (["version", "cut"], ["--version"]),
    ],
)
def test_words_for_help_and_version_print_on_standard_output(
    words: list[str], same: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for typed in (words, same):
        assert main(typed) == 0
        shown.append(capsys.readouterr())
    assert shown[0] == shown[1]
    assert shown[0].out
    assert not shown[0].err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["genrate", "m"], "generate"),
        (["halp"], "help"),
        (["help", "genrate"], "generate"),
        (["generate", "m", "x", "--temprature", "1"], "--temperature"),
        (["generate", "m", "x", "--max_len=5"], "--max-len"),
        (["generate", "m", "x", "--jsn", "f"], "--json"),
        (["generate", "m", "x", "--dtype", "bf61"], "bf16"),
        (["cut", "a", "b", "-w", "2", "--quant", "int-4"], "int4"),
        (["mmlu", "m", "-d", "d", "--protocol", "lmeval"], "lm-eval"),
        (["bench", "m"], "speed"),  # from here on words of other engines
        (["generate", "m", "x", "--temp", "1"], "--temperature"),
        (["speed", "m", "-tp=2"], "-w"),
        (["mmlu", "m", "--dtype", "bfloat16"], "bf16"),
        (["cut", "a", "b", "-w", "2", "--quant", "4bit"], "int4"),
        (["load", "http://a", "--request-rate", "4"], "--rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_word_is_told_what_it_may_mean(words: list[str], meant: str) -> None:
    assert refusal(*words).endswith(f"; did you mean {meant}?")


def test_a_model_given_by_an_option_is_told_where_it_goes() -> None:
    for words in (["--model", "m"], ["-m", "m"]):
        said = refusal("generate", *words, "--prompt", "x")
        assert said.endswith("; write the model alone: gyrfalcon generate MODEL")


def test_a_missing_model_alone_is_asked_for() -> None:
    for words in ([], ["--prompt", "x"], ["--model=m", "--prompt", "x"]):
        assert refusal("generate", *words).startswith("wanted MODEL, got none; ")


def test_words_of_other_engines_stand_for_words_that_are_known() -> None:
    names = [one.name for kind in (EngineConfig, SamplingParams) for one in fields(kind)]
    known = {*COMMANDS, *DTYPES, *QUANTS, "cuda", *names}
    for name in ("generate", "load"):
        parser = argparse.ArgumentParser()
        COMMANDS[name].add_arguments(parser)
        known.update(option for action in parser._actions for option in action.option_strings)
    assert not set(OTHER_NAMES.values()) - known
    assert not set(OTHER_NAMES) & known


def test_words_of_run_sh_are_told_how_to_run() -> None:
    assert refusal("test").endswith("run bash run.sh -m test beside the source")
    assert refusal("-m", "generate").endswith("write the mode alone: gyrfalcon generate MODEL")


@pytest.mark.parametrize("words", [["precision", "m"], ["mmlu", "m", "-d", "d"]], ids=" ".join)
def test_a_former_name_of_an_option_is_taken_and_not_shown(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [parse([*words, *more]).published for more in ([], ["--published"], ["--golden"])] == [
        False,
        True,
        True,
    ]
    help_of(words[0])
    shown = capsys.readouterr().out
    assert "--published" in shown
    assert "golden" not in shown
    assert "--golden" not in refusal(*words, "--goldn")
    assert flags()["published"] == "--published"


# ---- numbers ----

NUMBERS = [
    (name, action)
    for name in COMMANDS
    for action in options_of(name)
    if isinstance(action.type, Whole | Wholes | Number | Size) or action.type is cache_memory
]


@pytest.mark.parametrize(
    ("name", "action"), NUMBERS, ids=[f"{name} {action.dest}" for name, action in NUMBERS]
)
def test_numbers_out_of_range_are_refused_at_once(name: str, action: argparse.Action) -> None:
    option = action.option_strings[-1]
    for text in ("-1e30", "1" * 24, "9" * 5000, "1e400", "nan", "inf", "", "--", "x" * 9999):
        refused = refusal(name, *REQUIRED[name], f"{option}={text}")
        assert option.split("--")[-1] in refused or "-w" in refused
        assert len(refused) < 300
    if isinstance(action.type, Whole | Number):
        bounds = action.type.bounds
        kind = int if isinstance(action.type, Whole) else float
        for edge in (bounds.least, bounds.most):
            if edge in bounds:
                args = parse([name, *REQUIRED[name], f"{option}={edge}"])
                assert vars(args)[action.dest] in (kind(edge), [kind(edge)])
        refusal(name, *REQUIRED[name], f"{option}={bounds.least - 1}")
        refusal(name, *REQUIRED[name], f"{option}={bounds.most + 1}")


def test_a_list_of_numbers_has_an_end() -> None:
    assert "at most 100 numbers" in refusal("speed", "m", "--in", ",".join(["5"] * 101))


def test_two_dashes_can_be_a_value() -> None:
    assert parse(["generate", "m", "--prompt=--"]).prompt == ["--"]
    assert "got '--'" in refusal("generate", "m", "x", "--cache-memory=--")


def test_advice_on_options_holds_with_run_sh_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.csv").write_text("mine")
    words = ["speed", "nestling", "-f", str(tmp_path / "out.csv")]
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("or add --overwrite to measure all again\n")
    monkeypatch.setenv("GYRFALCON_RUN_SH", "1")
    assert main(words) == 2
    advice = "or add --overwrite to measure all again (with run.sh: after --)\n"
    assert capsys.readouterr().err.endswith(advice)


def test_a_ctrl_c_tells_what_is_kept() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for words, line in (("", "interrupted"), ("two are kept", "interrupted; two are kept")):
        with pytest.raises(KeyboardInterrupt) as caught, interrupts_tell(partial(str, words)):
            interrupt()
        assert interrupt_message(caught.value) == line
