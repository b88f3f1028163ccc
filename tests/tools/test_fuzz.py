"""Damaged files of every kind, a few seconds of what scripts/fuzz does for minutes; and the laws notice."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import loop
from fuzzing.__main__ import main
from fuzzing.laws import BYTES_PER_BYTE, FREE_BYTES, Broken, check
from fuzzing.mutations import mutate_bytes, mutate_json
from fuzzing.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gyrfalcon.errors import CheckpointError, OutOfMemory


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_accepted_or_refused_with_one_line(name: str, tmp_path: Path) -> None:
    bench = loop.Bench(TARGETS[name], tmp_path, loop.auditor())

    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def damaged(chance: random.Random) -> None:
        assert bench.trial(TARGETS[name].mutate(bench.whole, chance)) is None

    damaged()
    assert bench.found.num_files >= 40
    assert bench.found.lines or name == "prompts"


def quiet() -> None:
    pass


def refuses_badly() -> None:
    raise CheckpointError("a file", "", "fetch it")


def lacks_memory() -> None:
    raise OutOfMemory("memory", "none", "free some")


def raises() -> None:
    raise KeyError("name")


def takes_memory() -> None:
    assert bytearray(b"x" * (FREE_BYTES + BYTES_PER_BYTE * 100 + (8 << 20)))


def reads_outside() -> None:
    Path("/etc/hostname").exists()
    with open("/etc/passwd"):
        pass


def starts_something() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


BREAKS: dict[Callable[[], None], str] = {
    refuses_badly: "says what came",
    lacks_memory: "exit code 2",
    raises: "got KeyError",
    takes_memory: "at most",
    reads_outside: "/etc/passwd",
    starts_something: "nothing outside",
}


@pytest.mark.parametrize("read", BREAKS, ids=lambda read: read.__name__)
def test_each_law_notices_what_breaks_it(read: Callable[[], None], tmp_path: Path) -> None:
    assert check(quiet, tmp_path, 100, loop.auditor()) == ""
    with pytest.raises(Broken, match=BREAKS[read]):
        check(read, tmp_path, 100, loop.auditor())


def test_a_reader_that_writes_or_reads_code_in_the_folder_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("")
    with pytest.raises(Broken, match="for writing"):
        check(lambda: (tmp_path / "x").write_text(""), tmp_path, 1, loop.auditor())
    with pytest.raises(Broken, match="read code"):
        check(lambda: (tmp_path / "evil.py").read_text(), tmp_path, 1, loop.auditor())


def test_a_link_in_the_folder_may_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "weights").write_text("w")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "weights")
    assert (
        check((tmp_path / "inside" / "link").read_text, tmp_path / "inside", 1, loop.auditor())
        == ""
    )


def test_the_same_chance_does_the_same_damage_and_reaches_every_value() -> None:
    raw = b'{"a": [1, 2.5, "x", null], "b": {"c": true}}'
    many = [mutate_json(raw, random.Random(seed)) for seed in range(3000)]
    assert many == [mutate_json(raw, random.Random(seed)) for seed in range(3000)]
    assert len(set(many)) > 2000
    assert b"../secret" in b"".join(many)
    assert {len(mutate_bytes(b"", random.Random(seed))) for seed in range(30)} > {0, 1}


def test_the_script_lists_refuses_and_ends_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TARGETS)
    for words in ([], ["nothing"], ["csv", "--minutes", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("fuzz: error: wanted ")
    words = ["csv", "--minutes", "0.01", "--engine", "chance", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "hold" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []
