"""What tests of Ascend cards may ask for."""

from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from npu_emulation import emulate


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`device=npu` is the emulated device, as a card: with halves alone, and the newest torch_npu."""
    emulate(monkeypatch)
    return monkeypatch


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture
def folder(folders: Path, variant: str) -> Path:
    """A checkpoint of the test's variant, made once."""
    path = folders / variant
    return path if path.exists() else make_checkpoint(path, variant)
