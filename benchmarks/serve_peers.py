"""Times servers of one model, one after the other, with `gyrfalcon load` as the client of all: tokens/s,
first token, time between tokens.

    python benchmarks/serve_peers.py \\
        --server 'gyrfalcon=gyrfalcon serve FOLDER --quant int8 --port {port}' \\
        --server 'llama.cpp=llama-server -m A-q8_0.gguf -np 16 -c 8192 --port {port}' \\
        --server 'vllm=ENV/bin/vllm serve FOLDER --port {port}' [--json FILE]

A command's {port} is a free one; it is waited for until it answers a completion. 16 streams at a time, of
256 prompt tokens and 64 new ones, which no end of text cuts short. Rounds take turns: the second is in
reverse order.
Give the servers models of the same precision, with a tokenizer that has a text for each token: what has none
is no event, and `load` counts events. benchmarks/cpu_gguf.py writes GGUF files.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from statistics import median

from gyrfalcon.errors import UsageError
from gyrfalcon.measure.result import machine_facts, write

BODY = json.dumps({"ignore_eos": True, "temperature": 0})
START_SECONDS, STOP_SECONDS = 900.0, 60.0
Figures = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Takes turns and prints; 1 when a server answered fewer requests than it was asked."""
    args = _options(argv)
    servers = dict(map(_named, args.server))
    found: dict[str, list[Figures]] = {name: [] for name in servers}
    for number in range(args.rounds):
        names = list(servers) if number % 2 == 0 else list(reversed(servers))
        for name in names:
            with _served(servers[name]) as url:
                found[name].append(_loaded(url, args, number))
            print(f"{name}: {found[name][-1]}", file=sys.stderr)
    medians = {name: _medians(rounds) for name, rounds in found.items()}
    _print(medians)
    if args.json:
        settings = vars(args)
        document = {"machine": machine_facts(), "settings": settings, "rounds": found}
        write(document | {"medians": medians}, Path(args.json))
    return int(any(one["finished"] < args.requests for one in medians.values()))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", metavar="NAME=COMMAND", action="append", required=True)
    parser.add_argument("--streams", type=int, default=16, help="at a time")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--in", dest="input_len", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--out", dest="output_len", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="write all rounds here")
    return parser.parse_args(argv)


def _named(text: str) -> tuple[str, str]:
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise UsageError("--server NAME=COMMAND with {port}", repr(text), "correct it")
    return name, command


@contextmanager
def _served(command: str) -> Iterator[str]:
    """The URL of a server that answers; it ends with the block."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace("{port}", str(port)) for word in shlex.split(command)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode("utf-8", "replace").split("\n")
                    got = " ".join(filter(None, lines[-4:]))[-300:] or "silence"
                    raise UsageError(f"a server from {words[0]}", got, "correct its command")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    """Whether one short completion comes back."""
    asked = ("--requests", "1", "--concurrency", "1", "--in", "8", "--out", "2", "--timeout", "60")
    return subprocess.run(_load(url, *asked), capture_output=True).returncode == 0


def _load(url: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "gyrfalcon", "load", url, "--extra-body", BODY, *options]


def _loaded(url: str, args: argparse.Namespace, seed: int) -> Figures:
    """The figures of one run, whose prompts no earlier one had."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "load.json"
        lengths = ("--in", str(args.input_len), "--out", str(args.output_len))
        many = ("--concurrency", str(args.streams), "--requests", str(args.requests))
        command = _load(url, *lengths, *many, "--seed", str(seed + 1), "--json", str(out))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(out.read_text("utf-8"))["result"]
    return {
        "tokens/s": result["tokens"]["output_per_second"],
        "first token p50, ms": result["first_token_ms"]["p50"],
        "first token p99, ms": result["first_token_ms"]["p99"],
        "first token mean, ms": result["first_token_ms"]["mean"],
        "between tokens p50, ms": result["inter_token_ms"]["p50"],
        "between tokens p99, ms": result["inter_token_ms"]["p99"],
        "finished": result["finished"],
    }


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def _print(medians: Mapping[str, Figures]) -> None:
    print(f"{'median of the rounds':<26}" + "".join(f"{name:>14}" for name in medians))
    for figure in next(iter(medians.values())):
        values = "".join(f"{one[figure]:>14.1f}" for one in medians.values())
        print(f"{figure:<26}{values}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"serve_peers: error: {error}")
