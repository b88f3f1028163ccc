"""Run by the check `langchain` in an environment with langchain-openai: asks, prints what came as JSON.

python -m serve_checks.clients.langchain_calls URL
"""

import asyncio
import json
import sys
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

from serve_checks.clients.asked import MESSAGES, MODEL, NUM_AT_ONCE, NUM_TOKENS, PROMPT, SCHEMA

Json = Any  # options of the library and what it gives, whose types are its own


def main(url: str) -> None:
    """Asks everything."""
    options: Json = {
        "base_url": url,
        "api_key": "none",
        "model": MODEL,
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "max_retries": 0,
        "timeout": 60,
    }
    chat, completion = ChatOpenAI(**options), OpenAI(**options)
    asked = [(one["role"], one["content"]) for one in MESSAGES]
    answer = chat.invoke(asked)
    template = ChatPromptTemplate.from_messages(asked)
    chain = template | chat | StrOutputParser()
    found = {
        "completion": completion.invoke(PROMPT),
        "completion_stream": "".join(completion.stream(PROMPT)),
        "completion_batch": completion.batch([PROMPT] * NUM_AT_ONCE),
        "chat": answer.content,
        "usage": answer.usage_metadata,
        "chat_stream": "".join(str(part.content) for part in chat.stream(asked)),
        "chain": chain.invoke({}),
        "chain_async": asyncio.run(chain.ainvoke({})),
        "logprobs": _logprobs(chat, asked),
        "schema": _schema(ChatOpenAI(**options | {"max_tokens": 96}), asked),
    }
    print(json.dumps(found, default=str))


def _logprobs(chat: Json, asked: Json) -> Json:
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(asked)
    return [one["logprob"] for one in answer.response_metadata["logprobs"]["content"]]


def _schema(chat: Json, asked: Json) -> Json:
    """What structured output gives, or the error that it raises."""
    try:
        return {"value": chat.with_structured_output(SCHEMA, method="json_schema").invoke(asked)}
    except Exception as error:  # whatever the library makes of it
        return {"message": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    main(sys.argv[1])
