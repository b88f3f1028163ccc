"""Hostile clients: bytes that are no HTTP, slow heads and bodies, idle connections, huge and deep bodies.

No answer hangs, nothing crashes, memory stays bounded, and others are answered meanwhile.
"""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

from serve_checks.asking import HOST, ask, post, send_raw
from serve_checks.context import Context
from serve_checks.memory import sampled
from serve_checks.report import NotRun, Report
from serve_checks.server import Server, serving, wait_until

PATH = "/v1/completions"
BODY = {"model": "nestling", "prompt": "The old captain", "max_tokens": 8, "temperature": 0}
OPTIONS = ("--max-len", "256", "--threads", "1", "--cache-memory", "16MB")
NUM_RANDOM, NUM_SLOW, NUM_IDLE, NUM_LARGE, LARGE_BYTES = 300, 100, 1000, 8, 64 << 20
NUM_FILES = NUM_IDLE + 2 * NUM_SLOW + 200
HEAD_SECONDS, BODY_SECONDS = 25.0, 36.0  # the server's bounds are 20 and 30
OTHERS_SECONDS = 5.0  # for a request of somebody else meanwhile
MOST_GROWTH_MB = 160.0  # 8 bodies of 8 MiB, the most that is read, twice
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
REFUSED = {
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}..",
    "a length that is no number": HEAD + b"Content-Length: 0x10\r\n\r\n",
    "an unknown encoding": HEAD + b"Transfer-Encoding: cow\r\n\r\n",
    "a wrong chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "a line that is no header": HEAD + b"no colon here\r\n\r\n",
    "NUL in a header": HEAD + b"X-A: a\x00b\r\n\r\n",
    "no Host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "a header of 1 MB": HEAD + b"X-A: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "20,000 headers": HEAD + b"X-A: a\r\n" * 20_000 + b"\r\n",
    "a path of 1 MB": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
WRONG_BODIES = {
    "100,000 lists": b"[" * 100_000,
    "100,000 lists, closed": b"[" * 100_000 + b"]" * 100_000,
    "7 MB of lists": b"[" * (7 << 20),
    "100,000 objects": b'{"a":' * 100_000,
    "a million empty lists": b'{"prompt": [' + b"[]," * 1_000_000 + b"[]]}",
    "a deep option": b'{"logit_bias": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    "a number of a million digits": b'{"seed": ' + b"9" * 1_000_000 + b"}",
    "1e999999": b'{"model": "nestling", "prompt": "a", "temperature": 1e999999}',
    "NaN": b'{"model": "nestling", "prompt": "a", "temperature": NaN}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "nothing": b"",
    "NUL": b"\x00" * 1000,
}


def run(context: Context, report: Report) -> None:
    """Attacks a server in all ways, one after the other."""
    _allow_files()
    with serving(context.folder, "nestling", *OPTIONS) as server:
        first = asyncio.run(post(server.port, PATH, BODY))
        before = server.rss_bytes()
        with sampled(server) as samples:
            asyncio.run(_attacks(server, report, Random(context.seed)))
        report.claim("the server is idle", wait_until(server.is_idle, 20))
        last = asyncio.run(post(server.port, PATH, BODY))
        same = last.json()["choices"] == first.json()["choices"]
        report.claim("and answers as before", same, last.status)
        growth = (max(samples) - before) / 1e6
        report.figure(
            "rss_growth_mb", [round(growth, 1), round((server.rss_bytes() - before) / 1e6, 1)]
        )
        report.claim(
            f"its memory grows by at most {MOST_GROWTH_MB:g} MB",
            growth <= MOST_GROWTH_MB,
            f"{growth:.1f} MB",
        )
        report.claim("it ends with exit code 0", server.stop() == 0)
    log = server.log.read_text("utf-8", "replace")
    report.claim(
        "its log has no traceback", "Traceback" not in log, log.partition("Traceback")[2][-300:]
    )


def _allow_files() -> None:
    """Room for all connections; NotRun where the system has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NUM_FILES:
        raise NotRun(f"the system lets a process have {hard} open files; {NUM_FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, NUM_FILES), hard))


async def _attacks(server: Server, report: Report, random: Random) -> None:
    await _raw(server, report, random)
    await _bodies(server, report)
    await _large(server, report)
    await _idle(server, report)
    await _slow(server, report)


async def _raw(server: Server, report: Report, random: Random) -> None:
    for what, data in REFUSED.items():
        found = await send_raw(server.port, data, OTHERS_SECONDS)
        line = found.splitlines()[0].decode("latin-1") if found else "closed"
        report.claim(f"{what} is refused", found == b"" or b" 4" in found[:13], line[:60])
    pieces = [random.randbytes(random.randint(1, 2000)) for _ in range(NUM_RANDOM)]
    pieces += [_damaged(random) for _ in range(NUM_RANDOM)]
    lines: set[bytes] = set()
    for begin in range(0, len(pieces), 100):
        some = pieces[begin : begin + 100]
        found_all = await asyncio.gather(*(send_raw(server.port, one, 2) for one in some))
        lines |= {found.splitlines()[0] for found in found_all if found}
    faults = [line for line in lines if b" 5" in line[:13]]
    report.claim(f"{len(pieces)} random requests: no 5xx", not faults, sorted(lines))
    await _others(server, report, "random bytes")


def _damaged(random: Random) -> bytes:
    """A right request, some of whose bytes are wrong."""
    body = b'{"model": "nestling", "prompt": "a", "max_tokens": 1}'
    data = bytearray(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    for _ in range(random.randint(1, 6)):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


async def _bodies(server: Server, report: Report) -> None:
    for what, body in WRONG_BODIES.items():
        begin = time.monotonic()
        reply = await asyncio.wait_for(ask(server.port, "POST", PATH, body), 30)
        seconds = time.monotonic() - begin
        holds = 400 <= reply.status < 500
        report.claim(f"{what}: 4xx", holds, f"{reply.status}, {seconds:.2f} s, {reply.body[:60]!r}")
    await _others(server, report, "deep bodies")


async def _large(server: Server, report: Report) -> None:
    for what, chunked in (("with their length", False), ("in chunks", True)):
        begin = time.monotonic()
        found = await asyncio.gather(*(_send_large(server.port, chunked) for _ in range(NUM_LARGE)))
        refused = [one.startswith(b"HTTP/1.1 413 ") for one in found]
        lines = sorted({one[:30] for one in found})
        took = f"{lines}, {time.monotonic() - begin:.1f} s"
        report.claim(f"{NUM_LARGE} bodies of 64 MB {what}: 413", all(refused), took)
    await _others(server, report, "large bodies")


async def _send_large(port: int, chunked: bool) -> bytes:
    """What comes back for a body that is sent as long as the server takes it."""
    reader, writer = await asyncio.open_connection(HOST, port)
    kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % LARGE_BYTES
    writer.write(HEAD + kind + b"\r\n\r\n")
    part = b" " * (1 << 16)
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(30):
            for _ in range(LARGE_BYTES // len(part)):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                await writer.drain()
    found = b""
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(10):
            found = await reader.read(1000)
    writer.close()
    return found


async def _idle(server: Server, report: Report) -> None:
    connections = [await asyncio.open_connection(HOST, server.port) for _ in range(NUM_IDLE)]
    await _others(server, report, f"{NUM_IDLE} idle connections")
    for _, writer in connections:
        writer.close()


async def _slow(server: Server, report: Report) -> None:
    """Heads and bodies of which a byte comes a second, at once."""
    head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 100
    begun = HEAD + b"Content-Length: 1000\r\n\r\n"
    heads = [_drip(server.port, b"", head, HEAD_SECONDS) for _ in range(NUM_SLOW)]
    bodies = [_drip(server.port, begun, b" " * 100, BODY_SECONDS) for _ in range(NUM_SLOW)]
    waiting = asyncio.gather(*heads, *bodies)
    await asyncio.sleep(5)
    await _others(server, report, f"{2 * NUM_SLOW} slow ones")
    found = await waiting
    ends, answers = found[:NUM_SLOW], found[NUM_SLOW:]
    closed = [one for one in ends if one is not None]
    report.claim(
        f"slow heads are cut off within {HEAD_SECONDS:g} s", len(closed) == NUM_SLOW, len(closed)
    )
    timed_out = [one for one in answers if one is not None and one.startswith(b"HTTP/1.1 408 ")]
    report.claim(
        f"slow bodies get 408 within {BODY_SECONDS:g} s", len(timed_out) == NUM_SLOW, len(timed_out)
    )


async def _drip(port: int, begun: bytes, slowly: bytes, seconds: float) -> bytes | None:
    """What the server answers, nothing where it closes; None where it does neither within that time."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(begun)
    reading = asyncio.ensure_future(reader.read(1000))
    try:
        async with asyncio.timeout(seconds):
            async for byte in _bytes(slowly):
                writer.write(byte)
                if reading.done():
                    break
            return await reading
    except TimeoutError:
        return None
    except ConnectionError:
        return b""
    finally:
        reading.cancel()
        writer.close()


async def _bytes(slowly: bytes) -> AsyncIterator[bytes]:
    for number in range(len(slowly)):
        yield slowly[number : number + 1]
        await asyncio.sleep(1)


async def _others(server: Server, report: Report, beside: str) -> None:
    begin = time.monotonic()
    reply = await asyncio.wait_for(post(server.port, PATH, BODY), 60)
    seconds = time.monotonic() - begin
    holds = reply.status == 200 and seconds <= OTHERS_SECONDS
    report.claim(f"others are answered beside {beside}", holds, f"{reply.status}, {seconds:.2f} s")
