"""Checks a cut byte by byte: checksums, headers, ranges, and that nothing is missing or left over."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.checkpoint.manifest import MANIFEST, FileSum, Manifest
from gyrfalcon.checkpoint.parts import PartsSource
from gyrfalcon.checkpoint.source import check_tensors, layout_of_cut, refuse_half_a_cut
from gyrfalcon.console.progress import Bar, bar
from gyrfalcon.errors import CheckpointError, ConfigError
from gyrfalcon.model.architectures import config_from_json

CHUNK_BYTES = 1 << 20
NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and each fault as a line; a cut without faults is as it was written."""

    folder: Path
    num_files: int
    num_bytes: int
    faults: tuple[str, ...]


def verify(folder: Path) -> VerifyReport:
    """Reads every byte of a cut; CheckpointError only when the folder is no cut at all."""
    if not (folder / MANIFEST).is_file():
        refuse_half_a_cut(folder)
        raise CheckpointError(
            f"a cut in {folder}", f"no {MANIFEST}", "give the folder that cut wrote"
        )
    try:
        manifest = Manifest.read(folder)
    except CheckpointError as error:
        return VerifyReport(folder, 0, 0, (f"{MANIFEST}: {error}",))
    source = PartsSource(folder, manifest)
    present = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    listed = {file: path for file, path in present.items() if file in manifest.files}
    faults = [
        *source.faults(),
        *_model_faults(folder, manifest, source),
        *_sum_faults(listed, manifest),
        *(
            f"{file}: not part of the cut"
            for file in present
            if file not in (*manifest.files, MANIFEST)
        ),
    ]
    num_bytes = sum(path.stat().st_size for path in present.values())
    return VerifyReport(folder, len(present), num_bytes, tuple(faults))


def _model_faults(folder: Path, manifest: Manifest, source: PartsSource) -> list[str]:
    try:
        config = config_from_json(manifest.raw_config, f"the config in {folder / MANIFEST}")
        check_tensors(folder, layout_of_cut(config, manifest), source, manifest)
    except (CheckpointError, ConfigError) as error:
        return [f"{MANIFEST}: {error}"]
    return []


def _sum_faults(paths: dict[str, Path], manifest: Manifest) -> list[str]:
    """Files of a wrong length are named already; a checksum tells nothing more about them."""
    whole = {
        file: path
        for file, path in paths.items()
        if path.stat().st_size == manifest.files[file].num_bytes
    }
    total = sum(manifest.files[file].num_bytes for file in whole)
    with bar(total, "B", "verifying") as progress, ThreadPoolExecutor(NUM_THREADS) as pool:
        sums = pool.map(lambda path: _sum_of(path, progress), whole.values())
        return [
            f"{file}: its bytes have changed (sha256 {found.sha256[:12]}… instead of "
            f"{manifest.files[file].sha256[:12]}…)"
            for file, found in zip(whole, sums, strict=True)
            if found != manifest.files[file]
        ]


def _sum_of(path: Path, progress: Bar) -> FileSum:
    sha, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
            num_bytes += len(chunk)
            progress.update(len(chunk))
    return FileSum(num_bytes, sha.hexdigest())
