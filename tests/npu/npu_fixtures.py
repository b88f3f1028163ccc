"""What tests of Ascend cards may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from npu_emulation import emulate
from npu_graph_emulation import LOG

from gyrfalcon.device.npu import find_torch_npu


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`device=npu` is the emulated device, as a card: with halves alone, and the newest torch_npu. What an
    engine on such a device sets in the environment of its process goes with it.
    """
    before = dict(os.environ)
    emulate(monkeypatch)
    LOG.clear()
    yield monkeypatch
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    find_torch_npu.cache_clear()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture
def folder(folders: Path, variant: str) -> Path:
    """A checkpoint of the test's variant, made once."""
    path = folders / variant
    return path if path.exists() else make_checkpoint(path, variant)
