"""Where results go: checked before the work, replaced as a whole, written through where a pipe is."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gyrfalcon.cli.main import main
from gyrfalcon.errors import UsageError
from gyrfalcon.files.output import check_folder, open_output, remove_parts, replace_file, replacing

NO_CUT = ("verify", "no-such-cut")  # fails as soon as it runs
SPEED = ["speed", "nestling", "--in", "8", "--out", "2", "--repeats", "1", "--max-len", "64"]


def refusal(path: object, option: str = "--json", *, regular: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        open_output(str(path), option, regular=regular)
    return str(caught.value)


# gyrfalcon with limits of the machine that are measured in a moment.
BRIEFLY = """
import sys
from gyrfalcon.cli.main import main
from gyrfalcon.device import cpu, rates
rates.LEAST_ROUNDS, rates.ROUNDS_SECONDS, rates.PRODUCT_SIZES, cpu.READ_BYTES = 1, 0, (512,), 4 << 20
sys.exit(main())
"""


def bash(script: str, *gyrfalcon: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in which "$@" is gyrfalcon."""
    command = ["bash", "-c", script, "bash", sys.executable, *(gyrfalcon or ("-m", "gyrfalcon"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# ---- regular files ----


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("old")
    file.chmod(0o640)
    with file.open() as reader:
        open_output(str(file), "--json").write("new")
        assert reader.read() == "old"  # whoever reads it has the whole old one
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_missing_folders_are_made_with_the_result_and_not_before(tmp_path: Path) -> None:
    target = open_output(str(tmp_path / "a/b/x.json"), "--json")
    assert not (tmp_path / "a").exists()
    target.write("{}")
    assert (tmp_path / "a/b/x.json").read_text() == "{}"


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/x.json")
    for text in ("first", "second"):  # a target that is missing, one that is there
        open_output(str(link), "--json").write(text)
        assert link.is_symlink()
        assert (tmp_path / "there/x.json").read_text() == text


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")

    def fail() -> None:
        with replacing(file) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    script = (
        "import os, sys; from pathlib import Path; from gyrfalcon.files.output import replacing\n"
        "with replacing(Path(sys.argv[1])) as part: part.write_text('half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".result.json.part"]
    open_output(str(file), "--json")
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    part = tmp_path / ".x.part"
    with part.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_parts(tmp_path)
        assert part.exists()
    remove_parts(tmp_path)
    assert not part.exists()


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "x"
    texts = [letter * 200_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=replace_file, args=(file, text.encode())) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_cannot_be_moved_over_gets_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a container was given as a mount."""
    file = tmp_path / "x"
    file.write_text("a longer old text")

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    replace_file(file, b"new")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("é" * 125 + ".json")
    open_output(str(file), "--json").write("{}")
    assert file.read_text() == "{}"


def test_half_a_surrogate_pair_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    open_output(str(file), "--json").write(json.dumps("we-\udcff", ensure_ascii=False))
    assert json.loads(file.read_text()) == "we-\udcff"


# ---- refusals, before the work and in the user's words ----


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (".", "wanted a file for --json, got the folder .; name a file in it"),
        ("", "wanted a file for --json, got the folder ''"),
        ("made-by-nobody/", "wanted a file for --json, got the folder 'made-by-nobody/'"),
        ("/proc/x.json", "wanted a file for --json that can be written, got /proc/x.json ("),
        ("/proc/a/x.json", "got /proc/a/x.json ("),
        ("/dev/null/x.json", "got /dev/null/x.json (Not a directory)"),
        ("x" * 300, f"got {'x' * 300} (File name too long)"),
        ("/dev/fd/987", "got /dev/fd/987 (Bad file descriptor)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*NO_CUT, "--json", path]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert ".part" not in err
    assert list(tmp_path.iterdir()) == []


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("link")
    assert "Too many levels of symbolic links" in refusal(link)
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path)
    assert "the folder" in refusal(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_disk_is_never_written_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    os.mknod(disk, 0o060600, os.makedev(7, 255))
    assert "wanted a regular file for --json" in refusal(disk)


def test_a_file_that_is_open_for_reading_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with (tmp_path / "x").open() as stream:
        assert "open for reading only" in refusal(f"/dev/fd/{stream.fileno()}")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout"])
def test_a_reference_needs_a_file_that_can_be_read_again(path: str) -> None:
    refused = refusal(path, "--save-reference", regular=True)
    assert "wanted a regular file for --save-reference" in refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["precision", "m", "--save-reference", "/proc/x"], "--save-reference that can be written"),
        (["precision", "m", "--save-reference", "/dev/null"], "a regular file for --save-ref"),
        (["speed", "m", "-f", "/proc/x.csv"], "a file for -f that can be written"),
        (["speed", "m", "-f", "."], "got the folder ."),
        (["mmlu", "m", "-d", "d", "-o", "/proc/x"], "a folder for -o that can be written"),
        (["mmlu", "m", "-d", "d", "-o", __file__], f"a folder for -o, got the file {__file__}"),
        (["report", "r.json", "--no-plots", "-o", "/proc/x"], "a folder for -o that can"),
        (["report", "r.json", "--no-plots", "-o", __file__], "a folder for -o, got the file"),
        (["demo", "-o", "/proc/x"], "a folder for -o that can be written"),
        (["demo", "-o", __file__], "a folder for -o, got the file"),
        (["cut", "m", "/proc/x/cut", "-w", "2"], "got /proc/x ("),
        (["cut", "m", __file__, "-w", "2"], f"got the file {__file__}"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_every_output_is_checked_before_the_model_is_looked_for(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # where neither m nor d is
    assert main(words) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_not_made_by_the_check(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a/b", "-o") == tmp_path / "a/b"
    assert list(tmp_path.iterdir()) == []


# ---- what is no regular file ----


def test_a_device_is_written_through(tmp_path: Path) -> None:
    before = os.stat("/dev/null")
    open_output("/dev/null", "--json").write("{}")
    assert os.path.samestat(before, os.stat("/dev/null"))
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    open_output(str(link), "--json").write("{}")
    assert link.is_symlink()


def test_a_named_pipe_gives_its_reader_the_result(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    target = open_output(str(fifo), "--json")
    target.write("the result" * 20_000)  # more than a pipe holds
    assert target.descriptor is not None
    os.close(target.descriptor)
    reader.join()
    assert read == ["the result" * 20_000]
    assert fifo.is_fifo()


@pytest.mark.parametrize(
    "script",
    [
        '"$@" doctor --quick --json >(cat) >/dev/null',
        '"$@" doctor --quick --json /dev/stdout | sed 1,/^checks/d',
        '"$@" doctor --quick --json /dev/fd/5 5>&1 >/dev/null',
        '"$@" doctor --quick --json - | cat',
    ],
)
def test_results_go_through_what_the_shell_gives(script: str) -> None:
    done = bash(script)
    text = done.stdout + done.stderr
    assert "gyrfalcon" in json.loads(text[text.index("{") :])


def test_standard_output_in_a_file_keeps_what_was_printed(tmp_path: Path) -> None:
    done = bash(f'"$@" doctor --quick --json /dev/stdout > {tmp_path}/out')
    assert done.returncode in (0, 1)  # 1: something is wrong with this machine
    assert done.stderr == ""
    text = (tmp_path / "out").read_text()
    assert text.startswith("gyrfalcon ")
    assert "gyrfalcon" in json.loads(text[text.index("{") :])


@pytest.mark.slow
def test_a_sweep_into_a_pipe_measures_once_and_reads_nothing_back() -> None:
    done = bash(f'"$@" {" ".join(SPEED)} --json >(cat) -f >(cat >&2)', "-c", BRIEFLY)
    document = json.loads(done.stdout[done.stdout.index("{\n") : done.stdout.rindex("}") + 1])
    assert [row["output_len"] for row in document["result"]["rows"]] == [2]
    assert "Batch, MaxSeqLen" in done.stderr
