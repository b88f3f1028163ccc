"""What `gyrfalcon load` does: asks the server what it is, sends the load, shows and writes the figures."""

import argparse
import asyncio
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gyrfalcon.cli.load import DEFAULT_RATE, DEFAULT_REQUESTS
from gyrfalcon.console.format import show_result
from gyrfalcon.console.progress import bar
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import parsed_json
from gyrfalcon.files.output import OutputFile, open_output, replace_file
from gyrfalcon.files.text import contents, decoded
from gyrfalcon.load.api import Api
from gyrfalcon.load.client import Client
from gyrfalcon.load.document import document
from gyrfalcon.load.failures import one_line
from gyrfalcon.load.figures import Figures, figures_of
from gyrfalcon.load.lengths import Uniform
from gyrfalcon.load.plan import Load, plan
from gyrfalcon.load.probe import first_model, tokens_of_text
from gyrfalcon.load.prompts import TokensOfText
from gyrfalcon.load.run import Run, Runner
from gyrfalcon.load.table import describe, warnings
from gyrfalcon.load.target import ENDPOINTS
from gyrfalcon.load.trace import has_arrivals, read_trace

FAILED, INTERRUPTED = 1, 130
DEFAULT_LENGTHS = Uniform(128, 128)


def run(args: argparse.Namespace) -> int:
    """Sends the load; 1 when every request failed, 130 when it was interrupted."""
    load = _load(args)
    extra, key = _extra_body(args.extra_body), _api_key(args)
    picture = None if args.plot is None else open_output(args.plot, "--plot", regular=True)
    _allow_many_files()
    model, found = asyncio.run(_run(args, load, extra, key))
    figures = figures_of(found, load.rate, args.goodput)
    url = args.url.url(ENDPOINTS[args.endpoint])
    title = f"{url}, {one_line(model)}: {load.description}, seed {load.seed}"
    if picture is not None:
        _draw(title, found, picture)
    result = document(url, model, load, args.words, found, figures)
    show_result(result, [describe(title, figures)], args.json)
    return _ending(figures, found)


async def _run(
    args: argparse.Namespace, load: Load, extra: Mapping[str, object], key: str | None
) -> tuple[str, Run]:
    client = Client(args.url, key, args.timeout)
    try:
        await client.look_up()
        api = Api(client, args.endpoint, extra)
        model = args.model_name or await first_model(api, args.url)
        tokens = await _tokens(args, api, model, load)
        with bar(load.requests or 0, "requests", "load") as progress:
            return model, await Runner(api, model, load, progress.update).run(plan(load, tokens))
    finally:
        client.close()


async def _tokens(args: argparse.Namespace, api: Api, model: str, load: Load) -> TokensOfText:
    """What the server makes of made-up words; not asked where the prompts are given."""
    if load.trace and all(line.prompt is not None for line in load.trace):
        return TokensOfText()
    tokens = await tokens_of_text(api, model, args.url.url(ENDPOINTS[args.endpoint]))
    if tokens is None:
        _say("note: the server did not say how many tokens a prompt has: a word counts as one")
    return tokens or TokensOfText()


def _load(args: argparse.Namespace) -> Load:
    """The load that the options ask for."""
    trace = () if args.trace is None else read_trace(args.trace)
    says_when = [
        name
        for name, given in (("--rate", args.rate), ("--concurrency", args.concurrency))
        if given is not None
    ]
    if has_arrivals(trace) and says_when:
        wanted = f"a trace without arrivals with {says_when[0]}"
        raise UsageError(wanted, f"arrivals in {args.trace}", f"leave {says_when[0]} out")
    is_given = has_arrivals(trace) or args.concurrency is not None
    requests = args.requests
    if requests is None and args.duration is None:
        requests = len(trace) or DEFAULT_REQUESTS
    if requests is not None and has_arrivals(trace):
        requests = min(requests, len(trace))
    return Load(
        rate=None if is_given else args.rate or DEFAULT_RATE,
        arrivals=args.arrivals,
        concurrency=args.concurrency,
        requests=requests,
        duration=args.duration,
        input_lens=args.input_lens or DEFAULT_LENGTHS,
        output_lens=args.output_lens or DEFAULT_LENGTHS,
        trace=trace,
        seed=args.seed,
    )


def _extra_body(text: str | None) -> Mapping[str, object]:
    if text is None:
        return {}
    value = parsed_json(text.encode(errors="replace"), "--extra-body", "correct the option")
    if not isinstance(value, dict):
        raise UsageError("a JSON object for --extra-body", type(value).__name__, "write {…}")
    if value.get("stream", True) is not True:
        raise UsageError("streamed answers, which are timed", "another stream", "leave it out")
    return value


def _api_key(args: argparse.Namespace) -> str | None:
    """The key from where the options say; its letters must fit into a header. Never shown."""
    if args.api_key_env is not None:
        where, key = args.api_key_env, os.environ.get(args.api_key_env, "").strip()
    elif args.api_key_file is not None:
        where = args.api_key_file
        key = decoded(contents(where), where).partition("\n")[0].strip()
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        got = "none" if not key else "letters that a header cannot hold"
        raise UsageError(f"a key in {where}", got, "put it there")
    return key


def _allow_many_files() -> None:
    """Each request in flight is an open file: raises the soft limit to the hard one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _draw(title: str, found: Run, picture: OutputFile) -> None:
    from gyrfalcon.load.plot import draw

    assert picture.file is not None
    replace_file(picture.file, draw(title, found, Path(picture.path).suffix.lower()))


def _ending(figures: Figures, found: Run) -> int:
    """Says what the figures do not, and gives the exit code."""
    for warning in warnings(figures):
        _say(f"gyrfalcon: WARNING: {warning}")
    if found.interrupted:
        _say(f"gyrfalcon: interrupted; {figures.sent} requests had been sent")
        return INTERRUPTED
    if figures.sent and figures.failed + figures.refused == figures.sent:
        _say("gyrfalcon: every request failed")
        return FAILED
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
