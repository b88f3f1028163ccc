"""The library of native CPU kernels: where it is, whether it belongs to these sources, and its C
interface (`native/gyrfalcon.h`).
"""

import contextlib
import ctypes
import hashlib
import logging
import os
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_void_p,
)
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from gyrfalcon.errors import UsageError

VARIABLE = "GYRFALCON_NATIVE"
FILE = "native/libgyrfalcon.so"
SOURCES = Path(__file__).parent
OTHER_SOURCES = "was not built from these sources"
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # gf_kind

log = logging.getLogger(__name__)


class RankGone(RuntimeError):
    """Another rank has ended, or has closed its end, while this one waited for it."""

    def __init__(self) -> None:
        super().__init__("another rank has ended or left the group")


class Matrix(Structure):
    """gf_matrix: a weight matrix as it lies in memory."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("kind", c_int32),
        ("group", c_int32),
    )


class Term(Structure):
    """gf_term: a matrix and the input it is multiplied with."""

    _fields_ = (("weight", Matrix), ("x", c_void_p))


class Output(Structure):
    """gf_output: one result of gf_linears."""

    _fields_ = (
        ("y", c_void_p),
        ("bias", c_void_p),
        ("terms", Term * 2),
        ("num_terms", c_int32),
        ("activation", c_int32),
    )


class Norm(Structure):
    """gf_norm: one normalisation."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("y", c_void_p))


class Block(Structure):
    """gf_block: one rank's weights of a parallel block without biases."""

    _fields_ = (
        ("norms", Norm * 2),
        ("qkv", Matrix),
        ("up", Matrix),
        ("dense", Matrix),
        ("down", Matrix),
        ("slopes", c_void_p),
        ("num_norms", c_int32),
        ("activation", c_int32),
        ("eps", c_float),
    )


class Cache(Structure):
    """gf_cache: keys and values of one layer."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("block_size", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
    )


class Queries(Structure):
    """gf_queries: new queries, and the cached context of each sequence."""

    _fields_ = (
        ("q", c_void_p),
        ("tables", c_void_p),
        ("starts", c_void_p),
        ("contexts", c_void_p),
        ("slopes", c_void_p),
        ("out", c_void_p),
        ("sequences", c_int64),
        ("heads", c_int64),
        ("table_stride", c_int64),
    )


class Rows(Structure):
    """gf_rows: the tokens of a step whose logits are wanted, where these are not all."""

    _fields_ = (("rows", c_void_p), ("count", c_int64), ("queries", Queries))


class Draw(Structure):
    """gf_draw: how a row's token is drawn."""

    _fields_ = (
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("chance", c_double),
        ("top_k", c_int64),
    )


STRUCTURES: dict[str, type[Structure]] = {
    "gf_matrix": Matrix,
    "gf_term": Term,
    "gf_output": Output,
    "gf_norm": Norm,
    "gf_cache": Cache,
    "gf_queries": Queries,
    "gf_rows": Rows,
    "gf_block": Block,
    "gf_draw": Draw,
}
_INTERFACE: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "gf_sources": (c_char_p, ()),
    "gf_sizes": (c_char_p, ()),
    "gf_instructions": (c_char_p, ()),
    "gf_available": (c_char_p, ()),
    "gf_choose": (c_int, (c_char_p,)),
    "gf_use_activations": (c_int, (c_int,)),
    "gf_activations": (c_int, ()),
    "gf_use_threads": (None, (c_int,)),
    "gf_use_processors": (None, (POINTER(c_int), c_int)),
    "gf_linears": (c_int, (POINTER(Output), c_int, c_int64, c_int)),
    "gf_add_layer_norms": (
        c_int,
        (c_void_p, c_void_p, c_void_p, POINTER(Norm), c_int, c_int64, c_int64, c_float, c_int),
    ),
    "gf_rotary_and_cache": (
        c_int,
        (c_void_p, c_void_p, c_void_p, POINTER(Cache), c_void_p, c_void_p, c_int64, c_int64, c_int),
    ),
    "gf_attention": (c_int, (POINTER(Queries), POINTER(Cache), c_int)),
    "gf_draw_tokens": (
        c_int,
        (c_void_p, c_int64, c_int64, POINTER(Draw), c_int, c_void_p, c_void_p),
    ),
    "gf_block_bytes": (c_int64, (POINTER(Block), c_int)),
    "gf_run_blocks": (
        c_int,
        (
            POINTER(Block),
            POINTER(Cache),
            c_int,
            *(c_void_p,) * 5,
            POINTER(Queries),
            POINTER(Rows),
            c_void_p,
            c_int64,
            c_int,
            c_void_p,
            POINTER(c_int64),
        ),
    ),
    "gf_multiply_instructions": (c_char_p, ()),
    "gf_instruction_for": (c_char_p, (c_int, c_int64, c_int)),
    "gf_multiply_add": (c_int64, (c_char_p, c_int64)),
    "gf_read": (None, (c_void_p, c_int64)),
    "gf_shared_bytes": (c_int64, (c_int,)),
    "gf_join": (c_void_p, (c_int, c_int, c_int)),
    "gf_leave": (None, (c_void_p,)),
    "gf_sum": (c_int, (c_void_p, c_void_p, c_int64, c_int)),
    "gf_gather": (c_int, (c_void_p, c_void_p, c_int64, c_void_p)),
}


def library() -> ctypes.CDLL | None:
    """The library; None where it was not built, or where GYRFALCON_NATIVE is 0.

    GYRFALCON_NATIVE may name another file; UsageError when that is not a library of these sources.
    """
    return _library(os.environ.get(VARIABLE, ""))


def available() -> list[str]:
    """The instruction sets that the library's kernels can use on this processor, best first."""
    found = library()
    return [] if found is None else found.gf_available().decode().split()


def instructions() -> str:
    """The instruction set in use."""
    found = library()
    return "" if found is None else found.gf_instructions().decode()


def why_not_native() -> str:
    """Why the native kernels are not in use, for people."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    built = any(path.exists() for path in _places())
    do = "install the package again" + ("" if built else " with a C++ compiler at hand")
    return f"the native kernels are {'of other sources' if built else 'not built'}; {do}"


@cache
def _library(setting: str) -> ctypes.CDLL | None:
    if setting == "0":
        return None
    if setting not in ("", "1"):
        return _named(Path(setting))
    faults = []
    for path in filter(Path.exists, _places()):
        try:
            return _opened(path)
        except _Unusable as fault:
            faults.append(f"{path} {fault}")
    if faults:
        do = "running without it; install the package again"
        log.warning("%s: %s", faults[-1], do)
    return None


def _named(path: Path) -> ctypes.CDLL:
    try:
        if path.is_file():
            return _opened(path)
        got = "none"
    except _Unusable as fault:
        got = f"one that {fault}"
    raise UsageError(f"the native library at {VARIABLE}={path}", got, "build it, or unset it")


def _places() -> list[Path]:
    """Beside this package, and where it was installed to when it runs from elsewhere."""
    places = [SOURCES.parent / FILE]
    with contextlib.suppress(PackageNotFoundError):
        places.append(Path(str(distribution("gyrfalcon").locate_file(f"gyrfalcon/{FILE}"))))
    return places


class _Unusable(Exception):
    """A library that does not fit this package; says why."""


def _opened(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, arguments) in _INTERFACE.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError, UnicodeError) as error:  # the last: a path that is not UTF-8
        raise _Unusable(OTHER_SOURCES) from error
    if found.gf_sources().decode() != digest(SOURCES):
        raise _Unusable(OTHER_SOURCES)
    _check_structures(found)
    return found


def _check_structures(found: ctypes.CDLL) -> None:
    theirs = found.gf_sizes().decode().splitlines()
    ours = [_layout(name, structure) for name, structure in STRUCTURES.items()]
    differing = [line.split()[0] for line in theirs if line not in ours]
    if differing or len(theirs) != len(ours):
        names = ", ".join(differing) or "some structures"
        raise _Unusable(f"lays out {names} unlike native/library.py")


def _layout(name: str, structure: type[Structure]) -> str:
    """A structure as gf_sizes describes it."""
    fields = [getattr(structure, field) for field, *_ in structure._fields_]
    words = [
        f"{field} {at.offset} {at.size}"
        for (field, *_), at in zip(structure._fields_, fields, strict=True)
    ]
    return " ".join([name, str(ctypes.sizeof(structure)), *words])


def digest(sources: Path) -> str:
    """SHA-256 over the SHA-256 of each source file, in the order of their paths, as CMake computes it."""
    kinds = (".cpp", ".h", ".inl")
    found = [path for path in sources.rglob("*") if path.suffix in kinds]
    files = sorted(found, key=lambda path: path.relative_to(sources).as_posix())
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
