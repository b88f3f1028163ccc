"""ChatFormat: how a conversation is written down for Falcon's chat models, one turn a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.errors import RequestError
from gyrfalcon.foreign_file import read_json

ROLES = ("system", "user", "assistant")
HIDDEN_SIZE_180B = 14848


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: a role out of ROLES and what was said."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The name the model answers under: Assistant for 7b- and 40b-instruct, Falcon for 180B-chat."""

    assistant: str
    system: str  # what stands before the system text, the first line
    stop: str = "\nUser"  # the model goes on with the user's next turn unless stopped here

    @classmethod
    def of(cls, folder: Path, hidden_size: int | None = None) -> "ChatFormat":
        """A checkpoint's format: by the chat template in its tokenizer_config.json or the model's width."""
        path = folder / "tokenizer_config.json"
        template = str(read_json(path).get("chat_template")) if path.is_file() else ""
        if "Falcon:" in template or hidden_size == HIDDEN_SIZE_180B:
            return cls("Falcon", system="System: ")
        return cls("Assistant", system="")

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation with the answer's beginning as its last line; raises RequestError."""
        _check(messages)
        starts = {"system": self.system, "user": "User: ", "assistant": f"{self.assistant}: "}
        lines = [
            f"{starts[message.role]}{message.content.strip()}".rstrip() for message in messages
        ]
        return "\n".join([*lines, f"{self.assistant}:"])


def _check(messages: Sequence[Message]) -> None:
    for place, message in enumerate(messages):
        if message.role not in ROLES:
            raise RequestError(
                f"a role out of {', '.join(ROLES)}", repr(message.role), "correct the message"
            )
        if message.role == "system" and place > 0:
            raise RequestError(
                "a system message only at the start", f"one at {place + 1}", "move it there"
            )
    if not messages or messages[-1].role != "user":
        got = f"one by the {messages[-1].role}" if messages else "no messages"
        raise RequestError("a message by the user at the end", got, "add the user's message")
