"""Times `cut` of 40b-shaped tensors against `cp -r` and `sync` of the same bytes; watches the memory of
cutting, and of loading the cut on two ranks.

    python benchmarks/cut.py [--folder DIR] [--layers 3] [--ranks 4] [--rounds 3] [--json FILE]

Makes a checkpoint of random weights below DIR (6.2 GB with 3 layers, embedding and head) and removes all it
made, whatever happens; the last row holds the medians and the highest peak.
Both read the checkpoint from the page cache.
Gates: peak anonymous memory at most 1.5 GB, median time at most 1.5 × that of the copy; on loading at most a
rank's share of the weights + 1 GB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from gyrfalcon.checkpoint.manifest import Content
from gyrfalcon.cut.hashed_file import Lanes
from gyrfalcon.cut.inspect import inspect_model
from gyrfalcon.cut.safetensors_writer import SafetensorsWriter
from gyrfalcon.model.architectures import config_from_json, make_layout
from gyrfalcon.model.layout import TensorSpec

MOST_ANONYMOUS_BYTES = 1_500_000_000
MOST_RATIO = 1.5
LOAD_RANKS = 2
LOAD_SPARE_BYTES = 1_000_000_000
LOAD = """
import sys
from gyrfalcon import Engine, EngineConfig
if __name__ == "__main__":
    Engine(EngineConfig(model=sys.argv[1], world_size=int(sys.argv[2]), cache_memory=64 << 20)).close()
"""
SAMPLE_SECONDS = 0.01
BLOCK_BYTES = 16 << 20

CONFIG: dict[str, object] = dict(
    model_type="falcon",
    vocab_size=65024,
    hidden_size=8192,
    num_attention_heads=128,
    num_kv_heads=8,
    new_decoder_architecture=True,
    parallel_attn=True,
    bias=False,
    alibi=False,
    torch_dtype="bfloat16",
)


@dataclass(frozen=True)
class Round:
    """One cut and one copy, one after the other on the same disk."""

    cut_seconds: float
    copy_seconds: float
    anonymous_bytes: int  # the cut's peak

    @property
    def ratio(self) -> float:
        return self.cut_seconds / self.copy_seconds


@dataclass(frozen=True)
class Loading:
    """The cut being loaded: the largest share of the weights, and the peak of the rank that held most."""

    seconds: float
    share_bytes: int
    anonymous_bytes: int

    @property
    def holds(self) -> bool:
        return self.anonymous_bytes <= self.share_bytes + LOAD_SPARE_BYTES


def main() -> int:
    """Makes the checkpoint, measures, prints; 1 when a gate does not hold."""
    options = parse_options()
    config = dict(CONFIG, num_hidden_layers=options.layers)
    specs = make_layout(config_from_json(config), has_head=True).tensors
    size = sum(spec.elements for spec in specs) * torch.bfloat16.itemsize
    folder = Path(tempfile.mkdtemp(prefix="gyrfalcon-cut-", dir=options.folder))
    try:
        check_room(folder, 2 * size)
        make_checkpoint(folder / "hf", config, specs)
        warm(folder / "hf")
        rounds = [measure(folder, options.ranks, number) for number in range(options.rounds)]
        loading = measure_loading(folder, options.ranks)
    finally:
        shutil.rmtree(folder)
    return report(rounds, loading, size, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Times `cut` against `cp -r` and `sync` of the same bytes."
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to work (default: the temporary folder)"
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--json", type=Path, default=None, help="also write the result to this file"
    )
    return parser.parse_args()


def check_room(folder: Path, needed: int) -> None:
    """SystemExit unless the disk has room for the checkpoint and one cut or copy of it at a time."""
    available = shutil.disk_usage(folder).free
    print(
        f"needs {needed / 1e9:.1f} GB in {folder}, {available / 1e9:.1f} GB are free",
        file=sys.stderr,
    )
    if available < needed:
        raise SystemExit("not enough room: give another --folder or fewer --layers")


def make_checkpoint(folder: Path, config: dict[str, object], specs: Sequence[TensorSpec]) -> None:
    """Random bits in the bf16 range of ordinary weights, written block by block."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    contents = {spec.name: Content(spec.shape, torch.bfloat16) for spec in specs}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BLOCK_BYTES // 2, generator=generator).bfloat16()
    with Lanes() as lanes:
        writer = SafetensorsWriter(folder / "model.safetensors", contents, lanes)
        for number, spec in enumerate(specs):
            block = noise.roll(number)  # the head must not be the embedding
            for start in range(0, spec.elements, len(block)):
                writer.write(block[: min(len(block), spec.elements - start)])
        writer.finish()


def warm(folder: Path) -> None:
    """Brings a checkpoint that was just written into the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(BLOCK_BYTES):
                pass


def measure(folder: Path, ranks: int, number: int) -> Round:
    """One round; odd rounds copy first, so that neither always profits from the other's cache."""
    source = folder / "hf"
    cut_target, copy_target = folder / "cut", folder / "copy"
    command = cut_command(source, cut_target, ranks)
    results: dict[str, tuple[float, int]] = {}

    def cut() -> None:
        results["cut"] = watched(command)
        shutil.rmtree(cut_target)

    def copy() -> None:
        results["copy"] = watched(["sh", "-c", f"cp -r '{source}' '{copy_target}' && sync"])
        shutil.rmtree(copy_target)

    steps: list[Callable[[], None]] = [copy, cut] if number % 2 else [cut, copy]
    for step in steps:
        os.sync()
        step()
    (cut_seconds, anonymous), (copy_seconds, _) = results["cut"], results["copy"]
    return Round(cut_seconds, copy_seconds, anonymous)


def cut_command(source: Path, target: Path, ranks: int) -> list[str]:
    return [sys.executable, "-m", "gyrfalcon", "cut", str(source), str(target), "-w", str(ranks)]


def measure_loading(folder: Path, ranks: int) -> Loading:
    """Loads a cut for `ranks` on two, where another cut in memory is part of it."""
    target = folder / "cut"
    watched(cut_command(folder / "hf", target, ranks))
    share = max(inspect_model(target, LOAD_RANKS).rank_bytes)
    seconds, peak = watched([sys.executable, "-c", LOAD, str(target), str(LOAD_RANKS)])
    return Loading(seconds, share, peak)


def watched(command: list[str]) -> tuple[float, int]:
    """The seconds a command took, and the most anonymous memory seen in one of its processes."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, *(anonymous_bytes(pid) for pid in family(process.pid)))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process in Linux's /proc; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def report(rounds: list[Round], loading: Loading, size: int, options: argparse.Namespace) -> int:
    """Prints a table for people and JSON for programs."""
    cut_seconds = statistics.median(r.cut_seconds for r in rounds)
    copy_seconds = statistics.median(r.copy_seconds for r in rounds)
    peak = max(r.anonymous_bytes for r in rounds)
    holds = (
        peak <= MOST_ANONYMOUS_BYTES and cut_seconds <= MOST_RATIO * copy_seconds and loading.holds
    )
    print(
        f"{size / 1e9:.2f} GB, {options.layers} layers, {options.ranks} ranks, {os.cpu_count()} cores"
    )
    print(f"{'round':>8} {'cut s':>8} {'copy s':>8} {'ratio':>6} {'anonymous MB':>13}")
    for number, r in enumerate(rounds, 1):
        print_row(str(number), r)
    print_row("all", Round(cut_seconds, copy_seconds, peak))
    held, share = loading.anonymous_bytes / 1e6, loading.share_bytes / 1e6
    print(
        f"loaded on {LOAD_RANKS} ranks in {loading.seconds:.1f} s: {held:.0f} MB, the share {share:.0f} MB"
    )
    gates = f"memory ≤ 1500 MB, ratio ≤ {MOST_RATIO}, loading ≤ share + 1000 MB"
    print(f"gates ({gates}): {'hold' if holds else 'DO NOT HOLD'}")
    result = {
        "bytes": size,
        "layers": options.layers,
        "ranks": options.ranks,
        "rounds": [asdict(r) for r in rounds],
        "cut_seconds": cut_seconds,
        "copy_seconds": copy_seconds,
        "ratio": cut_seconds / copy_seconds,
        "anonymous_bytes": peak,
        "loading": asdict(loading),
        "holds": holds,
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if holds else 1


def print_row(name: str, r: Round) -> None:
    memory = r.anonymous_bytes / 1e6
    print(f"{name:>8} {r.cut_seconds:8.2f} {r.copy_seconds:8.2f} {r.ratio:6.2f} {memory:13.0f}")


if __name__ == "__main__":
    sys.exit(main())
