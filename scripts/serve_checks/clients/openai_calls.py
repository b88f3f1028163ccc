"""Run by the check `openai` in an environment with OpenAI's client: asks, prints what came as JSON.

python -m serve_checks.clients.openai_calls URL
"""

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from serve_checks.clients.asked import MESSAGES, MODEL, NUM_AT_ONCE, NUM_TOKENS, PROMPT, SCHEMA

Json = Any  # options of the client and what it gives, whose types are its own
GREEDY: Json = {"model": MODEL, "temperature": 0, "max_tokens": NUM_TOKENS}


def main(url: str) -> None:
    """Asks everything."""
    client: Json = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    found = {
        "models": [one.id for one in client.models.list()],
        "completion": client.completions.create(prompt=PROMPT, **GREEDY).model_dump(),
        "completion_stream": _completion_stream(client),
        "completion_logprobs": _completion_logprobs(client),
        "samples": [_samples(client), _samples(client)],
        "chat": client.chat.completions.create(messages=MESSAGES, **GREEDY).model_dump(),
        "chat_stream": _chat_stream(client),
        "chat_logprobs": _chat_logprobs(client),
        "schema": _outcome(lambda: _schema(client)),
        "at_once": asyncio.run(_at_once(url)),
        "errors": _errors(client),
    }
    _leave(client)
    print(json.dumps(found))


def _completion_stream(client: Json) -> Json:
    options: Json = {"stream": True, "stream_options": {"include_usage": True}}
    *events, last = client.completions.create(prompt=PROMPT, **options, **GREEDY)
    return {
        "text": "".join(event.choices[0].text for event in events),
        "finish_reason": events[-1].choices[0].finish_reason,
        "usage": last.usage.model_dump(),
    }


def _completion_logprobs(client: Json) -> Json:
    answer = client.completions.create(prompt=PROMPT, logprobs=3, echo=True, **GREEDY)
    return answer.choices[0].logprobs.model_dump()


def _samples(client: Json) -> Json:
    asked: Json = {"model": MODEL, "prompt": [PROMPT, "A ship"], "n": 2, "max_tokens": 8, "seed": 7}
    return [choice.text for choice in client.completions.create(**asked).choices]


def _chat_stream(client: Json) -> Json:
    stream = client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
    deltas = [event.choices[0].delta for event in stream if event.choices]
    return {"role": deltas[0].role, "text": "".join(delta.content or "" for delta in deltas)}


def _chat_logprobs(client: Json) -> Json:
    asked: Json = {"logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(messages=MESSAGES, **asked, **GREEDY)
    return [one.model_dump() for one in answer.choices[0].logprobs.content]


def _schema(client: Json) -> Json:
    schema = {"name": "bird", "schema": SCHEMA, "strict": True}
    form: Json = {"type": "json_schema", "json_schema": schema}
    asked: Json = {**GREEDY, "max_tokens": 96}
    answer = client.chat.completions.create(messages=MESSAGES, response_format=form, **asked)
    return answer.choices[0].message.content


async def _at_once(url: str) -> list[str]:
    client: Json = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    async with client:

        async def one() -> str:
            stream = await client.completions.create(prompt=PROMPT, stream=True, **GREEDY)
            return "".join([event.choices[0].text async for event in stream])

        return await asyncio.gather(*(one() for _ in range(NUM_AT_ONCE)))


def _errors(client: Json) -> Json:
    cases: dict[str, Json] = {
        "unknown option": {"extra_body": {"temprature": 1}},
        "wrong value": {"temperature": -1},
        "wrong model": {"model": "gpt"},
        "long prompt": {"prompt": "word " * 2000},
    }
    asked: dict[str, Json] = {"prompt": PROMPT, **GREEDY}
    return {
        what: _outcome(partial(client.completions.create, **(asked | options)))
        for what, options in cases.items()
    }


def _leave(client: Json) -> None:
    """Closes a stream after its first event."""
    options: Json = {**GREEDY, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(prompt=PROMPT, stream=True, **options)
    next(iter(stream))
    stream.close()


def _outcome(call: Callable[[], Json]) -> Json:
    """What a call returns, or the error that it raises."""
    try:
        return {"value": call()}
    except openai.APIStatusError as error:
        kind, message = type(error).__name__, str(error)[:300]
        return {"raised": kind, "param": error.param, "code": error.code, "message": message}


if __name__ == "__main__":
    main(sys.argv[1])
