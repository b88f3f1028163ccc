"""What Ray Serve costs one stream beside `gyrfalcon serve`: time to the first token, and between two tokens.

    python benchmarks/ray_overhead.py [--model nestling] [--tokens 256] [--rounds 9] [--threads 1]

Asks a replica behind Ray Serve on this machine and a server in a process of its own by turns, with the same
prompts. Prints medians of all rounds; --json FILE has every round. Gate: Ray adds at most 25 ms to the first
token and 0.5 ms to each further one. Run nothing else beside it.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray import serve
from serve_checks.asking import HOST, Streamed, stream
from serve_checks.router import free_port
from serve_checks.server import serving

import gyrfalcon.ray
from gyrfalcon import EngineConfig
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.ray import ReplicasConfig

MOST_FIRST_MS, MOST_TOKEN_MS = 25.0, 0.5
WARM_UP_ROUNDS = 2
PROMPT = "The old captain number {} looked at the sea"


@dataclass(frozen=True, slots=True)
class Times:
    """Of one stream."""

    server: str
    first_ms: float
    token_ms: float


async def timed(name: str, port: int, body: dict[str, object]) -> Times:
    """A stream that has to come whole."""
    begin = asyncio.get_running_loop().time()
    answer: Streamed = await stream(port, "/v1/completions", body)
    if not answer.is_whole:
        raise RuntimeError(f"wanted a whole stream of {name}, got {answer.error}")
    first, last = answer.times[0], answer.times[-1]
    return Times(name, 1000 * (first - begin), 1000 * (last - first) / (len(answer.times) - 1))


@contextmanager
def behind_ray(model: str, threads: int) -> Iterator[int]:
    """The port of a replica behind Ray Serve on a cluster of this machine alone."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray would leave a token in HOME
    port, config = free_port(), EngineConfig(model, threads=threads)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": HOST, "port": port})
        serve.run(gyrfalcon.ray.app(ReplicasConfig(config)))
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def rounds_of(ports: dict[str, int], model: str, num_tokens: int, num_rounds: int) -> list[Times]:
    """All servers by turns, after a warm-up that is not counted."""
    body = {"model": model, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
    found = []
    for number in range(-WARM_UP_ROUNDS, num_rounds):
        for name, port in ports.items():
            asked = body | {"prompt": PROMPT.format(number)}
            times = asyncio.run(timed(name, port, asked))
            found += [times] if number >= 0 else []
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nestling")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), args.model, "--threads", str(args.threads)) as server,
        behind_ray(args.model, args.threads) as port,
    ):
        ports = {"gyrfalcon serve": server.port, "Ray Serve": port}
        found = rounds_of(ports, args.model, args.tokens, args.rounds)
    first, token = ({name: median(found, name, what) for name in ports} for what in (0, 1))
    for name in ports:
        print(f"{name}: first token {first[name]:.1f} ms, then {token[name]:.2f} ms a token")
    first_ms = first["Ray Serve"] - first["gyrfalcon serve"]
    token_ms = token["Ray Serve"] - token["gyrfalcon serve"]
    holds = first_ms <= MOST_FIRST_MS and token_ms <= MOST_TOKEN_MS
    print(f"Ray adds {first_ms:.1f} ms to the first token, {token_ms:.2f} ms to each further one")
    if args.json:
        options = {name: value for name, value in vars(args).items() if name != "json"}
        result = {
            "benchmark": "ray_overhead",
            "machine": machine_facts(),
            "options": options,
            "first_token_ms_added": first_ms,
            "token_ms_added": token_ms,
            "holds": holds,
            "rounds": [asdict(one) for one in found],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if holds else 1


def median(found: Sequence[Times], name: str, what: int) -> float:
    """Of the first token (0) or the further ones (1)."""
    own = [one for one in found if one.server == name]
    return statistics.median((one.first_ms, one.token_ms)[what] for one in own)


if __name__ == "__main__":
    sys.exit(main())
