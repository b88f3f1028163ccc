"""A job survives kills at every write call, of any worker: each row once, at most a part done again."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Timer

import pytest
from durable_disk import DurableDisk
from job_fixtures import plain_plan, run_lengths, write_rows, written

from gyrfalcon.errors import DiskFull, UsageError
from gyrfalcon.jobs import work
from gyrfalcon.jobs.claims import FIRST_PART, Claims
from gyrfalcon.jobs.folder import open_job
from gyrfalcon.jobs.plan import Plan
from gyrfalcon.jobs.source import source_files

NUM_ROWS, PART_ROWS = 11, 4
NUM_PARTS = 3
EXPECTED = [{"id": n, "length": n + 1} for n in range(NUM_ROWS)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = ({"id": n, "prompt": "x" * (n + 1)} for n in range(NUM_ROWS))
    return write_rows(tmp_path / "prompts.jsonl", rows)


class Killed:
    """Kills this process at its n-th write call: before it, or halfway through what it writes."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.left = number
        for name in ("fsync", "replace", "pwrite", "mkdir", "rename", "unlink"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        real_open = Path.open

        def counted_open(path: Path, mode: str = "r", *more: object, **named: object) -> object:
            file = real_open(path, mode, *more, **named)  # type: ignore[call-overload]  # as it was called
            is_written = mode in ("wb", "ab") and (path.suffix == ".part" or path.name == "log")
            return _Writer(file, self) if is_written else file

        patch.setattr(Path, "open", counted_open)

    def count(self) -> bool:
        """Whether this write call is the one."""
        self.left -= 1
        return self.left == 0

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            if self.count():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return counted


class _Writer:
    """A file whose write is cut in half by the kill."""

    def __init__(self, file: object, killed: Killed) -> None:
        self._file, self._killed = file, killed

    def write(self, content: bytes) -> int:
        if self._killed.count():
            self._file.write(content[: len(content) // 2])  # type: ignore[attr-defined]
            self._file.flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(content)  # type: ignore[attr-defined]

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def forked(run: Callable[[], object]) -> int:
    """What a fork of this process that runs a function ends with, as waitpid says."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def begun(out: Path) -> int:
    """How many parts were begun, again ones included."""
    return (out / "log").read_text().count(" begun ") if (out / "log").exists() else 0


def assert_whole(out: Path) -> None:
    """Every row once, in order, as the sums say; nothing left over."""
    assert written(out) == EXPECTED
    result = json.loads((out / "result.json").read_text())
    assert result["num_rows"] == NUM_ROWS
    for part in result["parts"]:
        assert hashlib.sha256((out / part["file"]).read_bytes()).hexdigest() == part["sha256"]
    names = {path.name for path in out.iterdir()}
    parts = {f"part-{number:06d}.jsonl" for number in range(NUM_PARTS)}
    assert names == {"claims", "job.json", "log", "result.json", "sums", *parts}


def test_a_kill_at_any_write_call_loses_one_part_at_most(source: Path, tmp_path: Path) -> None:
    run_lengths(source, tmp_path / "whole", PART_ROWS)
    assert_whole(tmp_path / "whole")
    number, ended = 0, signal.SIGKILL.value
    while ended == signal.SIGKILL:
        number += 1
        out = tmp_path / f"killed-{number}"

        def killed(number: int = number, out: Path = out) -> None:
            Killed(pytest.MonkeyPatch(), number)
            run_lengths(source, out, PART_ROWS)

        ended = forked(killed)
        for line in written(out):  # what is there is right, whenever it is looked at
            assert line == EXPECTED[int(str(line["id"]))]
        run_lengths(source, out, PART_ROWS)
        assert_whole(out)
        assert begun(out) <= NUM_PARTS + 1
    assert ended == 0
    assert number > 10 * NUM_PARTS  # the kills were at different calls


def test_several_kills_in_a_row_lose_a_part_each(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (40, 7, 21, 9, 30):

        def killed(number: int = number) -> None:
            Killed(pytest.MonkeyPatch(), number)
            run_lengths(source, out, PART_ROWS)

        assert forked(killed) in (0, signal.SIGKILL)
    run_lengths(source, out, PART_ROWS)
    assert_whole(out)
    assert begun(out) <= NUM_PARTS + 5


def test_workers_share_the_parts_and_take_over_that_of_a_killed_one(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(work, "SAY_SECONDS", 0.1)
    out = tmp_path / "out"
    ready, go = os.pipe()

    def held() -> None:
        def begin(part: object) -> None:
            os.write(go, b"x")
            signal.pause()

        run_lengths(source, out, PART_ROWS, begin)

    child = os.fork()
    if child == 0:
        held()
    assert os.read(ready, 1) == b"x"  # it holds part 0
    parts: list[int] = []

    def begin(part: object) -> None:
        parts.append(part.number)  # type: ignore[attr-defined]
        if len(parts) == NUM_PARTS - 1:  # from here on there is nothing to do but to wait
            Timer(1.5, os.kill, (child, signal.SIGKILL)).start()

    run_lengths(source, out, PART_ROWS, begin)
    os.waitpid(child, 0)
    assert parts == [1, 2, 0]
    assert f"waiting for part 0 (process {child} on " in capsys.readouterr().out
    assert_whole(out)
    assert begun(out) == NUM_PARTS + 1


def test_who_holds_a_part_is_known(tmp_path: Path) -> None:
    with closing(Claims(tmp_path / "claims")) as claims:
        assert claims.take(FIRST_PART)

        def other() -> None:
            with closing(Claims(tmp_path / "claims")) as theirs:
                assert not theirs.take(FIRST_PART)
                assert not theirs.is_free(FIRST_PART)
                assert theirs.is_free(FIRST_PART + 1)
                assert theirs.owner(FIRST_PART).startswith(f"process {os.getppid()} on ")
                assert theirs.take(FIRST_PART + 1)

        assert forked(other) == 0
        claims.release(FIRST_PART)
        assert forked(other) != 0


def test_a_part_that_was_damaged_is_done_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_lengths(source, out, PART_ROWS)
    damaged = out / "part-000001.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"length", b"LENGTH"))
    (out / "part-000002.jsonl").unlink()
    run_lengths(source, out, PART_ROWS)
    assert_whole(out)


@pytest.mark.parametrize(
    "damage", [{"num_rows": "4"}, {"sha256": 5}, {"num_bytes": -1}, {"rest": 0}]
)
def test_a_part_with_damaged_sums_is_done_again(
    damage: dict[str, object], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_lengths(source, out, PART_ROWS)
    sums = out / "sums" / "part-000001.json"
    sums.write_text(json.dumps(json.loads(sums.read_text()) | damage))
    run_lengths(source, out, PART_ROWS)
    assert_whole(out)
    assert begun(out) == NUM_PARTS + 1


@pytest.mark.parametrize("part", [[1, 0, 1, 4], [0, 0, 1], [0, 0, 1, "4"], [0, 1 << 63, 1, 4]])
def test_a_plan_that_no_worker_can_have_written_is_refused(
    part: list[object], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_lengths(source, out, PART_ROWS)
    job = json.loads((out / "job.json").read_text())
    job["parts"][2] = part
    (out / "job.json").write_text(json.dumps(job))
    with pytest.raises(
        UsageError, match=r"the job that .*job\.json describes, got part 2 is damaged"
    ):
        run_lengths(source, out, PART_ROWS)


def test_a_job_that_others_work_on_is_not_discarded(source: Path, tmp_path: Path) -> None:
    out, files = str(tmp_path / "out"), source_files(str(source))
    settings: dict[str, object] = {"seed": None}
    plan = plain_plan(source, PART_ROWS)
    before = open_job(out, settings, files, lambda: plan, print, overwrite=True)
    assert forked(lambda: before.__enter__()) == 0  # has the folder alone, then ends

    def discard() -> None:
        expected = "for this worker alone, to discard what is in it, got others at work in it"
        again = open_job(out, settings, files, lambda: plan, print, overwrite=True)
        with pytest.raises(UsageError, match=expected), again:
            pass

    with open_job(out, settings, files, lambda: plan, print, overwrite=False):
        assert forked(discard) == 0
    assert forked(discard) != 0


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync, left = tmp_path / "out", os.fsync, [12]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, os.strerror(28))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="run the same command again: it goes on where it stopped"):
        run_lengths(source, out, PART_ROWS)
    monkeypatch.undo()
    assert 0 < len(written(out)) < NUM_ROWS
    run_lengths(source, out, PART_ROWS)
    assert_whole(out)


def test_a_loss_of_power_leaves_only_parts_that_are_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, disk = tmp_path / "out", DurableDisk(monkeypatch)
    renamed: list[str] = []

    def see(old: Path, new: Path) -> None:
        assert disk.keeps(old), f"{new} gets its name before its bytes are on the disk"
        if new.name.startswith("part-") and new.suffix == ".jsonl":
            assert f"{new.stem}.json" in disk.left_of(out / "sums")
        renamed.append(new.name)

    disk.before_rename.append(see)
    run_lengths(source, out, PART_ROWS)
    assert len(renamed) == 2 * NUM_PARTS + 2
    left = disk.left_of(out)
    for name in ("job.json", "result.json", *(f"part-{n:06d}.jsonl" for n in range(NUM_PARTS))):
        assert left[name] == (out / name).read_bytes()


def test_a_folder_of_anything_else_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"a new folder or the one of this job.*thesis\.tex"):
        run_lengths(source, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_prompts_that_changed_since_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_lengths(source, out)
    os.utime(source, (1, 1))
    run_lengths(source, out)  # the same content
    source.write_text(source.read_text().replace("xx", "xy", 1))
    with pytest.raises(UsageError, match="changed since"):
        run_lengths(source, out)


def test_a_job_goes_on_where_its_prompts_lie_now(source: Path, tmp_path: Path) -> None:
    def stop(part: object) -> None:
        if len(written(tmp_path / "out")) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lengths(source, tmp_path / "out", PART_ROWS, stop)
    (tmp_path / "elsewhere").mkdir()
    run_lengths(source.rename(tmp_path / "elsewhere" / source.name), tmp_path / "out", PART_ROWS)
    assert_whole(tmp_path / "out")


def test_a_plan_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def fails() -> Plan:
        raise UsageError("good rows", "bad ones", "correct them")

    out = tmp_path / "out"
    with (
        pytest.raises(UsageError, match="bad ones"),
        open_job(
            str(out), {"seed": None}, source_files(str(source)), fails, print, overwrite=False
        ),
    ):
        pass
    assert not out.exists()
