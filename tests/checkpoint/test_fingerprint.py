"""A model is known by the content of its files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gyrfalcon.checkpoint import fingerprint
from gyrfalcon.checkpoint.fingerprint import files_digest, model_identity
from gyrfalcon.engine_config import EngineConfig

SIZE = 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fingerprint, "END_BYTES", 100)
    (tmp_path / "model" / "rank").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "rank" / "weights").write_bytes(bytes(SIZE))
    return tmp_path / "model"


def test_a_copy_elsewhere_and_later_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "config.json", (1, 1))
    assert files_digest(tmp_path / "copy") == files_digest(folder)


@pytest.mark.parametrize("place", [0, 99, SIZE - 100, SIZE - 1])
def test_another_byte_at_an_end_of_a_file_is_another_model(folder: Path, place: int) -> None:
    before = files_digest(folder)
    content = bytearray(SIZE)
    content[place] = 1
    (folder / "rank" / "weights").write_bytes(content)
    assert files_digest(folder) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").rename(folder / "other.json"),
        lambda folder: (folder / "rank" / "weights").write_bytes(bytes(SIZE + 1)),
        lambda folder: (folder / "new").touch(),
    ],
    ids=["name", "size", "one more"],
)
def test_other_files_are_another_model(folder: Path, change: Callable[[Path], object]) -> None:
    before = files_digest(folder)
    change(folder)
    assert files_digest(folder) != before


def test_an_adapter_apart_is_told_by_its_own_files(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    plain = model_identity(EngineConfig(str(folder)))
    beside = model_identity(EngineConfig(str(folder), adapter="."))
    apart = model_identity(EngineConfig(str(folder), adapter=str(adapter)))
    assert plain == model_identity(EngineConfig(str(folder), adapter="none"))
    assert (plain["adapter_files"], beside["adapter_files"]) == (None, None)
    assert (beside["adapter"], apart["adapter"]) == (".", str(adapter))
    assert apart["adapter_files"] == files_digest(adapter)
    assert {one["model_files"] for one in (plain, beside, apart)} == {files_digest(folder)}
