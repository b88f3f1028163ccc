"""langchain-openai: chats, completions, streams, batches and chains give what the engine gives."""

from typing import Any

from serve_checks.clients.asked import NUM_AT_ONCE
from serve_checks.context import Context, json_of
from serve_checks.environment import environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import serving
from serve_checks.truth import OPTIONS, greedy


def run(context: Context, report: Report) -> None:
    """Asks in all ways, then compares."""
    client = environment("langchain", context.environments)
    report.versions |= client.versions
    model = chat_model(context.folder)
    completion, answer = greedy(model)
    with serving(context.folder, model, *OPTIONS) as server:
        found: Any = json_of([*client.client("langchain_calls"), f"{server.url}/v1"], 300)
    texts = {
        "completion": completion.text,
        "completion_stream": completion.text,
        "completion_batch": [completion.text] * NUM_AT_ONCE,
        "chat": answer.text,
        "chat_stream": answer.text,
        "chain": answer.text,
        "chain_async": answer.text,
    }
    for name, wanted in texts.items():
        report.claim(f"{name} is the engine's", found[name] == wanted, str(found[name])[:60])
    lengths = len(answer.prompt_ids), len(answer.completions[0].output_ids)
    usage = found["usage"]["input_tokens"], found["usage"]["output_tokens"]
    report.claim("usage is right", usage == lengths, usage)
    num, wanted_num = len(found["logprobs"]), len(answer.completions[0].output_ids)
    report.claim("log-probabilities of every token", num == wanted_num, num)
    got = found["schema"]
    value = got.get("value") or {}
    holds = {name: type(one) for name, one in value.items()} == {"name": str, "flies": bool}
    report.claim("structured output follows its schema", holds, value or got.get("message"))
