"""The part of the OpenAI API that a load needs: the models, and a streamed completion or chat answer."""

import asyncio
import json
from collections.abc import Mapping

from gyrfalcon.load.answer import Answer, error_message
from gyrfalcon.load.client import Client
from gyrfalcon.load.events import Events
from gyrfalcon.load.failures import EVENT, NOT_A_STREAM, REDIRECT, STATUS, Failure
from gyrfalcon.load.response import Response
from gyrfalcon.load.target import CHAT, ENDPOINTS

MOST_ERROR_BYTES = 4096  # read of an error's body
MOST_BODY_BYTES = 1 << 20  # of a list of models
EVENT_STREAM = "text/event-stream"


class Api:
    """Asks one server's endpoint. `extra` fields are added to each request; null removes a field."""

    def __init__(self, client: Client, endpoint: str, extra: Mapping[str, object]) -> None:
        self._client, self._endpoint, self._extra = client, endpoint, extra

    async def models(self) -> list[str]:
        """The ids that /v1/models lists; raises Failure."""
        reader = _Whole()
        await self._client.get("models", reader)
        try:
            value = json.loads(reader.body)
            return [str(model["id"]) for model in value["data"]]
        except (ValueError, RecursionError, TypeError, KeyError, IndexError):
            raise Failure(EVENT, "no list of models at /v1/models") from None

    def body(self, model: str, prompt: str, output_len: int) -> bytes:
        """The JSON of a request for a stream of at most `output_len` tokens."""
        is_chat = self._endpoint == CHAT
        text = (
            {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        )
        fields = {
            "model": model,
            **text,
            "max_tokens": output_len,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        present = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(present).encode()

    async def stream(self, body: bytes, answer: Answer) -> None:
        """Sends a request and fills `answer` as its events come; raises Failure."""
        await self._client.post(ENDPOINTS[self._endpoint], body, _Stream(answer))


class _Stream:
    """Reads a streamed answer, or the error that came instead."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._events, self._error = answer, Events(), b""
        self._clock = asyncio.get_running_loop().time

    def part(self, response: Response, part: bytes) -> None:
        if response.status != 200:
            self._error += part
            if len(self._error) >= MOST_ERROR_BYTES:
                raise _status_failure(response, self._error)
            return
        _check_stream(response)
        now = self._clock()
        for data in self._events.feed(part):
            self._answer.take(data, now)

    def end(self, response: Response) -> None:
        if response.status != 200:
            raise _status_failure(response, self._error)
        _check_stream(response)
        for data in self._events.end():
            self._answer.take(data, self._clock())
        self._answer.end()


class _Whole:
    """Reads a body that is not streamed."""

    def __init__(self) -> None:
        self.body = b""

    def part(self, response: Response, part: bytes) -> None:
        self.body += part
        if len(self.body) > MOST_BODY_BYTES:
            raise Failure(EVENT, f"more than {MOST_BODY_BYTES:,} bytes", response.status)

    def end(self, response: Response) -> None:
        if response.status != 200:
            raise _status_failure(response, self.body)


def _check_stream(response: Response) -> None:
    if response.media_type != EVENT_STREAM:
        raise Failure(NOT_A_STREAM, response.media_type or "no content type")


def _status_failure(response: Response, body: bytes) -> Failure:
    """A status other than 200, with the server's own words where it is an error object."""
    status = response.status
    assert status is not None
    if 300 <= status < 400:
        return Failure(REDIRECT, f"to {response.headers.get('location', 'nowhere')}", status)
    try:
        words = error_message(json.loads(body))
    except (ValueError, RecursionError):
        words = response.media_type
    return Failure(STATUS, words, status)
