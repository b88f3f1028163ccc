"""A cut is whole or not there, holds every bit, resumes after any end; no change in it goes unnoticed."""

import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from checkpoints import VARIANTS, make_checkpoint, make_model
from forms import FORMS, save
from safetensors import safe_open
from transformers import FalconForCausalLM

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.parser import flags
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.inspect import inspect_model
from gyrfalcon.cut.recut import merge, recut
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import CheckpointError, DiskFull, GyrfalconError, UsageError, WorldSizeError
from gyrfalcon.model.falcon_layout import EMBEDDING, HEAD

SHARD_BYTES = 90_000  # makes many stages of the checkpoint below


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 40b-style checkpoint of 1.2 MB in bf16, with two files of a tokenizer."""
    folder = make_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "hf",
        "40b",
        dtype=torch.bfloat16,
        hidden_size=128,
        num_hidden_layers=4,
    )
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed cut of it for two ranks, in many files."""
    target = tmp_path_factory.mktemp("whole") / "cut"
    cut(checkpoint, target, 2, max_shard_bytes=SHARD_BYTES)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bits(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """Every tensor of a checkpoint, down to the last bit."""
    source = open_checkpoint(folder).source
    return {
        name: (
            source.dtype(name),
            source.read(name).contiguous().view(torch.uint8).numpy().tobytes(),
        )
        for name in source.names()
    }


def faults(folder: Path) -> tuple[str, ...]:
    return verify(folder).faults


# What a cut holds


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_merged_equals_the_source_bit_for_bit(
    variant: str, world_size: int, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "hf", variant, dtype=torch.bfloat16)
    cut(folder, tmp_path / "cut", world_size)
    merge(tmp_path / "cut", tmp_path / "merged")
    assert faults(tmp_path / "cut") == ()
    assert bits(tmp_path / "merged") == bits(folder)
    assert json.loads((tmp_path / "merged/config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", ["tied", "stored, equal", "stored, different"])
def test_every_form_of_source_comes_back(form: str, head: str, tmp_path: Path) -> None:
    model = make_model("rw-1b", hidden_size=64, num_attention_heads=4)
    state = {
        name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name != HEAD
    }
    if head != "tied":
        state[HEAD] = state[EMBEDDING] + (head == "stored, different")
    folder = save(tmp_path / "hf", json.loads(model.config.to_json_string()), state, form)
    cut(folder, tmp_path / "cut", 3, max_shard_bytes=100_000)
    assert open_checkpoint(tmp_path / "cut").has_head == (head == "stored, different")
    merge(tmp_path / "cut", tmp_path / "merged", max_shard_bytes=300_000)
    assert bits(tmp_path / "merged") == bits(folder)


def test_transformers_loads_what_merge_writes(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    merge(whole, tmp_path / "merged", max_shard_bytes=300_000)
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
    ids = torch.arange(12).view(1, -1)
    expected = FalconForCausalLM.from_pretrained(checkpoint)(ids).logits
    assert torch.equal(FalconForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, expected)


@pytest.mark.parametrize("variant", ["7b", "40b", "rw-1b"])
@pytest.mark.parametrize("shard_bytes", [3_000_000, 5_000_000_000])
def test_cut_for_four_then_for_two_equals_cut_for_two(
    variant: str, shard_bytes: int, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "hf", variant, dtype=torch.bfloat16)
    cut(folder, tmp_path / "four", 4, max_shard_bytes=shard_bytes)
    cut(folder, tmp_path / "two", 2, max_shard_bytes=shard_bytes)
    recut(tmp_path / "four", tmp_path / "again", 2, max_shard_bytes=shard_bytes)
    assert contents(tmp_path / "again") == contents(tmp_path / "two")


def test_mixed_dtypes_are_kept(tmp_path: Path) -> None:
    model = make_model("11B").bfloat16()
    state = {
        name: tensor.detach().to(torch.float32 if "layernorm" in name else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    folder = save(tmp_path / "hf", json.loads(model.config.to_json_string()), state, "safetensors")
    assert cut(folder, tmp_path / "cut", 2).dtype == "bfloat16+float32"
    merge(tmp_path / "cut", tmp_path / "merged")
    assert bits(tmp_path / "merged") == bits(folder)


def test_the_folder_has_the_guides_layout(checkpoint: Path, whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {"tokenizer", "part_model", "manifest.json"}
    assert (whole / "tokenizer/tokenizer.json").read_bytes() == (
        checkpoint / "tokenizer.json"
    ).read_bytes()
    for rank in ("0", "1"):
        part = whole / "part_model" / rank
        config = json.loads((part / "config.json").read_text())
        assert config == json.loads((checkpoint / "config.json").read_text()) | {"world_size": 2}
        home = json.loads((part / "model.safetensors.index.json").read_text())["weight_map"]
        files = sorted(path.name for path in part.glob("*.safetensors"))
        assert files == [
            f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
        ]
        assert all((part / file).stat().st_size <= SHARD_BYTES for file in files)
        for file in files:
            with safe_open(part / file, "pt") as stored:  # the format's own reader agrees
                assert set(stored.keys()) == {name for name, where in home.items() if where == file}


def test_a_tensor_larger_than_a_file_may_be_is_refused_with_the_least_size(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="; raise max_shard_bytes ") as caught:
        cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=50_000)
    assert "; raise --max-shard-size " in caught.value.on_command_line(flags())
    least = int(caught.value.wanted.split("at least ")[1].split()[0])
    assert least > 50_000
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("world_size", [-1, 0, 33])
def test_a_world_size_that_leaves_a_rank_idle_is_refused(
    world_size: int, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorldSizeError, match="32"):
        cut(checkpoint, tmp_path / "cut", world_size)
    assert os.listdir(tmp_path) == []


# Another dtype


def test_a_converted_cut_is_merged_only_on_request(checkpoint: Path, tmp_path: Path) -> None:
    assert cut(checkpoint, tmp_path / "cut", 2, dtype="fp16").dtype == "float16"
    recut(tmp_path / "cut", tmp_path / "recut", 3)
    for folder in (tmp_path / "cut", tmp_path / "recut"):
        with pytest.raises(UsageError, match="dequantise"):
            merge(folder, tmp_path / "merged")
        summary = merge(folder, tmp_path / "merged", dequantise=True, overwrite=True)
        assert "lost" in " ".join(summary.notes)
        merged, source = (
            open_checkpoint(tmp_path / "merged").source,
            open_checkpoint(checkpoint).source,
        )
        for name in source.names():
            assert torch.equal(merged.read(name), source.read(name).half().bfloat16()), name


def test_a_wider_dtype_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    cut(checkpoint, tmp_path / "cut", 2, dtype="fp32")
    assert (
        "nothing is lost" in merge(tmp_path / "cut", tmp_path / "merged", dequantise=True).notes[0]
    )
    assert bits(tmp_path / "merged") == bits(checkpoint)


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    model = make_model("11B")
    with torch.no_grad():
        model.transformer.ln_f.weight[3] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(UsageError, match=r"transformer\.ln_f\.weight"):
        cut(tmp_path / "hf", tmp_path / "cut", 2, dtype="fp16")
    assert os.listdir(tmp_path) == ["hf"]


# Where a cut may go


def test_an_existing_target_is_refused_and_left_alone(checkpoint: Path, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UsageError, match="overwrite"):
        cut(checkpoint, whole, 2)
    assert contents(whole) == before
    assert os.listdir(whole.parent) == ["cut"]


def test_an_empty_target_is_used(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    cut(checkpoint, tmp_path / "cut", 2)
    assert faults(tmp_path / "cut") == ()


def test_the_folder_one_is_in_is_not_replaced(
    checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    for inside in ("cut", "cut/part_model"):
        monkeypatch.chdir(tmp_path / inside)
        with pytest.raises(UsageError, match="you are in"):
            cut(checkpoint, tmp_path / "cut", 3, overwrite=True)
    assert contents(tmp_path / "cut") == contents(whole)
    monkeypatch.chdir(tmp_path)
    assert cut(checkpoint, Path("new"), 2).num_files == len(contents(tmp_path / "new"))


def test_overwrite_replaces_a_cut_and_nothing_else(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    cut(checkpoint, tmp_path / "cut", 3, overwrite=True)
    assert open_checkpoint(tmp_path / "cut").world_size == 3
    assert os.listdir(tmp_path) == ["cut"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "diary").write_text("dear diary")
    with pytest.raises(UsageError):
        cut(checkpoint, home, 3, overwrite=True)
    assert contents(home) == {"diary": b"dear diary"}


def test_a_failing_overwrite_keeps_the_old_cut(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    with file_size_limit(50_000), pytest.raises(DiskFull):
        cut(checkpoint, tmp_path / "cut", 3, overwrite=True)
    assert contents(tmp_path / "cut") == contents(whole)


def test_a_target_inside_the_source_is_refused(checkpoint: Path) -> None:
    before = os.listdir(checkpoint)
    for target in (checkpoint, checkpoint / "cut", checkpoint / "deep" / "cut", checkpoint.parent):
        with pytest.raises(UsageError):
            cut(checkpoint, target, 2, overwrite=True)
    assert os.listdir(checkpoint) == before


def test_a_target_that_cannot_be_made_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    for target in (tmp_path / "file", tmp_path / "file" / "cut", tmp_path / "circle"):
        with pytest.raises(GyrfalconError):
            cut(checkpoint, target, 2)


def test_a_second_cut_into_the_same_target_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    partial = tmp_path / "cut.partial"
    partial.mkdir()
    with (partial / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process"):
            cut(checkpoint, tmp_path / "cut", 2)
    cut(checkpoint, tmp_path / "cut", 2)
    assert os.listdir(tmp_path) == ["cut"]


def test_cut_takes_checkpoints_and_recut_takes_cuts(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="recut"):
        cut(whole, tmp_path / "x", 2)
    with pytest.raises(UsageError, match="cut it first"):
        recut(checkpoint, tmp_path / "x", 2)
    with pytest.raises(UsageError, match="cut it first"):
        merge(checkpoint, tmp_path / "x")


# Ends before the end


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond it, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def started(checkpoint: Path, target: Path, **settings: object) -> ForkServerProcess:
    """The cut of `whole`, or one of other settings, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gyrfalcon.cut.cut"])
    process = context.Process(
        target=cut,
        args=(checkpoint, target, 2),
        kwargs={"max_shard_bytes": SHARD_BYTES} | settings,
    )
    process.start()
    return process


@pytest.mark.slow
def test_a_cut_killed_at_any_moment_resumes_to_the_same_cut(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    started(checkpoint, tmp_path / "first").join()  # starts the process server
    begin = time.monotonic()
    started(checkpoint, tmp_path / "timed").join()
    duration = time.monotonic() - begin
    moments = random.Random(5)
    for number in range(5):
        target = tmp_path / f"cut {number}"
        process = started(checkpoint, target)
        time.sleep(moments.random() * duration)
        process.kill()  # SIGKILL
        process.join()
        if not target.exists():
            with pytest.raises(CheckpointError):
                open_checkpoint(target)
            cut(checkpoint, target, 2, max_shard_bytes=SHARD_BYTES)
        assert contents(target) == contents(whole)
        assert faults(target) == ()


def test_chat_templates_with_names_go_along(checkpoint: Path, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "hf")
    name = "additional_chat_templates/default.jinja"
    (source / name).parent.mkdir()
    (source / name).write_text("{{ messages }}")
    cut(source, tmp_path / "cut", 2)
    assert (tmp_path / "cut" / "tokenizer" / name).read_text() == "{{ messages }}"
    assert faults(tmp_path / "cut") == ()
    merge(tmp_path / "cut", tmp_path / "merged")
    assert (tmp_path / "merged" / name).read_text() == "{{ messages }}"


def stopped_cut(checkpoint: Path, target: Path) -> Path:
    """A cut that ran out of room after its first stages; its unfinished folder."""
    with file_size_limit(66_900), pytest.raises(DiskFull, match="run the same command again"):
        cut(checkpoint, target, 2, max_shard_bytes=SHARD_BYTES)
    assert not target.exists()
    return target.with_name(target.name + ".partial")


def test_a_full_disk_is_one_line_and_the_next_run_resumes(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    finished = json.loads((partial / "progress.json").read_text())["files"]
    inodes = {file: (partial / "new" / file).stat().st_ino for file in finished}
    summary = cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert summary.resumed_bytes == sum(file["bytes"] for file in finished.values()) > 0
    assert {
        file: (tmp_path / "cut" / file).stat().st_ino for file in finished
    } == inodes  # not written again
    assert contents(tmp_path / "cut") == contents(whole)
    assert os.listdir(tmp_path) == ["cut"]


def test_unfinished_work_with_other_options_is_discarded_only_when_asked(
    checkpoint: Path, tmp_path: Path
) -> None:
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    before = contents(partial)
    with pytest.raises(UsageError, match=r"others: that one had -w 2;.* or add overwrite=True"):
        cut(checkpoint, tmp_path / "cut", 1)
    with pytest.raises(UsageError, match="had -w 2 and dtype"):
        cut(checkpoint, tmp_path / "cut", 1, dtype="fp16")
    assert contents(partial) == before
    summary = cut(checkpoint, tmp_path / "cut", 1, overwrite=True)
    assert summary.resumed_bytes == 0
    cut(checkpoint, tmp_path / "direct", 1)
    assert contents(tmp_path / "cut") == contents(tmp_path / "direct")
    assert os.listdir(tmp_path / "cut" / "part_model") == ["0"]


def test_a_changed_source_starts_afresh(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "hf")
    stopped_cut(tmp_path / "hf", tmp_path / "cut")
    os.utime(tmp_path / "hf" / "model.safetensors")
    summary = cut(tmp_path / "hf", tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert summary.resumed_bytes == 0
    assert contents(tmp_path / "cut") == contents(whole)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}'])
def test_unreadable_progress_starts_afresh(
    content: str, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    (partial / "progress.json").write_text(content)
    cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert contents(tmp_path / "cut") == contents(whole)


@pytest.mark.parametrize("entry", [3, {}, {"bytes": "1", "sha256": "0"}, {"bytes": 1, "sha256": 0}])
def test_a_file_that_damaged_progress_lists_is_written_again(
    entry: object, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    progress = json.loads((partial / "progress.json").read_text())
    files = dict.fromkeys(progress["files"], entry) | {"../lock": entry, "a\0b": entry, "": entry}
    (partial / "progress.json").write_text(json.dumps(progress | {"files": files}))
    summary = cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert summary.resumed_bytes == 0
    assert contents(tmp_path / "cut") == contents(whole)


@pytest.mark.parametrize("moved", [False, True])
def test_a_stop_around_the_last_rename_is_made_good(
    moved: bool, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    """Every file is finished; the folder is about to be moved into place, or just was."""
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    progress = json.loads((partial / "progress.json").read_text())
    files = {
        file: {"bytes": len(content), "sha256": ""} for file, content in contents(whole).items()
    }
    files |= json.loads((whole / "manifest.json").read_text())["files"]
    (partial / "progress.json").write_text(json.dumps(progress | {"whole": True, "files": files}))
    (partial / ".progress.json.part").write_text("{")  # of a kill while progress was written
    shutil.rmtree(partial / "new")
    shutil.copytree(whole, tmp_path / "cut" if moved else partial / "new")
    cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert contents(tmp_path / "cut") == contents(whole)
    assert os.listdir(tmp_path) == ["cut"]


@pytest.mark.parametrize("same", [True, False])
def test_a_stop_while_replacing_never_loses_both(
    same: bool, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    """The old cut is set aside and the new one is not yet in its place."""
    partial = stopped_cut(checkpoint, tmp_path / "cut")
    shutil.copytree(whole, partial / "old")
    limit = SHARD_BYTES if same else 10 * SHARD_BYTES
    with pytest.raises(UsageError, match="overwrite"):
        cut(checkpoint, tmp_path / "cut", 2, max_shard_bytes=limit)
    assert contents(tmp_path / "cut") == contents(whole)
    cut(checkpoint, tmp_path / "cut", 2, overwrite=True, max_shard_bytes=limit)
    assert faults(tmp_path / "cut") == ()
    assert os.listdir(tmp_path) == ["cut"]


def mount(disk: Path, num_bytes: int, *options: str) -> None:
    """Makes `disk` a file system in memory of that size, or skips where that is not allowed."""
    command = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        ",".join((*options, f"size={num_bytes}")),
        "tmpfs",
        str(disk),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, 1 << 20)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_refused_before_writing(
    checkpoint: Path, small_disk: Path
) -> None:
    with pytest.raises(DiskFull) as caught:
        cut(checkpoint, small_disk / "cut", 2)
    assert (
        int(caught.value.wanted.split()[0]) > 1 << 20 >= int(caught.value.got.split()[0]) > 900_000
    )
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_at_the_very_end_is_one_line(
    checkpoint: Path, whole: Path, small_disk: Path
) -> None:
    """The weights fit and the rest does not."""
    pages = sum(-(-path.stat().st_size // 4096) for path in whole.rglob("*.safetensors"))
    mount(small_disk, (pages + 4) * 4096, "remount")
    with pytest.raises(DiskFull, match="run the same command again"):
        cut(checkpoint, small_disk / "cut", 2, max_shard_bytes=SHARD_BYTES)
    assert not (small_disk / "cut").exists()
    mount(small_disk, 2 * pages * 4096, "remount")
    assert cut(checkpoint, small_disk / "cut", 2, max_shard_bytes=SHARD_BYTES).resumed_bytes > 0
    assert contents(small_disk / "cut") == contents(whole)


def test_a_stopped_merge_and_recut_resume_too(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    with file_size_limit(250_000), pytest.raises(DiskFull):
        merge(whole, tmp_path / "merged", max_shard_bytes=300_000)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "merged")
    assert merge(whole, tmp_path / "merged", max_shard_bytes=300_000).resumed_bytes > 0
    assert bits(tmp_path / "merged") == bits(checkpoint)
    with file_size_limit(50_000), pytest.raises(DiskFull):
        recut(whole, tmp_path / "recut", 3, max_shard_bytes=SHARD_BYTES)
    recut(whole, tmp_path / "recut", 3, max_shard_bytes=SHARD_BYTES)
    assert faults(tmp_path / "recut") == ()


# What verify finds


def test_one_flipped_bit_is_found_in_any_file(whole: Path, tmp_path: Path) -> None:
    recut(whole, tmp_path / "cut", 2, max_shard_bytes=400_000)
    positions = random.Random(3)
    for path in sorted(path for path in (tmp_path / "cut").rglob("*") if path.is_file()):
        before = path.read_bytes()
        for position in {0, len(before) - 1, *positions.choices(range(len(before)), k=3)}:
            changed = bytearray(before)
            changed[position] ^= 1 << positions.randrange(8)
            path.write_bytes(changed)
            assert path.name in " ".join(faults(tmp_path / "cut")), f"{path} at {position}"
        path.write_bytes(before)
    assert faults(tmp_path / "cut") == ()


def test_missing_extra_and_short_files_are_all_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    (tmp_path / "cut/tokenizer/tokenizer.json").unlink()
    (tmp_path / "cut/part_model/0/more.safetensors").write_bytes(b"x")
    part = next((tmp_path / "cut/part_model/1").glob("*.safetensors"))
    os.truncate(part, part.stat().st_size - 1)
    found = "\n".join(faults(tmp_path / "cut"))
    for name in (
        "tokenizer/tokenizer.json",
        "part_model/0/more.safetensors",
        f"part_model/1/{part.name}",
    ):
        assert name in found


@pytest.mark.parametrize(
    ("before", "after"),
    [('"world_size": 2', '"world_size": Infinity'), ('"dim": 0', '"dim": 7'), ('"dim": 0', "")],
)
def test_a_manifest_with_impossible_values_is_a_fault(
    before: str, after: str, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    manifest = tmp_path / "cut" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, after, 1))
    assert len(faults(tmp_path / "cut")) == 1
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_checkpoint(tmp_path / "cut")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 0.0001'),
        ('"source_dtype": "bfloat16"', '"source_dtype": "float32"'),
    ],
    ids=["config", "dtype"],
)
def test_a_manifest_whose_values_are_possible_but_not_those_written_is_a_fault(
    before: str, after: str, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    manifest = tmp_path / "cut" / "manifest.json"
    assert before in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(before, after, 1))
    assert len(faults(tmp_path / "cut")) == 1
    with pytest.raises(CheckpointError, match="changed since"):
        open_checkpoint(tmp_path / "cut")


def test_verify_of_something_else_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    for folder in (checkpoint, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError):
            verify(folder)


# What inspect tells


def test_inspect_tells_the_bytes_that_the_parts_hold(checkpoint: Path, whole: Path) -> None:
    from_folder, from_cut = inspect_model(checkpoint, 2), inspect_model(whole)
    assert from_folder.rows == from_cut.rows
    for rank in (0, 1):
        stored = 0
        for path in (whole / "part_model" / str(rank)).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                stored += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
        assert from_cut.rank_bytes[rank] == stored


@pytest.mark.parametrize("world_size", [1, 3, 16])
def test_inspect_takes_any_world_size(world_size: int, checkpoint: Path, whole: Path) -> None:
    inspection = inspect_model(whole, world_size)
    assert inspection.rows == inspect_model(checkpoint, world_size).rows
    assert len(inspection.rank_bytes) == world_size
    embedding = next(row for row in inspection.rows if row.name == EMBEDDING)
    assert sum(len(part) for own in embedding.ranges for part in own) == embedding.shape[0]


def test_inspect_without_a_world_size_takes_the_cuts_own(checkpoint: Path, whole: Path) -> None:
    assert inspect_model(whole).world_size == 2
    assert inspect_model(checkpoint).world_size == 1
