"""What is called finished outlives a loss of power: the order of fsyncs and renames, and journals that
are on their way to the disk after every answer.
"""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from durable_disk import DurableDisk
from exams import answer

from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.recut import merge
from gyrfalcon.measure.mmlu.exam import Question, Subject
from gyrfalcon.measure.mmlu.files import Recorder, unfinished

SHARD_BYTES = 90_000  # several stages


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "hf"
    shape = {"hidden_size": 64, "num_attention_heads": 8, "num_kv_heads": 2}
    make_checkpoint(folder, "40b", dtype=torch.bfloat16, **shape)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("whole") / "cut"
    cut(checkpoint, target, 2, max_shard_bytes=SHARD_BYTES)
    return target


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> DurableDisk:
    return DurableDisk(monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["cut", "merged"])
def test_a_folder_that_has_its_name_is_whole_after_a_loss_of_power(
    kind: str, checkpoint: Path, whole: Path, tmp_path: Path, disk: DurableDisk
) -> None:
    """Before the rename into place all of the folder is on the disk, after it the name is, too."""
    target, published = tmp_path / "target", []

    def see(source: Path, place: Path) -> None:
        if place == target:
            published.append(source)
            assert disk.left_of(source) == contents(source)

    disk.before_rename.append(see)
    if kind == "cut":
        cut(checkpoint, target, 2, max_shard_bytes=SHARD_BYTES)
    else:
        merge(whole, target)
    assert len(published) == 1
    left = disk.left_of(tmp_path)
    assert {
        f"target/{file}": found for file, found in contents(target).items()
    }.items() <= left.items()


def test_progress_never_tells_of_a_file_whose_bytes_could_still_be_lost(
    checkpoint: Path, tmp_path: Path, disk: DurableDisk
) -> None:
    told: set[str] = set()

    def see(source: Path, target: Path) -> None:
        if target.name == "progress.json":
            assert disk.keeps(source)
            for file in json.loads(source.read_text())["files"]:
                told.add(file)
                assert disk.keeps(target.parent / "new" / file), file

    disk.before_rename.append(see)
    cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert told == set(contents(tmp_path / "cut"))


def test_an_answer_is_in_the_journal_before_the_next_is_computed(tmp_path: Path) -> None:
    identity = {"format": "x"}
    asked = [Question(number, "Which?", ("a", "b", "c", "d"), "A") for number in range(3)]
    exam = [Subject("birds", "other", (), tuple(asked))]
    answers = [answer("birds", number, "A", "B") for number in range(3)]
    with closing(Recorder(tmp_path, identity, [])) as recorder:
        for number, one in enumerate(answers, 1):
            recorder.write(one)
            assert unfinished(tmp_path, identity, exam) == answers[:number]
