"""run.sh: the guide's flags become a gyrfalcon command, and .venv is made once.

It runs for real, in a copy whose path holds a space; python3, pip and all else it starts are shell scripts.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from clones import FINDER, environment_of
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]

SHOW_ARGUMENTS = 'printf "%s" "${0##*/}"; printf " <%s>" "$@"; echo'

# Stands for python3: knows its version, and makes an environment whose pip notes what it is asked to
# install. As an environment's own python it imports the source that run.sh asks for.
FAKE_PYTHON = """
case $1 in
    -P) exit 0 ;;
    -c) exit "${PYTHON_IS_OLD:-0}" ;;
    --version) echo "Python 3.9.11" ;;
    -m)
        echo "venv $3" >>"$LOG"
        mkdir -p "$4/bin"
        cp "$FAKES/pip" "$4/bin/python"
        cp "$FAKES/show" "$4/bin/gyrfalcon"
        ;;
esac
"""
FAKE_PIP = """
[ "$1" != -c ] || exit "${TORCH_IS_MISSING:-1}"
shift 2
echo "pip $* with $PIP_CONSTRAINT in $PWD" >>"$LOG"
until [ -e "${PIP_WAITS_FOR:-/}" ]; do sleep 0.01; done
case "$*" in *--index-url*) exit "${CPU_INDEX_FAILS:-0}" ;; esac
exit "${PIP_FAILS:-0}"
"""


class Copy:
    """A copy of run.sh with the files that a set-up depends on, beside a folder of stand-in programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "the copy"
        self.fakes = folder / "the fakes"
        self.log = folder / "log"
        self.folder.mkdir()
        self.fakes.mkdir()
        for name in ("run.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(REPOSITORY / name, self.folder / name)
        self.devices = folder / "dev"
        self.devices.mkdir()
        text = (REPOSITORY / "run.sh").read_text()
        text = text.replace("\ndevices=/dev\n", f"\ndevices='{self.devices}'\n")
        (self.folder / "run.sh").write_text(text)
        (self.folder / "src/gyrfalcon").mkdir(parents=True)
        (self.folder / "src/gyrfalcon/__init__.py").touch()
        for name in ("python", "python3", "python3.13", "python3.12", "python3.11"):
            self.program(self.fakes / name, FAKE_PYTHON)
        self.program(self.fakes / "pip", FAKE_PIP)
        self.program(self.fakes / "show", SHOW_ARGUMENTS)

    @staticmethod
    def program(path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        base = {
            "PATH": f"{self.fakes}:/usr/bin:/bin",
            "LOG": str(self.log),
            "FAKES": str(self.fakes),
        }
        return subprocess.Popen(
            ["bash", str(self.folder / "run.sh"), *words],
            cwd="/",
            env={**base, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(*words, **environment)
        out, err = process.communicate()
        return process.returncode, out, err

    def noted(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def steps(self) -> list[str]:
        """What the set-ups did since the last call."""
        done = self.noted()
        self.log.unlink(missing_ok=True)
        return done


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.fixture
def active(copy: Copy) -> Copy:
    """A copy with a gyrfalcon on PATH that shows what it is called with."""
    copy.program(copy.fakes / "gyrfalcon", SHOW_ARGUMENTS)
    return copy


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("-m cut -h HF -n CUT -w 2", "<cut> <HF> <CUT> <-w> <2>"),
        ("-m cut -h HF -n CUT", "<cut> <HF> <CUT> <-w> <4>"),
        ("-m cut -h HF -n CUT -- --quant int8", "<cut> <HF> <CUT> <-w> <4> <--quant> <int8>"),
        ("-w 2 -n CUT -h HF -m cut -- --dtype bf16", "<cut> <HF> <CUT> <-w> <2> <--dtype> <bf16>"),
        ("-m generate -n M Once upon", "<generate> <M> <--prompt> <Once upon>"),
        ("-m generate Once -n M upon -w 3", "<generate> <M> <--prompt> <Once upon> <-w> <3>"),
        ("-m generate -n M -", "<generate> <M> <->"),
        ("-m generate -n M -- --prompt-file F", "<generate> <M> <--prompt-file> <F>"),
        ("-m generate -n M a -- -w 2 -- b", "<generate> <M> <--prompt> <a> <-w> <2> <--> <b>"),
        ("-m score -n M IN OUT", "<score> <IN> <OUT> <-m> <M>"),
        (
            "-m score -n M -w 2 I O -- --sums-only",
            "<score> <I> <O> <-m> <M> <-w> <2> <--sums-only>",
        ),
        ("-m speed -n CUT -f CSV -w 4", "<speed> <CUT> <-f> <CSV> <-w> <4>"),
        ("-m speed -n CUT", "<speed> <CUT> <-f> <1_batch_performance_falcon40b.csv>"),
        ("-m report A B -- -o DIR", "<report> <A> <B> <-o> <DIR>"),
        ("-m report -- A --baseline guide", "<report> <A> <--baseline> <guide>"),
        ("-m precision -n CUT -w 2", "<precision> <CUT> <-w> <2>"),
        ("-m precision -n M -- --published", "<precision> <M> <--published>"),
        ("-m mmlu -n CUT -d MMLU -w 2", "<mmlu> <CUT> <-d> <MMLU> <-w> <2>"),
        ("-m mmlu -n M -d D -- --split val", "<mmlu> <M> <-d> <D> <--split> <val>"),
        ("-m plan -n M -w 4 -- --hardware h200x8", "<plan> <M> <-w> <4> <--hardware> <h200x8>"),
        ("-m verify -n CUT", "<verify> <CUT>"),
        ("-m doctor -- --json -", "<doctor> <--json> <->"),
        ("-m demo", "<demo>"),
    ],
)
def test_the_guides_flags_become_a_gyrfalcon_command(
    active: Copy, words: str, command: str
) -> None:
    assert active.run(*words.split()) == (0, f"gyrfalcon {command}\n", "")


def test_spaces_and_wildcards_in_values_stay_as_they_are(active: Copy) -> None:
    _, out, _ = active.run(
        "-m", "cut", "-h", "my model", "-n", "a *", "--", "--max-shard-size", "4 KiB"
    )
    assert out == "gyrfalcon <cut> <my model> <a *> <-w> <4> <--max-shard-size> <4 KiB>\n"
    _, out, _ = active.run("-m", "generate", "-n", "m", "Once  upon\na time")
    assert out == "gyrfalcon <generate> <m> <--prompt> <Once  upon\na time>\n"


def test_a_text_that_begins_with_a_dash_is_a_prompt(active: Copy) -> None:
    assert active.run("-m", "generate", "-n", "M", "- one") == (
        0,
        "gyrfalcon <generate> <M> <--prompt> <- one>\n",
        "",
    )


def test_a_link_to_run_sh_runs_the_source_that_it_leads_to(active: Copy, tmp_path: Path) -> None:
    active.program(active.fakes / "gyrfalcon", 'echo "$PYTHONPATH"')
    link = tmp_path / "falcon"
    link.symlink_to(active.folder / "run.sh")
    done = subprocess.run(
        ["bash", str(link), "-m", "verify", "-n", "M"],
        env={"PATH": f"{active.fakes}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{active.folder}/src\n", "")


def test_the_exit_code_is_gyrfalcons(active: Copy) -> None:
    active.program(active.fakes / "gyrfalcon", "exit 130")
    assert active.run("-m", "doctor")[0] == 130


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ("", "wanted one of the modes above after -m, got none; write -m MODE"),
        ("-n M a text", "wanted one of the modes above after -m, got none; write -m MODE"),
        ("generate -n M", "got none; did you mean -m generate?"),
        ("-m", "wanted a value after -m, got none"),
        ("-m fly", "got fly; write -m MODE"),
        ("-m genrate -n M", "got genrate; did you mean -m generate?"),
        ("-m mlmu", "got mlmu; did you mean -m mmlu?"),
        ("-m demos", "got demos; did you mean -m demo?"),
        ("-m plan -w 4", "wanted -n MODEL with -m plan, got none"),
        ("-m serve -w 4", "wanted -n MODEL with -m serve, got none"),
        ("-m speed -f CSV", "wanted -n MODEL with -m speed, got none"),
        ("-m mmlu -n CUT", "wanted -d MMLU with -m mmlu, got none"),
        ("-m doctor -x", "got -x"),
        ("-m doctor --json -", "got --json"),
        ("-m cut -n CUT", "wanted -h HF with -m cut, got none"),
        ("-m cut -h HF", "wanted -n CUT with -m cut, got none"),
        ("-m generate Once", "wanted -n MODEL with -m generate, got none"),
        ("-m cut -h HF -n CUT -d DIR", "got -d"),
        ("-m cut HF CUT", "got HF"),
    ],
)
def test_wrong_usage_is_told_in_three_lines_and_sets_nothing_up(
    copy: Copy, words: str, got: str
) -> None:
    code, out, err = copy.run(*words.split())
    assert (code, out) == (2, "")
    usage, modes, error = err.splitlines()
    assert usage.startswith("Usage: bash run.sh -m MODE [")
    assert modes == (
        "Modes: cut generate score serve speed precision mmlu plan report verify demo doctor test; "
        "bash run.sh --help explains them"
    )
    assert error.startswith("run.sh: error: wanted ")
    assert got in error
    assert copy.steps() == []


@pytest.mark.parametrize("words", ["-m cut --help", "--help", "help"])
def test_help_is_the_usage_and_sets_nothing_up(copy: Copy, words: str) -> None:
    code, out, err = copy.run(*words.split())
    assert (code, err) == (0, "")
    assert out.startswith("Usage: bash run.sh -m MODE")
    assert copy.steps() == []


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_has_the_package_is_used(
    copy: Copy, tmp_path: Path, variable: str
) -> None:
    copy.program(tmp_path / "my env/bin/gyrfalcon", SHOW_ARGUMENTS)
    copy.program(tmp_path / "my env/bin/python", FAKE_PYTHON)
    assert copy.run("-m", "demo", **{variable: str(tmp_path / "my env")})[1] == "gyrfalcon <demo>\n"
    assert not (copy.folder / ".venv").exists()


def test_an_environment_with_this_source_is_used_without_a_word(copy: Copy, tmp_path: Path) -> None:
    source = copy.folder / "src/gyrfalcon"
    environment_of(tmp_path / "env", source, editable=True)
    code, out, err = copy.run("-m", "demo", VIRTUAL_ENV=str(tmp_path / "env"))
    assert (code, out, err) == (0, f"{source}/__init__.py\n" * 2, "")


def test_the_source_beside_run_sh_comes_before_an_installed_copy(
    copy: Copy, tmp_path: Path
) -> None:
    source = copy.folder / "src/gyrfalcon"
    packages = environment_of(tmp_path / "env", source, editable=False)
    code, out, err = copy.run("-m", "demo", VIRTUAL_ENV=str(tmp_path / "env"))
    assert (code, out) == (0, f"{source}/__init__.py\n" * 2)
    assert err == (
        f"run.sh: running {source.parent} in the environment {tmp_path}/env, "
        f"not its own {packages}/gyrfalcon\n"
    )


@pytest.mark.parametrize("variables", ["VIRTUAL_ENV PATH", "CONDA_PREFIX", "PATH"])
def test_an_environment_of_another_clone_is_not_used(
    copy: Copy, tmp_path: Path, variables: str
) -> None:
    other = tmp_path / "other/src/gyrfalcon"
    shutil.copytree(copy.folder / "src/gyrfalcon", other)
    environment_of(tmp_path / "env", other, editable=True)
    on_path = f"{copy.fakes}:{tmp_path}/env/bin:/usr/bin:/bin"
    activated = {
        name: on_path if name == "PATH" else str(tmp_path / "env") for name in variables.split()
    }
    copy.program(copy.fakes / "show", 'echo "$PYTHONPATH"')
    code, out, err = copy.run("-m", "demo", **activated)
    assert (code, out) == (0, f"{copy.folder}/src\n")
    told = (
        f"run.sh: running {copy.folder}/src in {copy.folder}/.venv; "
        f"the environment {tmp_path}/env runs {other}\n"
    )
    assert err.startswith(told)
    assert err.count(str(other)) == 1
    assert (copy.folder / ".venv/bin/gyrfalcon").exists()


def test_an_active_environment_without_the_package_is_left_alone(
    copy: Copy, tmp_path: Path
) -> None:
    copy.program(tmp_path / "env/bin/python", "exit 1")
    assert copy.run("-m", "demo", VIRTUAL_ENV=str(tmp_path / "env"))[0] == 0
    assert (copy.folder / ".venv/bin/gyrfalcon").exists()


CPU_BUILD = (
    "pip install --quiet --no-deps --retries 0 --timeout 5"
    " --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
)
USUAL_BUILD = "pip install --quiet torch"
PACKAGE = "pip install --quiet -e .[report,hub,serve]"


def set_up(copy: Copy, **environment: str) -> tuple[list[str], list[str]]:
    """What a first run installs, each from within the copy with its constraints, and what it says."""
    code, out, err = copy.run("-m", "demo", **{"CXX": "sh", **environment})
    assert (code, out) == (0, "gyrfalcon <demo>\n")
    first, *steps = copy.steps()
    assert first == "venv --clear"
    place = f" with constraints.txt in {copy.folder}"
    assert all(step.endswith(place) for step in steps)
    return [step.removesuffix(place) for step in steps], err.splitlines()


@pytest.mark.parametrize("device", ["nvidia0", "nvidiactl", "kfd", "davinci3", "dxg"])
def test_the_first_run_installs_torch_then_the_package(copy: Copy, device: str) -> None:
    (copy.devices / device).touch()
    steps, said = set_up(copy)
    assert steps == [USUAL_BUILD, PACKAGE]
    assert said[0] == f"run.sh: setting up {copy.folder}/.venv (once)"
    assert said[1].startswith("run.sh: fetching torch 2.13.0; ")
    assert said[1].endswith(" about 3 GB")


def test_without_an_accelerator_torch_is_the_build_for_processors(copy: Copy) -> None:
    (copy.devices / "null").touch()
    steps, said = set_up(copy)
    assert steps == [CPU_BUILD, PACKAGE]
    assert said[1].endswith("fetching torch's build for processors, about 200 MB")


def test_where_that_build_cannot_be_reached_the_usual_one_is_installed(copy: Copy) -> None:
    steps, said = set_up(copy, CPU_INDEX_FAILS="1")
    assert steps == [CPU_BUILD, USUAL_BUILD, PACKAGE]
    assert "taking the usual index" in said[2]
    assert said[3].endswith(" about 3 GB")


def test_torch_is_not_installed_twice(copy: Copy) -> None:
    steps, said = set_up(copy, TORCH_IS_MISSING="0")
    assert steps == [PACKAGE]
    assert not any("fetching" in line for line in said)


def test_the_constraint_on_torch_allows_its_build_for_processors() -> None:
    [line] = [
        line
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    ]
    wanted = Requirement(line)
    assert wanted.specifier.contains(f"{str(wanted.specifier).removeprefix('==')}+cpu")


@pytest.mark.parametrize(
    ("compiler", "native", "said"),
    [("none", "1", ["no"]), ("none", "0", []), ("sh", "1", ["compiling"]), ("sh", "0", [])],
)
def test_a_set_up_says_that_it_compiles_or_that_it_has_nothing_to_compile_with(
    copy: Copy, compiler: str, native: str, said: list[str]
) -> None:
    _, words = set_up(copy, CXX=compiler, GYRFALCON_NATIVE=native)
    found = re.findall(r"compiling(?= its native kernels)|no(?= C\+\+ compiler)", "\n".join(words))
    assert found == said


def test_later_runs_set_nothing_up_and_say_nothing(copy: Copy) -> None:
    copy.run("-m", "demo")
    copy.steps()
    assert copy.run("-m", "doctor") == (0, "gyrfalcon <doctor>\n", "")
    assert copy.steps() == []


def test_an_interrupted_set_up_is_done_again_from_nothing(copy: Copy) -> None:
    code, out, err = copy.run("-m", "demo", PIP_FAILS="1")
    assert (code, out) == (2, "")
    assert "run.sh: error: wanted the package installed" in err
    copy.steps()
    assert copy.run("-m", "demo")[0] == 0
    assert copy.steps()[0] == "venv --clear"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed_into_the_same_environment(
    copy: Copy, name: str
) -> None:
    copy.run("-m", "demo")
    copy.steps()
    with (copy.folder / name).open("a") as file:
        file.write("# changed\n")
    assert copy.run("-m", "demo")[0] == 0
    assert copy.steps()[0] == "venv --upgrade"


def test_a_folder_that_was_moved_is_set_up_again(copy: Copy) -> None:
    copy.run("-m", "demo")
    copy.steps()
    copy.folder = copy.folder.rename(copy.folder.with_name("moved"))
    assert copy.run("-m", "demo")[0] == 0
    assert copy.steps()[0] == "venv --clear"


def test_an_environment_whose_python_is_gone_is_made_again(copy: Copy) -> None:
    copy.run("-m", "demo")
    copy.steps()
    (copy.folder / ".venv/bin/python").unlink()
    assert copy.run("-m", "demo")[0] == 0
    assert copy.steps()[0] == "venv --clear"


def own_environment(copy: Copy, *packages: str) -> Path:
    """A .venv that run.sh did not make; the folder of its packages."""
    folder = copy.folder / ".venv/lib/python3.11/site-packages"
    for package in packages:
        (folder / f"{package}.dist-info").mkdir(parents=True)
    return folder


def test_an_environment_of_somebody_s_own_is_left_alone(copy: Copy) -> None:
    packages = own_environment(copy, "pip-24.0", "thesis-1.0")
    code, out, err = copy.run("-m", "demo")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"run.sh: error: wanted no {copy.folder}/.venv, or one ")
    assert (packages / "thesis-1.0.dist-info").exists()
    assert copy.steps() == []


def test_one_with_pip_alone_is_filled(copy: Copy) -> None:
    own_environment(copy, "pip-24.0")
    assert copy.run("-m", "demo")[:2] == (0, "gyrfalcon <demo>\n")
    assert copy.steps()[0] == "venv --clear"


def test_one_in_which_this_source_is_installed_is_used(copy: Copy) -> None:
    packages = environment_of(copy.folder / ".venv", copy.folder / "src/gyrfalcon", editable=True)
    (packages / "gyrfalcon-0.1.0.dist-info").mkdir()
    copy.program(copy.folder / ".venv/bin/gyrfalcon", SHOW_ARGUMENTS)
    assert copy.run("-m", "demo") == (0, "gyrfalcon <demo>\n", "")
    assert copy.steps() == []


def test_two_first_runs_at_once_set_up_once(copy: Copy, tmp_path: Path) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    go = tmp_path / "go"
    with (
        copy.start("-m", "demo", PIP_WAITS_FOR=str(go)) as first,
        copy.start("-m", "doctor", PIP_WAITS_FOR=str(go)) as second,
    ):
        waiting = "run.sh: waiting for another set-up to finish\n"
        said = [process.stderr.readline() for process in (first, second) if process.stderr]
        go.touch()
        outputs = [process.communicate() for process in (first, second)]
    assert [out for out, _ in outputs] == ["gyrfalcon <demo>\n", "gyrfalcon <doctor>\n"]
    waited = said.index(waiting)
    assert outputs[waited][1] == ""
    assert said[1 - waited].startswith("run.sh: setting up ")
    assert len(copy.steps()) == 3


def test_ctrl_c_during_a_download_ends_the_set_up(copy: Copy, tmp_path: Path) -> None:
    """Where the download ends as after an ordinary error, nothing else is tried."""
    copy.program(copy.fakes / "pip", f"trap 'exit 1' INT\n{FAKE_PIP}")
    with copy.start("-m", "demo", PIP_WAITS_FOR=str(tmp_path / "never")) as process:
        while not any("--index-url" in step for step in copy.noted()):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "usual index" not in err
    assert len(copy.steps()) == 2


def test_an_old_python_is_one_clear_line(copy: Copy) -> None:
    code, _, err = copy.run("-m", "demo", PYTHON_IS_OLD="1")
    assert code == 2
    assert err.startswith(
        "run.sh: error: wanted Python 3.11 or newer as python3, got Python 3.9.11; "
    )
    assert err.count("\n") == 1


def checks(copy: Copy, *words: str, **codes: str) -> tuple[int, str]:
    """Runs -m test in an environment whose tools show their arguments; `codes` are the exit codes of some."""
    for tool in ("gyrfalcon", "ruff", "mypy", "pytest"):
        copy.program(copy.fakes / "env/bin" / tool, f"{SHOW_ARGUMENTS}; exit {codes.get(tool, 0)}")
    copy.program(copy.fakes / "env/bin/python", FAKE_PYTHON)
    environment: Mapping[str, str] = {"VIRTUAL_ENV": str(copy.fakes / "env")}
    code, out, _ = copy.run("-m", "test", *words, **environment)
    return code, out


def test_test_runs_every_check_and_says_which(copy: Copy) -> None:
    code, out = checks(copy, "--", "--require-data", "-k", "a b")
    assert code == 0
    assert out.splitlines() == [
        "+ ruff check .",
        "ruff <check> <.>",
        "+ ruff format --check .",
        "ruff <format> <--check> <.>",
        "+ mypy -n 2",
        "mypy <-n> <2>",
        "+ pytest -n 2 --dist loadfile --no-loadscope-reorder --require-data -k a b",
        "pytest <-n> <2> <--dist> <loadfile> <--no-loadscope-reorder> <--require-data> <-k> <a b>",
    ]


def test_test_ends_with_the_first_failures_code_but_runs_all(copy: Copy) -> None:
    code, out = checks(copy, mypy="3", pytest="5")
    assert code == 3
    assert "+ pytest" in out


def test_test_installs_the_test_tools_too(copy: Copy) -> None:
    copy.run("-m", "demo")
    copy.steps()
    assert "the checks need" in copy.run("-m", "test")[2]
    assert copy.steps()[-1].startswith("pip install --quiet -e .[test] with ")
    copy.run("-m", "demo")
    assert copy.steps() == []


def test_tests_refuse_to_run_the_source_of_another_clone(tmp_path: Path) -> None:
    other, hook = tmp_path / "other/src/gyrfalcon", tmp_path / "hook"
    shutil.copytree(
        REPOSITORY / "src/gyrfalcon", other, ignore=shutil.ignore_patterns("*.safetensors")
    )
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(FINDER.format(file=str(other / "__init__.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "--co", __file__],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(hook)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert f"wanted the source of {REPOSITORY}, got {other}; " in done.stderr
