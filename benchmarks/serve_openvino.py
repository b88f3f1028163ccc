"""OpenVINO GenAI's ContinuousBatchingPipeline under the load of benchmarks/serve_peers.py, in one process:
there is no HTTP, no text and no client beside it, which a server has.

    python benchmarks/serve_openvino.py FOLDER [--streams 16] [--requests 64] [--in 256] [--out 64]
        [--rounds 2]

FOLDER is what `optimum-cli export openvino --model CHECKPOINT --weight-format int8 FOLDER` writes. Runs in
the environment of openvino-genai, without gyrfalcon. Prints medians of the rounds, with the names of
serve_peers.py.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import numpy as np
import openvino
import openvino_genai

Figures = dict[str, float]
FIRST_ID, LAST_ID = 1000, 60000  # of Falcon's vocabulary: words


@dataclass(slots=True)
class Stream:
    """A request, when it was asked, and when each token came."""

    handle: Any
    asked: float
    times: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the rounds one after the other."""
    args = _options(argv)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = args.cache_gb
    scheduler.max_num_seqs = args.streams
    scheduler.enable_prefix_caching = True  # as servers have it; no prompt repeats another
    pipeline = openvino_genai.ContinuousBatchingPipeline(args.folder, scheduler, "CPU")
    _round(pipeline, args, 1, args.streams)  # compiles and allocates
    rounds = [_round(pipeline, args, seed, args.requests) for seed in range(2, 2 + args.rounds)]
    medians = {name: median(one[name] for one in rounds) for name in rounds[0]}
    print(json.dumps(medians))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--streams", type=int, default=16, help="at a time")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--in", dest="input_len", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--out", dest="output_len", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cache-gb", type=int, default=2)
    return parser.parse_args(argv)


def _round(pipeline: Any, args: argparse.Namespace, seed: int, num_requests: int) -> Figures:
    """Keeps `streams` requests going until all have been answered."""
    drawn = random.Random(seed)
    settings = openvino_genai.GenerationConfig(
        max_new_tokens=args.output_len, ignore_eos=True, do_sample=False
    )
    running: list[Stream] = []
    ended: list[Stream] = []
    start = time.perf_counter()
    while len(ended) < num_requests:
        while len(running) < args.streams and len(running) + len(ended) < num_requests:
            ids = [[drawn.randrange(FIRST_ID, LAST_ID) for _ in range(args.input_len)]]
            prompt = openvino.Tensor(np.array(ids, np.int64))
            number = seed * num_requests + len(running) + len(ended)
            asked = time.perf_counter()
            running.append(Stream(pipeline.add_request(number, prompt, settings), asked))
        pipeline.step()
        now = time.perf_counter()
        for stream in running:
            while stream.handle.can_read():
                [output] = stream.handle.read().values()
                stream.times += [now] * len(output.generated_ids)
        ended += [one for one in running if len(one.times) >= args.output_len]
        running = [one for one in running if len(one.times) < args.output_len]
    return _figures(ended, time.perf_counter() - start)


def _figures(streams: Sequence[Stream], seconds: float) -> Figures:
    firsts = [1000 * (one.times[0] - one.asked) for one in streams]
    gaps = [1000 * (after - before) for one in streams for before, after in pairwise(one.times)]
    return {
        "tokens/s": sum(len(one.times) for one in streams) / seconds,
        "first token p50, ms": median(firsts),
        "first token p99, ms": quantiles(firsts, n=100, method="inclusive")[-1],
        "between tokens p50, ms": median(gaps),
        "between tokens p99, ms": quantiles(gaps, n=100, method="inclusive")[-1],
        "finished": len(streams),
    }


if __name__ == "__main__":
    raise SystemExit(main())
