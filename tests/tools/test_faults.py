"""The short form of scripts/faults: kills at write calls, failing disks, a killed rank."""

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_checks import disk
from fault_checks.__main__ import JOBS, NAMES, main
from fault_checks.disk import FAULTS, FULL, KILL, READ_ONLY, FaultyDisk
from fault_checks.jobs import BRIEF, make_jobs
from fault_checks.writes import Job, disturbed, faults_of, undisturbed

pytestmark = pytest.mark.processes
EVERY = {"cut": 12, "recut": 20, "merge": 12, "mmlu": 18, "speed": 25}  # of a job's write calls


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in BRIEF:
            patch.setattr(module, name, value)  # and back afterwards
        yield make_jobs(tmp_path_factory.mktemp("faults") / "read")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", JOBS)
def test_a_command_whose_disk_fails_at_a_write_call_goes_on_to_the_same_result(
    name: str, jobs: dict[str, Job], tmp_path: Path
) -> None:
    outcomes = list(faults_of(jobs[name], tmp_path, EVERY[name]))
    assert {outcome.fault for outcome in outcomes} == set(FAULTS)
    assert [outcome for outcome in outcomes if outcome.broken] == []


def test_another_result_or_a_file_left_behind_is_noticed(
    jobs: dict[str, Job], tmp_path: Path
) -> None:
    job = jobs["cut"]
    _, expected = undisturbed(job, tmp_path / "whole")
    assert (
        "another: new/x"
        in disturbed(
            job,
            KILL,
            5,
            tmp_path / "a",
            {**expected, "new/x": b""},  # type: ignore[dict-item]  # a folder's files
        ).broken
    )

    def litter(place: Path) -> None:
        (place / "out").mkdir(exist_ok=True)
        (place / "out" / ".x.part").touch()

    untidy = Job(job.name, job.words, lambda place: expected, litter)
    assert "no temporary file" in disturbed(untidy, KILL, 5, tmp_path / "b", expected).broken


def at_call(fault: str, number: int, folder: Path) -> int:
    """How a process ends that makes a folder, writes ten bytes to a file in it and renames it."""
    child = os.fork()
    if not child:
        FaultyDisk(folder, fault, number).install()
        code = 0
        try:
            (folder / "new").mkdir()
            (folder / "new" / "a").write_bytes(b"0123456789")
            (folder / "new" / "a").rename(folder / "new" / "b")
        except OSError as error:
            code = error.errno or 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_disk_fails_at_the_call_that_it_was_told(tmp_path: Path) -> None:
    found = {}
    for number in range(1, 6):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = at_call(KILL, number, folder)
        left = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        found[number] = (code, left)
    killed = -signal.SIGKILL
    assert found[1] == (killed, {})  # mkdir
    assert found[2] == (killed, {})  # open
    assert found[3] == (killed, {"a": 5})  # half of a write
    assert found[4] == (killed, {"a": 10})  # rename
    assert found[5] == (0, {"b": 10})
    assert at_call(FULL, 1, tmp_path / "5") == errno.ENOSPC
    assert at_call(READ_ONLY, 1, tmp_path / "5") == errno.EROFS
    assert set(disk.CODES) | {KILL} == set(FAULTS)


@pytest.mark.slow
def test_a_killed_rank_ends_a_server_under_load_with_a_line_and_nothing_remains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--only", "kill decode", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    [row] = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert (row["exit_code"], row["remains"], row["verdict"]) == (1, "nothing", "held")


def test_the_script_lists_its_rows_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert tuple(capsys.readouterr().out.splitlines()) == NAMES
    with pytest.raises(SystemExit) as ended:
        main(["--only", "meteor"])
    assert ended.value.code == 2
    assert "wanted words of a row, got 'meteor'" in capsys.readouterr().err
