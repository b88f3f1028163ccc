"""What serving costs beside the engine: processor time of the event loop's thread per streamed token, the
time between two tokens of a stream, and the tokens per second of many.

    python benchmarks/serve_overhead.py [--model nestling] [--streams 1,16,64] [--tokens 200] [--rounds 5]
        [--threads 1] [--quant none]

Serves a model on the CPU from this process to clients in another, one event a token, by turns with
Engine.stream() and Engine.generate() of the same engine with the same prompts. Detokenising is the
engine's and not counted. Prints medians of all rounds; --json FILE has every round. Run nothing else
beside it.
"""

import argparse
import asyncio
import json
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.serve.app import application
from gyrfalcon.serve.server import _config, _Server, listen
from gyrfalcon.serve.service import Service, Settings

T = TypeVar("T")
WARM_UP_TOKENS = 16
SERVED = "served"  # the name, whatever the model
PROMPT = "The old captain number {} looked at the sea"


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one client process saw: tokens, seconds from its first to its last, times of one stream."""

    num_events: int
    seconds: float
    gaps_ms: list[float]  # of its first stream


@dataclass(frozen=True, slots=True)
class Round:
    """One case of a round."""

    streams: int
    loop_us_per_token: float
    served_gap_ms: float  # p50 of one of the streams
    engine_gap_ms: float  # the same of Engine.stream(); NaN with several streams
    served_tokens_per_second: float
    engine_tokens_per_second: float  # of Engine.generate()


class Loop:
    """A server of an engine on an event loop of its own thread."""

    def __init__(self, config: EngineConfig) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.service, self.server, self.port = self.call(self._begin(config))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def cpu_seconds(self) -> float:
        """Processor time of the loop's thread."""
        return time.thread_time()

    async def _begin(self, config: EngineConfig) -> tuple[Service, _Server, int]:
        service = Service(lambda: Engine(config), Settings((SERVED,)), lambda error: None)
        service.start()
        await service.until_loaded()
        bound, server = listen("127.0.0.1", 0), _Server(_config(application(service)))
        self._serving = asyncio.ensure_future(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        return service, server, bound.getsockname()[1]

    async def end(self) -> None:
        """Ends server and engine."""
        self.server.should_exit = True
        await self._serving
        await self.service.thread.stop()


@contextmanager
def served(config: EngineConfig) -> Iterator[Loop]:
    """A server for a block."""
    loop = Loop(config)
    try:
        yield loop
    finally:
        loop.call(loop.end())


def one_round(loop: Loop, streams: int, tokens: int) -> Round:
    """Asks over HTTP and the engine itself, by turns."""
    before = loop.call(loop.cpu_seconds())
    seen = client(loop.port, streams, tokens)
    spent = loop.call(loop.cpu_seconds()) - before
    engine = loop.service.engine
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    prompts = [PROMPT.format(place) for place in range(streams)]
    gaps = gaps_of(lambda: engine.stream(prompts[0], params)) if streams == 1 else []
    start = time.perf_counter()
    engine.generate(prompts, params)
    return Round(
        streams=streams,
        loop_us_per_token=1e6 * spent / (streams * tokens),
        served_gap_ms=statistics.median(seen.gaps_ms),
        engine_gap_ms=statistics.median(gaps) if gaps else float("nan"),
        served_tokens_per_second=streams * tokens / seen.seconds,
        engine_tokens_per_second=streams * tokens / (time.perf_counter() - start),
    )


def gaps_of(stream: Callable[[], Iterator[object]]) -> list[float]:
    """Milliseconds between two items."""
    times = [time.perf_counter() for _ in stream()]
    return [1000 * (b - a) for a, b in pairwise(times)]


def client(port: int, streams: int, tokens: int) -> Streamed:
    """Streams read by a process of their own."""
    words = [sys.executable, __file__, "--client", f"{port},{streams},{tokens}"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return Streamed(**json.loads(done.stdout))


def read_streams(port: int, streams: int, tokens: int) -> Streamed:
    """The client process: as many connections as streams, and no work but reading."""
    selector, times, num_events = selectors.DefaultSelector(), list[float](), 0
    start = time.perf_counter()
    for place in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        selector.register(connection, selectors.EVENT_READ, place)
        connection.sendall(request(place, tokens))
    left = streams
    while left:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 16)
            events = data.count(b"data: {")
            num_events += events
            if key.data == 0:
                times += [time.perf_counter()] * events
            if not data or b"data: [DONE]" in data:
                selector.unregister(key.fileobj)
                left -= 1
    gaps = [1000 * (b - a) for a, b in pairwise(times)]
    return Streamed(num_events, time.perf_counter() - start, gaps)


def request(place: int, tokens: int) -> bytes:
    """One request for a stream."""
    asked = {"model": SERVED, "prompt": PROMPT.format(place), "max_tokens": tokens}
    body = json.dumps(asked | {"stream": True, "ignore_eos": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def median_of(rounds: list[Round]) -> Round:
    """Each figure's median."""
    rows = [asdict(one) for one in rounds]
    return Round(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


def shown(row: Round) -> str:
    """A line for people."""
    percent = 100 * row.served_tokens_per_second / row.engine_tokens_per_second
    gap = f"{row.served_gap_ms:.2f} ms a token"
    if row.streams == 1:
        gap += f", Engine.stream {row.engine_gap_ms:.2f} ms"
    return (
        f"{row.streams:3.0f} streams: loop {row.loop_us_per_token:.0f} us a token; {gap}; "
        f"{row.served_tokens_per_second:.0f} tokens/s, {percent:.1f} % of Engine.generate's "
        f"{row.engine_tokens_per_second:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nestling")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quant", default="none", help="as gyrfalcon serve takes it")
    parser.add_argument("--json")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        port, streams, tokens = map(int, args.client.split(","))
        print(json.dumps(asdict(read_streams(port, streams, tokens))))
        return
    counts = [int(count) for count in args.streams.split(",")]
    config = EngineConfig(
        args.model,
        device="cpu",
        threads=args.threads,
        quant=args.quant,
        max_len=args.tokens + 64,
        max_sequences=max(counts),
        reuse_prefixes=False,
    )
    found: dict[int, list[Round]] = {count: [] for count in counts}
    with served(config) as loop:
        for count in counts:
            client(loop.port, count, WARM_UP_TOKENS)
        for _ in range(args.rounds):
            for count in counts:
                found[count].append(one_round(loop, count, args.tokens))
    medians = [median_of(rounds) for rounds in found.values()]
    for row in medians:
        print(shown(row))
    if args.json:
        result = {
            "machine": machine_facts(),
            "options": vars(args),
            "rounds": [asdict(one) for rounds in found.values() for one in rounds],
        }
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
