"""The mmlu command: its files, runs that survive a kill, what is refused before a run."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from exams import Data, answer, document, make_model

from gyrfalcon.cli import main
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.exam import read_exam
from gyrfalcon.measure.mmlu_files import unfinished
from gyrfalcon.measure.mmlu_score import answer_json


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", data)


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


def test_figures_that_nobody_published_are_refused_before_the_run(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(command(model, exam_folder, output, "--golden")) == 2
    told = capsys.readouterr().err
    assert "wanted a model with published MMLU figures (falcon-" in told
    assert f"got {model}, for which none are known; leave --golden out" in told
    assert not output.exists()


def test_a_run_that_cannot_be_compared_is_refused_before_it(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(model, exam_folder, one, "--limit", "1", "--subjects", "birds")) == 0
    shown = capsys.readouterr()
    assert "hendrycks, test, 2 shots, 1 subject\n" in shown.out
    assert "1 question in " in shown.err
    assert "0 of 1 question answered" in (one / "device0.log").read_text()
    earlier = str(one / "mmlu.json")
    assert main(command(model, exam_folder, two, "--compare", earlier)) == 2
    assert (
        "wanted two runs with the same questions, got A (this run): 7 questions of 2 subjects, "
        f"sums_of_two among them; B ({earlier}): 1 question of 1 subject; compare"
    ) in " ".join(capsys.readouterr().err.split())
    assert not two.exists()


KILLED = """
import os, signal, sys
from gyrfalcon.cli import main
from gyrfalcon.measure.mmlu_files import Recorder

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


def test_an_unfinished_run_of_something_else_is_not_gone_on_with(
    tmp_path: Path, exam_folder: Path
) -> None:
    exam = read_exam(exam_folder, "test")
    found = answer("birds", 0, "A", "B")
    identity: dict[str, object] = {"model": "m", "shots": 5}
    text = f"{json.dumps(identity)}\n{json.dumps(answer_json(found))}\n"
    (tmp_path / "journal0.jsonl").write_text(text)
    assert unfinished(tmp_path, identity, exam) == [found]
    with pytest.raises(UsageError, match="another shots"):
        unfinished(tmp_path, {**identity, "shots": 4}, exam)
    (tmp_path / "journal0.jsonl").write_text(text + '{"finished": true}\n')
    assert unfinished(tmp_path, {**identity, "shots": 4}, exam) == []


def test_two_result_files_are_compared_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, pred in (("a", "A"), ("b", "B")):
        files.append(str(tmp_path / f"{name}.json"))
        found = document([answer("birds", 0, "A", pred)])
        Path(files[-1]).write_text(json.dumps(found))
    assert main(["mmlu", "--compare", *files, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["mmlu", "--compare", *files]) == 0
    assert capsys.readouterr().out.startswith(f"A: {files[0]}, B: {files[1]}\n")
    assert (told["all"]["only_first"], told["all"]["agreement"], told["all"]["p"]) == (1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mmlu"], "a MODEL, or two result files"),
        (["mmlu", "m"], "-d DIR"),
        (["mmlu", "m", "-d", "d", "--compare", "a", "b"], "one result file beside a MODEL"),
        (["mmlu", "m", "-d", "d", "--split", "dev"], "--split test | val"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
