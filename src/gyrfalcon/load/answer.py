"""One streamed answer of the OpenAI API: when its tokens came, how many there are, and how it ended."""

import json
from array import array
from collections.abc import Mapping

from gyrfalcon.load.failures import CLOSED, ERROR_EVENT, EVENT, Failure

DONE = b"[DONE]"
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")  # of a chat delta
MOST_TOKENS = 10**9  # in a usage: more is nonsense


class Answer:
    """Takes the events of one answer as they come."""

    def __init__(self) -> None:
        self.token_times = array("d")  # of each event with text, in seconds of the caller's clock
        self.finish_reason: str | None = None
        self.input_len: int | None = None  # from `usage`, like the next two; None: not given
        self.output_len: int | None = None
        self.cached_len: int | None = None
        self.is_done = False

    def take(self, data: bytes, now: float) -> None:
        """Reads one event that came at `now`; Failure where it is an error or not of the API."""
        if data == DONE:
            self.is_done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise Failure(EVENT, f"not JSON: {data[:80].decode('utf-8', 'replace')}") from None
        if not isinstance(event, dict):
            raise Failure(EVENT, f"no object: {data[:80].decode('utf-8', 'replace')}")
        if event.get("error"):
            raise Failure(ERROR_EVENT, error_message(event))
        if usage := event.get("usage"):
            self._count(usage)
        choices = event.get("choices")
        if isinstance(choices, list):
            self._read(choices, now)
        elif not usage:
            raise Failure(EVENT, f"no choices: {data[:80].decode('utf-8', 'replace')}")

    def end(self) -> None:
        """The stream has ended: Failure where the answer has not."""
        if not self.is_done and self.finish_reason is None:
            raise Failure(CLOSED, "the stream ended without finish_reason and [DONE]")

    def _read(self, choices: list[object], now: float) -> None:
        for choice in choices:
            if not isinstance(choice, dict):
                raise Failure(EVENT, "a choice that is no object")
            if _has_text(choice):
                self.token_times.append(now)
            reason = choice.get("finish_reason")
            if isinstance(reason, str):
                self.finish_reason = reason

    def _count(self, usage: object) -> None:
        if not isinstance(usage, dict):
            raise Failure(EVENT, "a usage that is no object")
        self.input_len = _tokens(usage, "prompt_tokens")
        self.output_len = _tokens(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_len = _tokens(details, "cached_tokens")


def error_message(value: object) -> str:
    """The message of an error object in any of the forms that servers use; "" where there is none."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            return error_message(value[name])
    return value if isinstance(value, str) else json.dumps(value) if value else ""


def _has_text(choice: Mapping[str, object]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in TEXTS)


def _tokens(usage: Mapping[str, object], name: str) -> int | None:
    value = usage.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise Failure(EVENT, f"{name} that is no count: {str(value)[:40]}")
    return value
