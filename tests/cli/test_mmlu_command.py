"""The mmlu command: its files, runs that survive a kill, what is refused before a run."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_exam_taker
from exams import Data, answer, document

from gyrfalcon.cli import mmlu_run
from gyrfalcon.cli.main import main
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.mmlu.exam import read_exam
from gyrfalcon.measure.mmlu.files import Recorder, alone_in, unfinished
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import answer_json
from gyrfalcon.measure.published import MMLUFigure, PublishedFigures


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam_taker(tmp_path_factory.mktemp("model") / "tiny", data("falcon-tokenizer"))


def command(model: Path, exam_folder: Path, output: Path, *more: str) -> list[str]:
    words = ["mmlu", str(model), "-d", str(exam_folder), "-o", str(output), "--shots", "2"]
    return [*words, "--max-len", "256", *more]


def cache_rows(output: Path) -> list[list[str]]:
    with (output / "cache0.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_command_writes_the_guides_files(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(model, exam_folder, tmp_path)) == 0
    assert "all questions" in capsys.readouterr().out
    written = json.loads((tmp_path / "mmlu.json").read_text())["result"]
    rows = cache_rows(tmp_path)
    assert rows[0] == ["task", "question_id", "truth", "pred"]
    assert sorted(rows[1:]) == sorted(
        [p["subject"], str(p["id"]), p["truth"], p["pred"]] for p in written["predictions"]
    )
    right = {
        name: sum(row[2] == row[3] for row in rows if row[0] == name)
        for name in ("birds", "sums_of_two")
    }
    accuracies = json.loads((tmp_path / "result_0_subject_acc.json").read_text())
    assert accuracies == {"birds": right["birds"] / 3, "sums_of_two": right["sums_of_two"] / 4}
    classes = json.loads((tmp_path / "result_0_classes_acc.json").read_text())
    assert list(classes) == ["STEM", "other", "social sciences", "humanities", "Avg"]
    assert classes["Avg"] == written["accuracy"] == sum(right.values()) / 7
    assert all(len(p["logprobs"]) == 4 for p in written["predictions"])
    assert "birds: " in (tmp_path / "device0.log").read_text()


def test_two_runs_at_once_never_write_to_one_folder(
    model: Path,
    exam_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = command(model, exam_folder, tmp_path)
    with alone_in(tmp_path):
        assert main(words) == 2
    assert "for this run alone, got one at work in it; wait for it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

    def while_loading(description: str, notes: object) -> None:
        monkeypatch.undo()
        assert main(words) == 0  # another run begins and ends

    monkeypatch.setattr(mmlu_run, "say_ready", while_loading)
    assert main(words) == 2
    assert "got mmlu.json of an earlier run" in capsys.readouterr().err
    assert (tmp_path / "mmlu.json").exists()


def test_figures_that_nobody_published_are_refused_before_the_run(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(command(model, exam_folder, output, "--published")) == 2
    told = capsys.readouterr().err
    assert "wanted a model with published MMLU figures (falcon-" in told
    assert f"got {model}, for which none are known; leave --published out" in told
    assert not output.exists()


def test_a_run_that_cannot_be_compared_is_refused_before_it(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(model, exam_folder, one, "--limit", "1", "--subjects", "birds")) == 0
    shown = capsys.readouterr()
    name = f"the exam in {exam_folder.name}/"
    assert f"{name}, test, hendrycks, 2 shots, 1 of 7 questions of 1 subject\n" in shown.out
    assert "1 question in " in shown.err
    assert "0 of 1 question answered" in (one / "device0.log").read_text()
    earlier = str(one / "mmlu.json")
    assert main(command(model, exam_folder, two, "--compare", earlier)) == 2
    assert (
        f"wanted two runs with the same questions, got A (this run): {name}, 7 questions of "
        f"2 subjects, sums_of_two among them; B ({earlier}): {name}, 1 question of 1 subject; compare"
    ) in " ".join(capsys.readouterr().err.split())
    assert not two.exists()


KILLED = """
import os, signal, sys
from gyrfalcon.cli.main import main
from gyrfalcon.cli import mmlu_run
from gyrfalcon.measure.mmlu.files import Recorder

def write(self, answer):
    whole(self, answer)
    written.append(answer)
    if len(written) == 20:
        os.kill(os.getpid(), signal.SIGKILL)

written, whole, Recorder.write = [], Recorder.write, write
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_without_counting_twice(
    model: Path, exam_folder: Path, tmp_path: Path, data: Data
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*command(model, data("mmlu"), broken, "--limit", "40"), "--shots", "0"]
    words += ["--subjects", "astronomy,virology,world_religions"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], env=environment())
    assert done.returncode == -signal.SIGKILL
    kept = len(journal_lines(broken)) - 1
    assert kept == 20
    with (broken / "journal0.jsonl").open("a") as file:
        file.write('{"subject": "astro')  # a line that the kill cut short
    assert main(words) == 0
    assert main([str(whole) if word == str(broken) else word for word in words]) == 0
    resumed, fresh = (json.loads((f / "mmlu.json").read_text())["result"] for f in (broken, whole))
    assert (resumed["num_resumed"], resumed["num_computed"]) == (kept, 120 - kept)
    assert [p["pred"] for p in resumed["predictions"]] == [p["pred"] for p in fresh["predictions"]]
    assert resumed["subjects"] == fresh["subjects"]
    assert sorted(cache_rows(broken)) == sorted(cache_rows(whole))
    assert len(cache_rows(broken)) == 121


def journal_lines(output: Path) -> list[str]:
    path = output / "journal0.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


Facts = dict[str, object]
IDENTITY: Facts = {"model": "m", "model_files": "1", "shots": 5, "exam_sha256": "a"}
TYPED: Facts = {"data": "d", "limit": None, "subjects": None}


def journal(folder: Path, identity: Facts, *lines: object) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in (identity, *lines))
    (folder / "journal0.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("identity", "typed", "told"),
    [
        ({"shots": 4}, {}, "that one had --shots 5;"),
        ({"exam_sha256": "b"}, {"limit": 7}, "that one had no --limit;"),
        ({"exam_sha256": "b"}, {}, "that one had other questions;"),
        ({"model": "n", "model_files": "2"}, {}, "had model m and model files that have changed"),
        ({"shots": 4, "exam_sha256": "b"}, {"subjects": "x"}, "had --shots 5 and no --subjects;"),
    ],
)
def test_a_run_that_cannot_go_on_says_what_differs(
    identity: Facts, typed: Facts, told: str, tmp_path: Path, exam_folder: Path
) -> None:
    exam, found = read_exam(exam_folder, "test"), answer("birds", 0, "A", "B")
    journal(tmp_path, {**IDENTITY, "options": TYPED}, answer_json(found))
    moved = {**IDENTITY, "options": {**TYPED, "data": "elsewhere"}}
    assert unfinished(tmp_path, moved, exam) == [found]
    now = {**IDENTITY, **identity, "options": {**TYPED, **typed}}
    with pytest.raises(UsageError) as caught:
        unfinished(tmp_path, now, exam)
    assert told in str(caught.value)
    assert "overwrite=True" in str(caught.value)


def test_a_journal_without_an_answer_is_no_run(tmp_path: Path, exam_folder: Path) -> None:
    journal(tmp_path, IDENTITY)
    exam = read_exam(exam_folder, "test")
    assert unfinished(tmp_path, {**IDENTITY, "shots": 4}, exam) == []


@pytest.mark.parametrize("name", ["mmlu.json", "result_0_subject_acc.json"])
def test_results_in_the_folder_are_not_replaced_unasked(
    name: str, tmp_path: Path, exam_folder: Path
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=f"got {name} of an earlier run; name another folder"):
        unfinished(tmp_path, IDENTITY, read_exam(exam_folder, "test"))


def test_a_finished_run_is_replaced_with_overwrite_alone(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(model, exam_folder, tmp_path, "--limit", "1")
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    for again in (words, command(model, exam_folder, tmp_path)):
        assert main(again) == 2
        assert "-o, or add --overwrite\n" in capsys.readouterr().err
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*command(model, exam_folder, tmp_path), "--overwrite"]) == 0
    assert len(json.loads((tmp_path / "mmlu.json").read_text())["result"]["predictions"]) == 7


def interrupted_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C comes as soon as so many answers are kept."""
    whole = Recorder.write

    def write(self: Recorder, found: Answer) -> None:
        if self.num_answers == number:
            raise KeyboardInterrupt
        whole(self, found)

    monkeypatch.setattr(Recorder, "write", write)


def test_ctrl_c_tells_what_is_kept_and_how_to_go_on(
    model: Path, exam_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = command(model, exam_folder, tmp_path)
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert main(words) == 130
    told = f"2 of 7 questions answered and kept in {tmp_path}; run the same command again to go on"
    assert capsys.readouterr().err.endswith(f"gyrfalcon: interrupted; {told}\n")
    assert main(words) == 0
    assert json.loads((tmp_path / "mmlu.json").read_text())["result"]["num_resumed"] == 2


def test_a_run_that_answered_nothing_leaves_nothing(
    model: Path, exam_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    interrupted_after(0, monkeypatch)
    assert main(command(model, exam_folder, tmp_path / "new")) == 130
    assert capsys.readouterr().err.endswith("gyrfalcon: interrupted\n")
    (tmp_path / "mine").write_text("mine")
    assert main(command(model, exam_folder, tmp_path)) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_two_result_files_are_compared_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, pred in (("a", "A"), ("b", "B")):
        files.append(str(tmp_path / f"{name}.json"))
        found = document([answer("birds", 0, "A", pred)])
        Path(files[-1]).write_text(json.dumps(found | {"model": {"name": f"falcon-{name}"}}))
    assert main(["mmlu", "--compare", *files, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["mmlu", "--compare", *files]) == 0
    assert capsys.readouterr().out.startswith(
        f"A: {files[0]}, B: {files[1]}\n"
        "an exam, test, generate, 5 shots, 1 of 10 questions\n"
        "two models: A is falcon-a, B is falcon-b\n"
    )
    assert (told["all"]["only_first"], told["all"]["agreement"], told["all"]["p"]) == (1, 0.0, 1.0)
    assert told["runs"][1] == {"file": files[1], "model": "falcon-b"}


def test_figures_of_mmlu_are_not_put_beside_another_exam(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = MMLUFigure("a paper", "hendrycks", "test", 0.5, None, 14042, {}, {})
    monkeypatch.setattr(mmlu_run, "known", lambda config: PublishedFigures("tiny", (figure,), None))
    words = ["mmlu", "nestling", "-d", "nestling", "--published", "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "wanted MMLU after -d" in (told := capsys.readouterr().err)
    assert "got nestling's exam; leave --published out" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mmlu"], "a MODEL, or two result files"),
        (["mmlu", "m"], "-d DIR"),
        (["mmlu", "m", "-d", "d", "--compare", "a", "b"], "one result file beside a MODEL"),
        (["mmlu", "m", "-d", "d", "--split", "dev"], "--split test | val"),
        *(
            (["mmlu", "--compare", "a", "b", *words], f"wanted a MODEL with {words[0]}, got none; ")
            for words in (["-d", "d"], ["--subjects", "x"], ["--limit", "3"], ["--published"])
        ),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
