"""The short form of scripts/faults; what its faulty disk does; that it leaves nothing behind."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from fault_checks import disk
from fault_checks.__main__ import JOBS, NAMES, main
from fault_checks.disk import FAULTS, FULL, KILL, POWER, READ_ONLY, FaultyDisk
from fault_checks.ending import ENDING, end_tidily
from fault_checks.forks import in_forks
from fault_checks.jobs import BRIEF, make_jobs
from fault_checks.writes import Job, disturbed, folder_bytes, undisturbed

from gyrfalcon.measure.mmlu import files

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in BRIEF:
            patch.setattr(module, name, value)  # and back afterwards
        yield make_jobs(tmp_path_factory.mktemp("faults") / "read")
    torch.set_num_threads(threads)


def start(script: str, *words: str, folder: Path) -> "subprocess.Popen[str]":
    """A script that keeps its temporary files in a folder."""
    folder.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [ROOT / "scripts" / script, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(
    script: "subprocess.Popen[str]", module: str, words: str = ""
) -> list[psutil.Process]:
    """What a script has started once its Python runs, with some words in the command; none at its end."""
    own = psutil.Process(script.pid)
    while script.poll() is None:
        with suppress(psutil.Error):
            found = [
                one for one in own.children(recursive=True) if words in " ".join(one.cmdline())
            ]
            if found and module in own.cmdline():
                return found
        time.sleep(0.02)
    return []


@pytest.mark.slow
def test_the_short_form_breaks_every_command_that_writes_and_a_server_and_all_holds(
    tmp_path: Path,
) -> None:
    script = start("faults", "--short", "--out", str(tmp_path), folder=tmp_path / "temporary")
    said = script.communicate()[0]
    assert script.returncode == 0, said
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    found = {(row["fault"], row["phase"]): row for row in rows}
    assert found.keys() == {*itertools.product(FAULTS, JOBS), ("kill", "decode")}
    assert {row["verdict"] for row in rows} == {"held"}
    server = found["kill", "decode"]
    assert (server["exit_code"], server["remains"]) == (1, "nothing")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "row"), [(signal.SIGTERM, "kill idle"), (signal.SIGINT, "kill cut")]
)
def test_the_script_takes_all_away_when_it_is_asked_to_end(
    number: signal.Signals, row: str, tmp_path: Path
) -> None:
    script = start("faults", "--only", row, "--out", str(tmp_path), folder=tmp_path / "temporary")
    children = children_of(script, "fault_checks")
    assert script.poll() is None, script.communicate()[0]
    script.send_signal(number)
    script.communicate()
    assert script.returncode == 128 + number
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_forks_are_ended_when_the_script_is_asked_to_end_while_it_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    fork = os.fork

    def never_ending(number: int) -> dict[str, object]:
        time.sleep(600)
        return {}

    def asked_to_end() -> int:
        child = fork()
        if child:
            made.append(child)
            signal.raise_signal(signal.SIGTERM)
        return child

    monkeypatch.setattr(os, "fork", asked_to_end)
    before = {number: signal.getsignal(number) for number in ENDING}
    end_tidily()
    try:
        with pytest.raises(SystemExit) as ended:
            in_forks(never_ending, 2, tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 128 + signal.SIGTERM
    assert len(made) == 1
    assert not psutil.pid_exists(made[0])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_hosts_of_namespaces_are_taken_away_when_the_script_is_asked_to_end(tmp_path: Path) -> None:
    words = ("run", "--", "generate", "nestling", "The falcon", "--max-new-tokens", "1900")
    script = start("netns-cluster", *words, "--ignore-eos", folder=tmp_path / "temporary")
    agents = children_of(script, "netns_cluster", "torch.distributed.run")
    if script.poll() is not None:
        assert script.returncode == 77, script.communicate()[0]
        pytest.skip("this machine makes no network namespaces")
    script.terminate()
    script.communicate()
    assert script.returncode == 128 + signal.SIGTERM
    assert psutil.wait_procs(agents, timeout=10)[1] == []
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"gyr{script.pid}" not in names


def at_loss(folder: Path, write: Callable[[], object], share: float) -> dict[str, bytes]:
    """What a loss of power leaves of what a fork of this process wrote, half of it or all of its names."""
    child = os.fork()
    if not child:
        disk = FaultyDisk(folder, POWER, 0)
        disk.install()
        write()
        disk._lose_power(disk._durable, share)  # type: ignore[arg-type]  # there is one
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return folder_bytes(folder)


def synchronised(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_a_loss_of_power_takes_what_was_not_synchronised(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()

    def write() -> None:
        (folder / "in time").write_bytes(b"1")
        synchronised(folder / "in time")
        synchronised(folder)
        (folder / "in time").write_bytes(b"22")
        (folder / "too late").write_bytes(b"1")
        synchronised(folder / "too late")  # its bytes, and not its name
        (folder / "never").write_bytes(b"1")
        (folder / "in time").rename(folder / "renamed")

    assert at_loss(folder, write, 0.0) == {"in time": b"1"}
    shutil.rmtree(folder)
    folder.mkdir()
    names_alone = {"renamed": b"1", "too late": b"1", "never": b""}
    assert at_loss(folder, write, 1.0) == names_alone


def test_a_rename_between_folders_is_whole_after_a_loss_of_power(tmp_path: Path) -> None:
    for number, synchronised_name in enumerate(("one", "other")):
        folder = tmp_path / str(number)
        for name in ("one", "other"):
            (folder / name).mkdir(parents=True)

        def write(folder: Path = folder, name: str = synchronised_name) -> None:
            (folder / "one" / "a").write_bytes(b"1")
            for path in (folder / "one" / "a", folder / "one", folder / "other", folder):
                synchronised(path)
            (folder / "one" / "a").rename(folder / "other" / "b")
            synchronised(folder / name)

        assert at_loss(folder, write, 0.0) == {"other/b": b"1"}


def test_a_result_that_is_not_on_the_disk_when_a_command_ends_is_noticed(
    jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls, expected = undisturbed(jobs["mmlu"], tmp_path / "whole")
    at_end = disturbed(jobs["mmlu"], POWER, num_calls + 1, tmp_path / "a", expected)
    assert at_end.broken == ""
    monkeypatch.setattr(files.Recorder, "_sync", lambda recorder: None)
    at_end = disturbed(jobs["mmlu"], POWER, num_calls + 1, tmp_path / "b", expected)
    assert "a result to stay, lost rows" in at_end.broken


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
    assert {*disk.CODES, KILL, POWER} == set(FAULTS)


def test_the_script_lists_its_rows_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert tuple(capsys.readouterr().out.splitlines()) == NAMES
    with pytest.raises(SystemExit) as ended:
        main(["--only", "meteor"])
    assert ended.value.code == 2
    assert "wanted words of a row, got 'meteor'" in capsys.readouterr().err
