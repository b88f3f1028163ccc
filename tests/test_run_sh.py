"""run.sh: the guide's flags become a gyrfalcon command, and .venv is made once.

It runs for real, in a copy whose path holds a space; python3, pip and all else it starts are shell scripts.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

SHOW_ARGUMENTS = 'printf "%s" "${0##*/}"; printf " <%s>" "$@"; echo'

# Stands for python3: knows its version, and makes an environment whose pip notes what it is asked to install.
FAKE_PYTHON = """
case $1 in
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
shift 2
sleep "${PIP_SECONDS:-0}"
echo "pip $* with $PIP_CONSTRAINT in $PWD" >>"$LOG"
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
        for name in ("python3", "python3.13", "python3.12", "python3.11"):
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
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def steps(self) -> list[str]:
        """What the set-ups did since the last call."""
        done = self.log.read_text().splitlines() if self.log.exists() else []
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
        ("-m speed -n CUT -f CSV -w 4", "<speed> <CUT> <-f> <CSV> <-w> <4>"),
        ("-m speed -n CUT", "<speed> <CUT> <-f> <1_batch_performance_falcon40b.csv>"),
        ("-m report A B -- -o DIR", "<report> <A> <B> <-o> <DIR>"),
        ("-m report -- A --baseline guide", "<report> <A> <--baseline> <guide>"),
        ("-m precision -n CUT -w 2", "<precision> <CUT> <-w> <2>"),
        ("-m precision -n M -- --golden", "<precision> <M> <--golden>"),
        ("-m mmlu -n CUT -d MMLU -w 2", "<mmlu> <CUT> <-d> <MMLU> <-w> <2>"),
        ("-m mmlu -n M -d D -- --split val", "<mmlu> <M> <-d> <D> <--split> <val>"),
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
        ("", "got none"),
        ("-m", "wanted a value after -m, got none"),
        ("-m fly", "got fly"),
        ("-m serve -n CUT -w 4", "got serve, which is not built yet"),
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
def test_wrong_usage_shows_the_usage_and_sets_nothing_up(copy: Copy, words: str, got: str) -> None:
    code, out, err = copy.run(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("run.sh: error: wanted ")
    assert got in err.splitlines()[0]
    assert "Usage: bash run.sh -m MODE" in err
    assert copy.steps() == []


def test_help_is_the_usage_and_sets_nothing_up(copy: Copy) -> None:
    code, out, err = copy.run("-m", "cut", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: bash run.sh -m MODE")
    assert copy.steps() == []


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_has_the_package_is_used(
    copy: Copy, tmp_path: Path, variable: str
) -> None:
    copy.program(tmp_path / "my env/bin/gyrfalcon", SHOW_ARGUMENTS)
    assert copy.run("-m", "demo", **{variable: str(tmp_path / "my env")})[1] == "gyrfalcon <demo>\n"
    assert not (copy.folder / ".venv").exists()


def test_an_active_environment_runs_the_source_beside_run_sh(active: Copy) -> None:
    active.program(active.fakes / "gyrfalcon", 'echo "$PYTHONPATH"')
    assert active.run("-m", "demo")[1] == f"{active.folder}/src\n"


def test_an_active_environment_without_the_package_is_left_alone(
    copy: Copy, tmp_path: Path
) -> None:
    copy.program(tmp_path / "env/bin/python", "exit 1")
    assert copy.run("-m", "demo", VIRTUAL_ENV=str(tmp_path / "env"))[0] == 0
    assert (copy.folder / ".venv/bin/gyrfalcon").exists()


def test_the_first_run_installs_torch_then_the_package(copy: Copy) -> None:
    code, out, err = copy.run("-m", "demo")
    assert (code, out) == (0, "gyrfalcon <demo>\n")
    place = f"with constraints.txt in {copy.folder}"
    assert copy.steps() == [
        "venv --clear",
        f"pip install --quiet torch {place}",
        f"pip install --quiet -e .[report] {place}",
    ]
    assert err.startswith("run.sh: setting up ")


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


def test_two_first_runs_at_once_set_up_once(copy: Copy) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    first = copy.start("-m", "demo", PIP_SECONDS="0.5")
    while not copy.log.exists():
        time.sleep(0.01)
    second = copy.start("-m", "doctor")
    assert first.communicate(timeout=30)[0] == "gyrfalcon <demo>\n"
    out, err = second.communicate(timeout=30)
    assert (out, err) == ("gyrfalcon <doctor>\n", "run.sh: waiting for another set-up to finish\n")
    assert len(copy.steps()) == 3


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
        "+ mypy",
        "mypy <>",
        "+ pytest -n 2 --dist loadfile --require-data -k a b",
        "pytest <-n> <2> <--dist> <loadfile> <--require-data> <-k> <a b>",
    ]


def test_test_ends_with_the_first_failures_code_but_runs_all(copy: Copy) -> None:
    code, out = checks(copy, mypy="3", pytest="5")
    assert code == 3
    assert "+ pytest" in out


def test_test_installs_the_test_tools_too(copy: Copy) -> None:
    copy.run("-m", "demo")
    copy.steps()
    copy.run("-m", "test")
    assert copy.steps()[-1].startswith("pip install --quiet -e .[test] with ")
    copy.run("-m", "demo")
    assert copy.steps() == []
