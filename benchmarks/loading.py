"""Times how the ranks of an engine get their share of a cut: start of processes, reading, first touch.

    python benchmarks/loading.py [--folder DIR] [--layers 1] [--ranks 4] [--worlds 4,2] [--rounds 3]

Cuts a checkpoint of random weights in 40b's shape (1 layer with embedding and head 3.5 GB, removed
afterwards) for `--ranks` and loads it on each world size, with pages cached. Beside each round as many
processes with as many threads copy as many bytes of the same files by read() into fresh anonymous
memory. Wanted of that throughput: 70 % where the cut is for as many ranks, 50 % where not.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from cut import CONFIG, check_room, cut_command, make_checkpoint
from torch import Tensor

from gyrfalcon import ops
from gyrfalcon.checkpoint.load import RankWeights, effective_dtype
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.console.progress import bar
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.device.threads import own_processors, use_threads
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.model.architectures import config_from_json, make_layout
from gyrfalcon.parallel.group import Group

SAME, OTHER = 0.7, 0.5  # wanted of a copy's throughput
PIECE = 8 << 20  # that a copy reads at a time


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank's seconds, and what it got."""

    start_seconds: float  # of the process, until the checkpoint is open
    read_seconds: float  # until every tensor is there: mapped, or copied into the rank's own
    touch_seconds: float  # of each page once
    copy_seconds: float  # the same bytes by read()
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Round:
    """A world size once, all ranks together: seconds of the slowest rank, bytes of all."""

    world_size: int
    start_seconds: float
    read_seconds: float
    touch_seconds: float
    copy_seconds: float
    num_bytes: int

    @property
    def ratio(self) -> float:
        """Throughput of loading over that of the copy."""
        return self.copy_seconds / (self.read_seconds + self.touch_seconds)


def main() -> int:
    """Makes the cut, measures, prints; 1 where a world size is slower than wanted."""
    options = parse_options()
    config = dict(CONFIG, num_hidden_layers=options.layers)
    specs = make_layout(config_from_json(config), has_head=True).tensors
    size = sum(spec.elements for spec in specs) * torch.bfloat16.itemsize
    folder = Path(tempfile.mkdtemp(prefix="gyrfalcon-loading-", dir=options.folder))
    try:
        check_room(folder, 2 * size)
        make_checkpoint(folder / "hf", config, specs)
        command = cut_command(folder / "hf", folder / "cut", options.ranks)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder / "hf")
        for path in (folder / "cut").rglob("*.safetensors"):
            path.read_bytes()  # into the page cache
        rounds = [
            measure(folder / "cut", world_size)
            for _ in range(options.rounds)
            for world_size in options.worlds
        ]
    finally:
        shutil.rmtree(folder)
    return report(rounds, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=4, help="that the cut is for")
    parser.add_argument("--worlds", type=numbers, default=(4, 2), help="world sizes to load it on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def measure(cut: Path, world_size: int) -> Round:
    """Starts the ranks, which load together and copy together."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(world_size)
    answers: Queue[Loaded] = context.Queue()
    begin = time.time()
    ranks = [
        context.Process(target=rank_main, args=(cut, rank, world_size, begin, together, answers))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = [answers.get() for _ in ranks]
    for process in ranks:
        process.join()
    return Round(
        world_size,
        max(one.start_seconds for one in found),
        max(one.read_seconds for one in found),
        max(one.touch_seconds for one in found),
        max(one.copy_seconds for one in found),
        sum(one.num_bytes for one in found),
    )


def rank_main(
    cut: Path, rank: int, world_size: int, begin: float, together: Barrier, answers: "Queue[Loaded]"
) -> None:
    """One rank: loads as an engine does, then copies as many bytes of the cut's files."""
    use_threads(None, world_size)
    checkpoint = open_checkpoint(cut)
    device = kind_for("cpu").of_rank(rank)
    operations = ops.choose(device, "none", own_processors(rank, world_size))
    start_seconds = time.time() - begin
    together.wait()
    start = time.perf_counter()
    with bar(0, "tensors", "loading", shown=False) as progress:
        weights = RankWeights(
            checkpoint, Group(rank, world_size, None), operations, device.torch_device,
            effective_dtype(checkpoint, "auto"), "none", progress,
        )  # fmt: skip
        tensors = [weights.tensor(spec.name) for spec in checkpoint.layout.tensors]
    read_seconds = time.perf_counter() - start
    together.wait()
    start = time.perf_counter()
    touch(tensors)
    touch_seconds = time.perf_counter() - start
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    del tensors
    together.wait()
    start = time.perf_counter()
    kept = list(copies(sorted(cut.glob("**/*.safetensors")), rank, world_size, num_bytes))
    copy_seconds = time.perf_counter() - start
    together.wait()
    del kept
    answers.put(Loaded(start_seconds, read_seconds, touch_seconds, copy_seconds, num_bytes))


def touch(tensors: Sequence[Tensor]) -> int:
    """Reads a byte of each page, as the first step does."""
    flat = (tensor.view(-1).view(torch.uint8) for tensor in tensors)
    return sum(int(one[:: mmap.PAGESIZE].sum()) for one in flat)


def copies(
    files: Sequence[Path], rank: int, world_size: int, num_bytes: int
) -> Iterator[mmap.mmap]:
    """As many bytes of a rank's share of the files, read into fresh anonymous memory."""
    left = num_bytes
    for path in (*files[rank::world_size], *files):
        with path.open("rb", buffering=0) as file:
            while left and (room := min(PIECE, left, path.stat().st_size - file.tell())) > 0:
                memory = mmap.mmap(-1, room)
                left -= file.readinto(memory) or 0
                yield memory


def report(rounds: Sequence[Round], options: argparse.Namespace) -> int:
    """Prints medians, and the rounds as JSON."""
    print(
        f"a cut for {options.ranks} ranks, {os.cpu_count()} processors; medians of {options.rounds}"
    )
    print(
        f"{'world':>6} {'start':>7} {'read':>7} {'touch':>7} {'copy':>7} {'GB/s':>6} {'of copy':>8}"
    )
    holds = True
    for world_size in options.worlds:
        own = [one for one in rounds if one.world_size == world_size]
        ratio = statistics.median(one.ratio for one in own)
        holds &= ratio >= (SAME if world_size == options.ranks else OTHER)
        names = ("start_seconds", "read_seconds", "touch_seconds", "copy_seconds")
        medians = [statistics.median(getattr(one, name) for one in own) for name in names]
        rate = own[0].num_bytes / (medians[1] + medians[2]) / 1e9
        print(
            f"{world_size:>6} {''.join(f'{one:>8.2f}' for one in medians)} {rate:>6.2f} {ratio:>8.0%}"
        )
    if options.json:
        result = {
            "format": "gyrfalcon-loading", "machine": machine_facts(), "ranks": options.ranks,
            "layers": options.layers, "rounds": [asdict(one) for one in rounds],
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
