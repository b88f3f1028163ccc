"""OpenAI's own client, without retries: what it gets is what the engine gives in this process."""

import json
from collections.abc import Sequence
from typing import Any

from gyrfalcon.request import RequestOutput, Token
from serve_checks.clients.asked import NUM_AT_ONCE
from serve_checks.context import Context, json_of
from serve_checks.environment import environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import serving, wait_until
from serve_checks.truth import OPTIONS, greedy

Json = Any  # of an answer, which the claims look into
MOST_DIFFERENCE = 1e-3  # between log-probabilities
IDLE_SECONDS = 5.0  # for the server to notice that a client has left
ERRORS = {
    "unknown option": ("BadRequestError", "temprature"),
    "wrong value": ("BadRequestError", "temperature"),
    "wrong model": ("NotFoundError", "model"),
    "long prompt": ("BadRequestError", "prompt"),
}


def run(context: Context, report: Report) -> None:
    """Asks in all ways, then compares."""
    client = environment("openai", context.environments)
    report.versions |= client.versions
    model = chat_model(context.folder)
    completion, answer = greedy(model)
    with serving(context.folder, model, *OPTIONS) as server:
        found: Json = json_of([*client.client("openai_calls"), f"{server.url}/v1"], 300)
        report.claim(
            "a stream that is closed frees its cache", wait_until(server.is_idle, IDLE_SECONDS)
        )
    _completions(report, found, completion)
    _chats(report, found, answer)
    _schema(report, found["schema"])
    for what, (kind, param) in ERRORS.items():
        got = found["errors"][what]
        holds = (got.get("raised"), got.get("param")) == (kind, param)
        report.claim(f"{what}: {kind} that names {param}", holds, got.get("message", "no error"))


def _completions(report: Report, found: Json, wanted: RequestOutput) -> None:
    report.claim("models are listed", found["models"] == ["nestling"], found["models"])
    whole = found["completion"]
    [choice] = whole["choices"]
    report.claim("a completion is the engine's", choice["text"] == wanted.text, choice["text"][:60])
    usage = whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]
    lengths = len(wanted.prompt_ids), len(wanted.completions[0].output_ids)
    report.claim("its usage is right", usage == lengths, usage)
    streamed = found["completion_stream"]
    same = streamed["text"] == wanted.text and streamed["finish_reason"] == choice["finish_reason"]
    report.claim("its stream is the same", same, streamed["finish_reason"])
    totals = whole["usage"]["total_tokens"], streamed["usage"]["total_tokens"]
    report.claim("and has the same usage at its end", totals[0] == totals[1], totals)
    scores = [*(wanted.prompt_logprobs or ()), *(wanted.completions[0].logprobs or ())]
    _logprobs(report, "completion", found["completion_logprobs"]["token_logprobs"], scores)
    first, second = found["samples"]
    report.claim("a seed repeats 2 × 2 samples", first == second and len(first) == 4, first)
    at_once = found["at_once"]
    report.claim(
        f"{NUM_AT_ONCE} streams at once are all the same",
        set(at_once) == {wanted.text},
        len(at_once),
    )


def _chats(report: Report, found: Json, wanted: RequestOutput) -> None:
    message = found["chat"]["choices"][0]["message"]
    same = message["content"] == wanted.text and message["role"] == "assistant"
    report.claim("a chat is the engine's", same, message["content"][:60])
    same = found["chat_stream"] == {"role": "assistant", "text": wanted.text}
    report.claim("its stream is the same", same)
    scores = [one["logprob"] for one in found["chat_logprobs"]]
    _logprobs(report, "chat", scores, wanted.completions[0].logprobs or ())


def _logprobs(
    report: Report, what: str, got: Sequence[float | None], wanted: Sequence[Token | None]
) -> None:
    pairs = [
        (one, other.logprob)
        for one, other in zip(got, wanted, strict=False)
        if one is not None and other is not None and other.logprob is not None
    ]
    most = max((abs(one - other) for one, other in pairs), default=float("inf"))
    report.figure(f"{what}_logprob_difference", most)
    holds = most <= MOST_DIFFERENCE and len(pairs) >= len(wanted) - 1 and len(got) == len(wanted)
    report.claim(f"log-probabilities of a {what} are the engine's", holds, f"{most:.1e}")


def _schema(report: Report, got: Json) -> None:
    text = got.get("value") or ""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    types = {name: type(one) for name, one in value.items()} if isinstance(value, dict) else {}
    holds = types == {"name": str, "flies": bool}  # as SCHEMA says
    report.claim("an answer by a JSON schema is valid", holds, text or got.get("message"))
