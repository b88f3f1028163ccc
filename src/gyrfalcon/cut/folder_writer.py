"""Streams a planned folder from a checkpoint to disk: tensor by tensor, all ranks at once, stage by stage."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.manifest import MANIFEST, CutTensor, FileSum, Manifest, dtype_name
from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.checkpoint.tensors import take
from gyrfalcon.console.progress import Bar, bar
from gyrfalcon.cut.hashed_file import Lanes
from gyrfalcon.cut.plan import Plan
from gyrfalcon.cut.quantise import Read
from gyrfalcon.cut.safetensors_writer import SafetensorsWriter
from gyrfalcon.cut.staged_folder import Build, Work, build
from gyrfalcon.device.threads import one_torch_thread
from gyrfalcon.errors import UsageError
from gyrfalcon.files.foreign import open_foreign
from gyrfalcon.text.tokenizer_files import names_of_files

BLOCK_BYTES = 16 << 20  # of a source tensor in memory at a time


@dataclass(frozen=True, slots=True)
class CutSummary:
    """What was made."""

    target: Path
    world_size: int
    dtype: str
    quant: str  # what the matrices are quantised to, or none
    num_files: int
    num_bytes: int
    resumed_bytes: int  # of these, found finished from an earlier run
    seconds: float
    notes: tuple[str, ...]


def write_folder(
    checkpoint: Checkpoint,
    plan: Plan,
    read: Read,
    target: Path,
    *,
    overwrite: bool,
    notes: tuple[str, ...],
) -> CutSummary:
    """Makes `target` as planned of what `read` gives of the checkpoint, whole or not at all; a run that
    was stopped resumes where it was.

    Raises UsageError when the target may not be made there, DiskFull when the disk takes no more.
    """
    start = time.perf_counter()
    # What cannot be read or written is found before the work.
    small = _small_files(checkpoint, plan)
    adapter = [] if checkpoint.adapter is None else [checkpoint.adapter.folder]
    manifest = _manifest(checkpoint, plan, {})
    options = {"-w": plan.world_size, "dtype": manifest.dtype_names(), "--quant": manifest.quant}
    what = Work(_fingerprint(checkpoint, plan), options)
    with build([checkpoint.folder, *adapter], target, what, overwrite=overwrite) as work:
        resumed = sum(file.num_bytes for file in work.finished.values())
        if not work.is_published:
            _write_stages(read, plan, work)
            _write_small_files(checkpoint, plan, small, work)
            work.publish()
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    return CutSummary(
        target=target,
        world_size=plan.world_size,
        dtype=manifest.dtype_names(),
        quant=manifest.quant,
        num_files=len(sizes),
        num_bytes=sum(sizes),
        resumed_bytes=resumed,
        seconds=time.perf_counter() - start,
        notes=notes,
    )


def blocks(read: Read, name: str, tensor: CutTensor) -> Iterator[tuple[int, Tensor]]:
    """(rank, block): a rank's blocks one after the other are its part; the source is read once."""
    row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    if tensor.dim == 0:
        for rank, part in enumerate(tensor.parts):
            for run in part.ranges:
                for rows in _split(run, step):
                    yield rank, read(name, 0, (rows,))
        return
    for rows in _split(range(tensor.shape[0]), step):
        block = read(name, 0, (rows,))
        for rank, part in enumerate(tensor.parts):
            yield rank, take(block, tensor.dim, part.ranges)


def converted(name: str, block: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in `dtype`, without gaps in memory; UsageError when a value grows beyond the dtype."""
    result = block.to(dtype).contiguous()
    if dtype != block.dtype and not torch.equal(result.isfinite(), block.isfinite()):
        raise UsageError(
            f"values of {name} that {dtype_name(dtype)} can hold",
            f"up to {block[block.isfinite()].abs().max():.4g}",
            "use `dtype=bf16` or fp32",
        )
    return result


def _write_stages(read: Read, plan: Plan, work: Build) -> None:
    todo = [
        stage for number, stage in enumerate(plan.stages) if not _is_finished(plan, number, work)
    ]
    wanted = sum(plan.stage_bytes(stage) for stage in todo)
    work.reserve(wanted)
    with bar(wanted, "B", "writing") as progress, Lanes() as lanes, one_torch_thread():
        for stage in todo:
            work.record(_write_stage(read, plan, stage, work, lanes, progress))


def _is_finished(plan: Plan, number: int, work: Build) -> bool:
    return all(plan.rank_files(rank)[number] in work.finished for rank in range(plan.world_size))


def _write_stage(
    read: Read,
    plan: Plan,
    stage: tuple[str, ...],
    work: Build,
    lanes: Lanes,
    progress: Bar,
) -> dict[str, FileSum]:
    files = [part.file for part in plan.tensors[stage[0]].parts]
    with ExitStack() as open_files:
        writers = [
            open_files.enter_context(
                closing(SafetensorsWriter(work.open_path(file), plan.contents(stage, rank), lanes))
            )
            for rank, file in enumerate(files)
        ]
        for name in stage:
            tensor = plan.tensors[name]
            for rank, block in blocks(read, name, tensor):
                ready = converted(name, block, tensor.dtype)
                writers[rank].write(ready)
                progress.update(ready.nbytes)
        return {file: writer.finish() for file, writer in zip(files, writers, strict=True)}


def _small_files(checkpoint: Checkpoint, plan: Plan) -> dict[str, bytes]:
    """All files but weights and manifest; CheckpointError for one of the checkpoint's that cannot be read."""
    config = dict(checkpoint.raw_config)
    if plan.form.has_manifest:
        config["world_size"] = plan.world_size
    files = {}
    for rank in range(plan.world_size):
        folder = plan.form.rank_folder(rank)
        files[f"{folder}config.json"] = _json(config)
        if len(plan.stages) > 1:
            files[f"{folder}model.safetensors.index.json"] = _json(_index(plan, rank))
    tokenizer = plan.form.tokenizer_folder
    for name in names_of_files(checkpoint.tokenizer_folder):
        with open_foreign(checkpoint.tokenizer_folder / name) as file:
            files[f"{tokenizer}/{name}" if tokenizer else name] = file.read()
    return files


def _write_small_files(
    checkpoint: Checkpoint, plan: Plan, small: Mapping[str, bytes], work: Build
) -> None:
    for name, content in small.items():
        work.write(name, content)
    if plan.form.has_manifest:
        files = {file: found for file, found in work.finished.items() if file != MANIFEST}
        work.write(MANIFEST, _manifest(checkpoint, plan, files).text().encode())


def _index(plan: Plan, rank: int) -> dict[str, object]:
    total = sum(tensor.content(rank).num_bytes for tensor in plan.tensors.values())
    home = {
        name: Path(tensor.parts[rank].file).name for name, tensor in sorted(plan.tensors.items())
    }
    return {"metadata": {"total_size": total}, "weight_map": home}


def _manifest(checkpoint: Checkpoint, plan: Plan, files: dict[str, FileSum]) -> Manifest:
    return Manifest(
        checkpoint.raw_config,
        plan.world_size,
        plan.tensors,
        plan.aliases,
        files,
        plan.quantisation,
        plan.adapter,
    )


def _fingerprint(checkpoint: Checkpoint, plan: Plan) -> str:
    """The same for the same work on the same files; the manifest's text holds every option."""
    stats = [(str(path), path.stat()) for path in (*checkpoint.files, *_carried(checkpoint))]
    state = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    work = json.dumps([state, repr(plan.form), _manifest(checkpoint, plan, {}).text()])
    return hashlib.sha256(work.encode()).hexdigest()


def _carried(checkpoint: Checkpoint) -> list[Path]:
    folder = checkpoint.tokenizer_folder
    return [folder / name for name in names_of_files(folder)]


def _json(value: object) -> bytes:
    """JSON as transformers writes it; half a surrogate pair, which UTF-8 does not have, as its escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _split(whole: range, step: int) -> Iterator[range]:
    for start in range(whole.start, whole.stop, step):
        yield range(start, min(start + step, whole.stop))
