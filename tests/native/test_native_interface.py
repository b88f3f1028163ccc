"""The library is used only where it is of these sources and agrees with Python on its structures."""

import ctypes
import logging
from pathlib import Path

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.native import library as module
from gyrfalcon.native.library import STRUCTURES, VARIABLE, Norm, library, why_not_native

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)


class Swapped(ctypes.Structure):
    """gf_norm of the right size with two fields in the wrong order."""

    _fields_ = (("bias", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("y", ctypes.c_void_p))


class Narrow(ctypes.Structure):
    """gf_norm with a field of 4 bytes instead of 8, in the same place and of the same size in all."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("y", ctypes.c_int32))


class Longer(ctypes.Structure):
    """gf_norm with a field too many."""

    _fields_ = (*Norm._fields_, ("more", ctypes.c_int64))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in use; the next call of library() looks for it anew."""
    found = library()
    assert found is not None
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    return Path(found._name)


@pytest.mark.parametrize("wrong", [Swapped, Narrow, Longer])
def test_a_library_with_another_structure_is_not_used(
    wrong: type[ctypes.Structure],
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "_places", lambda: [built])
    assert library() is not None
    monkeypatch.setitem(STRUCTURES, "gf_norm", wrong)
    with caplog.at_level(logging.WARNING):
        assert library() is None
    assert caplog.messages == [
        f"{built} lays out gf_norm unlike native/library.py: running without it; "
        "install the package again"
    ]


def test_a_library_that_is_asked_for_and_has_another_structure_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(built))
    monkeypatch.setitem(STRUCTURES, "gf_norm", Longer)
    with pytest.raises(UsageError, match="one that lays out gf_norm unlike"):
        library()


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_python_does_not_know_is_noticed(
    name: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(built))
    monkeypatch.delitem(STRUCTURES, name)
    with pytest.raises(UsageError, match=f"lays out {name} unlike"):
        library()


def test_a_library_of_other_sources_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(built))
    monkeypatch.setattr(module, "digest", lambda sources: "another")
    with pytest.raises(UsageError, match="one that was not built from these sources"):
        library()


def test_a_library_of_something_else_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "lib.so"
    other.write_bytes(b"nothing of this kind")
    monkeypatch.setenv(VARIABLE, str(other))
    with pytest.raises(UsageError, match="one that was not built from these sources"):
        library()
