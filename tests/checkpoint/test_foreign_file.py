"""Files that somebody else made are checked to be files, with their content in them, before they are read."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from forms import FORMS

from gyrfalcon.checkpoint.pickle_file import PickleFile
from gyrfalcon.checkpoint.safetensors_file import SafetensorsFile
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.recut import merge
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import CheckpointError, OutOfMemory, TooManyOpenFiles, lack
from gyrfalcon.files.foreign import LFS_POINTER, is_inside, read_json
from gyrfalcon.text.tokenizer import Tokenizer

FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
POINTER = LFS_POINTER + b"v1\noid sha256:4d7a2146\nsize 9951028193\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("made") / "hf",
        "40b",
        hidden_size=64,
        num_attention_heads=8,
        num_kv_heads=2,
    )


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Ends a read that nothing would ever end."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_pointer(path: Path) -> None:
    path.write_bytes(POINTER)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "a FIFO"),
    "folder": (a_folder, "a folder"),
    "device": (a_device, "a device"),
    "link to nothing": (a_link_to_nothing, "No such file"),
    "loop": (a_loop, "symbolic links"),
    "LFS pointer": (a_pointer, "run git lfs pull"),
}


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_with_content_is_named_and_never_waited_for(
    name: str, kind: str, folder: Path
) -> None:
    make, said = KINDS[kind]
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    line = refusal(folder)
    assert name in line
    assert said in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_no_file_is_named(kind: str, folder: Path, tmp_path: Path) -> None:
    make, said = KINDS[kind]
    state = {"transformer.ln_f.weight": torch.ones(64)}
    (folder / "model.safetensors").unlink()
    FORMS["sharded safetensors"](folder, state | {"a": torch.ones(1), "b": torch.ones(1)})
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    make(shard)
    line = refusal(folder)
    assert shard.name in line
    assert said in line


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a_tokenizers_lfs_pointer_is_named(
    name: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(data("falcon-tokenizer"), tmp_path / "tokenizer")
    if name == "vocab.json":
        (tmp_path / "tokenizer" / "tokenizer.json").unlink()
        (tmp_path / "tokenizer" / "merges.txt").write_text("")
    (tmp_path / "tokenizer" / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}.*git lfs pull"):
        Tokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["FIFO", "folder", "loop", "LFS pointer"])
def test_a_cuts_files_are_checked_alike(kind: str, folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path / "cut", 2)
    path = tmp_path / "cut" / "part_model" / "1" / "model.safetensors"
    path.unlink()
    KINDS[kind][0](path)
    assert "part_model/1/model.safetensors" in refusal(tmp_path / "cut")
    assert any("part_model/1/model" in fault for fault in verify(tmp_path / "cut").faults)


def test_a_manifest_cannot_name_a_file_that_none_can_be(folder: Path, tmp_path: Path) -> None:
    cut(folder, tmp_path / "cut", 1)
    path = tmp_path / "cut" / "manifest.json"
    text = path.read_text()
    for file in ("a\0.safetensors", "../a.safetensors", "/a.safetensors", "..\\a.safetensors", ""):
        path.write_text(text.replace('"part_model/0/model.safetensors"', json.dumps(file)))
        assert "cannot be inside of the cut" in refusal(tmp_path / "cut")
        assert len(verify(tmp_path / "cut").faults) == 1


@pytest.mark.parametrize(
    "text", ['{"a": ' * 101 + "1" + "}" * 101, '{"a": ' + "[" * 300 + "]" * 300 + "}"]
)
def test_json_that_is_too_deep_to_be_written_again_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="deep"):
        read_json(path)


def test_json_may_be_as_deep_as_anything_real(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": ' * 90 + "1" + "}" * 90)
    assert list(read_json(path)) == ["a"]


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        *((path, True) for path in ("a", "./a", "a/b/c", "a..b", "a/./b")),
        *((path, False) for path in ("..", "a/../b", "/a", "a\0", "a\\b", "", ".", "./")),
    ],
    ids=ascii,
)
def test_a_path_is_inside_where_it_cannot_lead_out(path: str, inside: bool) -> None:
    assert is_inside(path) is inside


def test_half_a_surrogate_pair_in_a_config_comes_through_a_cut(
    folder: Path, tmp_path: Path
) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"_name_or_path": "\ud800é", "prefix": "\udfff"}
    path.write_text(json.dumps(config))
    cut(folder, tmp_path / "cut", 2)
    assert verify(tmp_path / "cut").faults == ()
    merge(tmp_path / "cut", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == config
    assert "é" in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "generation_config.json"])
def test_a_file_that_cannot_travel_with_the_weights_is_found_before_these_are_written(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}.*git lfs pull"):
        cut(folder, tmp_path / "cut", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


LIMITED = """
import resource, sys
from gyrfalcon.cli.main import main
import gyrfalcon.cut.cut, gyrfalcon.cut.inspect, gyrfalcon.cut.recut, gyrfalcon.cut.verify
{limit}
sys.exit(main(sys.argv[1:]))
"""
FEW_FILES = "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))"
LITTLE_MEMORY = """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
"""


def limited(limit: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=limit), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("spare", [0, 1])
def test_a_file_that_may_not_be_opened_any_more_is_called_that(
    form: str, spare: int, tmp_path: Path
) -> None:
    FORMS[form](tmp_path, {"a": torch.ones(3)})
    [path] = tmp_path.iterdir()
    next_free = os.open(os.devnull, os.O_RDONLY)
    os.close(next_free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + spare, limits[1]))
    try:
        kind = SafetensorsFile if form == "safetensors" else PickleFile
        with suppress(TooManyOpenFiles):
            assert kind(path).read("a").tolist() == [1, 1, 1]
            assert spare == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_few_open_files_are_called_that(made: Path, tmp_path: Path) -> None:
    done = limited(FEW_FILES, "cut", str(made), str(tmp_path / "cut"), "-w", "8")
    assert done.returncode == TooManyOpenFiles.exit_code
    assert "ulimit -n" in done.stderr
    assert "permission" not in done.stderr
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_too_little_memory_is_called_that(form: str, made: Path, tmp_path: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 400_000}))
    state = open_checkpoint(made).source
    tensors = {name: state.read(name) for name in state.names()}
    name = "transformer.word_embeddings.weight"
    FORMS[form](folder, tensors | {name: torch.zeros(400_000, 64)})
    done = limited(LITTLE_MEMORY, "cut", str(folder), str(tmp_path / "cut"), "-w", "2")
    assert done.returncode == OutOfMemory.exit_code, done.stderr
    assert "wanted memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cut").exists()


def test_a_full_card_is_not_told_to_raise_the_limits_of_a_process() -> None:
    for error, advice in (
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "more ranks"),
        (RuntimeError("CUDA error: out of memory"), "more ranks"),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), "more ranks"),
        (RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; …)"), "more ranks"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "ulimit"),
    ):
        found = lack(error, "to go on")
        assert found is not None
        assert advice in found.do
        assert ("ulimit" in found.do) == (advice == "ulimit")


def test_only_a_shortage_is_called_one() -> None:
    assert isinstance(lack(MemoryError(), "x"), OutOfMemory)
    assert isinstance(lack(OSError(12, "no"), "x"), OutOfMemory)
    assert isinstance(lack(RuntimeError("CUDA out of memory. Tried"), "x"), OutOfMemory)
    assert isinstance(lack(OSError(24, "no"), "x"), TooManyOpenFiles)
    assert lack(OSError(13, "no"), "x") is None
    assert isinstance(lack(ImportError("lib.so: Too many open files"), "x"), TooManyOpenFiles)
    assert lack(RuntimeError("shapes"), "x") is None
    assert lack(ImportError("No module named memory"), "x") is None


@pytest.mark.parametrize("shape", [[0, 10**30], [0, 2**40, 2**40], [2**62, 0]], ids=str)
def test_a_tensor_without_elements_whose_shape_cannot_be_counted_is_refused(
    shape: list[int], tmp_path: Path
) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"a of shape \["):
        SafetensorsFile(tmp_path / "a").read("a")
