"""Cross-checks `gyrfalcon load` with guidellm: the same rate, lengths and server, by turns; medians of first
token, time per token and whole request must agree.

    python benchmarks/load_guidellm.py --guidellm ENV/bin/guidellm [--url http://127.0.0.1:8000] [--json FILE]

Without --url the server is guidellm's own mock, which answers after 50 ms and then every 10 ms. Prompts are
other ones in every turn, so that no prefix cache knows them.

guidellm wants torch; an environment of its own that sees this one's installs no second one (360 MB):

    python -m venv ENV
    ours=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    echo $ours > ENV/lib/python3.11/site-packages/ours.pth
    grep -E "^(torch|transformers|tokenizers|numpy)==" constraints.txt > few.txt
    ENV/bin/pip install -c few.txt guidellm==0.8.1

On an idle machine: beside other work guidellm's polling workers make the server's timers more prompt
than they are under any other client (docs/log.md).

Exit code: 1 when a median differs by more than 10 % and by more than 3 ms, or a request failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from socket import create_connection, socket
from statistics import median

from gyrfalcon.load.prompts import words

MOST_RATIO, MOST_MS = 1.1, 3.0
MOCK = "--ttft-ms 50 --ttft-ms-std 0 --itl-ms 10 --itl-ms-std 0 --output-tokens-std 0".split()
START_SECONDS = 60.0
Medians = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Takes turns and compares; see the exit code above."""
    args = _options(argv)
    tools = {"gyrfalcon": _ours, "guidellm": _theirs}
    found: dict[str, list[Medians]] = {tool: [] for tool in tools}
    with tempfile.TemporaryDirectory() as name, _served(args) as url:
        folder = Path(name)
        for number in range(args.rounds):
            turns = list(tools) if number % 2 == 0 else list(reversed(tools))
            for turn, tool in enumerate(turns):
                prompts = _prompts(args, 2 * number + turn)
                found[tool].append(tools[tool](args, url, folder, prompts))
    medians = {tool: _medians(rounds) for tool, rounds in found.items()}
    if args.json:
        result = {"settings": vars(args), "rounds": found, "medians": medians}
        Path(args.json).write_text(json.dumps(result, indent=2, default=str) + "\n")
    return _compare(medians["gyrfalcon"], medians["guidellm"])


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guidellm", required=True, help="the command in its environment")
    parser.add_argument("--url", help="a server (default: guidellm's mock)")
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--in", dest="num_words", type=int, default=64, help="words of a prompt")
    parser.add_argument("--out", dest="output_len", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="write all rounds here")
    return parser.parse_args(argv)


def _prompts(args: argparse.Namespace, seed: int) -> list[str]:
    random = Random(seed)
    return [words(args.num_words, random) for _ in range(args.requests)]


def _ours(args: argparse.Namespace, url: str, folder: Path, prompts: Sequence[str]) -> Medians:
    trace, out = folder / "trace.jsonl", folder / "load.json"
    rows = [{"prompt": prompt, "output_len": args.output_len} for prompt in prompts]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "gyrfalcon", "load", url, "--rate", f"{args.rate:g}"]
    command += ["--arrivals", "constant", "--trace", str(trace), "--json", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads(out.read_text())["result"]
    return {
        "finished": result["finished"],
        "first token, ms": result["first_token_ms"]["p50"],
        "per token, ms": result["time_per_token_ms"]["p50"],
        "request, ms": result["end_to_end_ms"]["p50"],
        "output tokens": result["tokens"]["output"],
    }


def _theirs(args: argparse.Namespace, url: str, folder: Path, prompts: Sequence[str]) -> Medians:
    data, out = folder / "prompts.jsonl", folder / "guidellm.json"
    rows = [{"prompt": prompt, "output_tokens_count": args.output_len} for prompt in prompts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [args.guidellm, "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={url},request_format=/v1/completions"]
    command += ["--profile", f"kind=constant,rate={args.rate:g}"]
    command += ["--constraint", f"kind=max_requests,count={args.requests}"]
    command += ["--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={out}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]

    def p50(name: str) -> float:
        return float(metrics[name]["successful"]["median"])

    return {
        "finished": metrics["request_totals"]["successful"],
        "first token, ms": p50("time_to_first_token_ms"),
        "per token, ms": p50("inter_token_latency_ms"),  # of each request, as it defines it
        "request, ms": 1000 * p50("request_latency"),
        "output tokens": metrics["output_token_count"]["successful"]["total_sum"],
    }


@contextmanager
def _served(args: argparse.Namespace) -> Iterator[str]:
    """The URL of the server; the mock ends with the block."""
    if args.url:
        yield args.url
        return
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [args.guidellm, "mock-server", "--port", str(port), *MOCK]
    process = subprocess.Popen(
        [*command, "--model", "mock", "--output-tokens", str(args.output_len)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"guidellm's mock server does not listen after {START_SECONDS:g} s")


def _medians(rounds: Sequence[Medians]) -> Medians:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def _compare(ours: Mapping[str, float], theirs: Mapping[str, float]) -> int:
    """Prints both; 1 where they differ by more than is allowed."""
    print(f"{'median':<16}{'gyrfalcon':>12}{'guidellm':>12}{'ratio':>8}")
    agree = True
    for name, value in ours.items():
        other = theirs[name]
        ratio = value / other
        is_near = max(ratio, 1 / ratio) <= MOST_RATIO or abs(value - other) <= MOST_MS
        same = is_near if name.endswith("ms") else value == other
        agree &= same
        mark = "" if same else "  differs"
        print(f"{name:<16}{value:>12.2f}{other:>12.2f}{ratio:>8.3f}{mark}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
