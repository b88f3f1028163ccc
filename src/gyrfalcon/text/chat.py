"""Chat: a conversation as the text that the model was tuned on, rendered by its own chat template."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from gyrfalcon.errors import CheckpointError, GyrfalconError, RequestError
from gyrfalcon.text.chat_files import ChatTemplate, read_template
from gyrfalcon.text.chat_limits import TooMuch
from gyrfalcon.text.chat_sandbox import compile_template, render

ANSWER, QUESTION = "the-answer-so-far", "the-next-question"  # nothing that a template would change
MAX_MESSAGE_LEN = 300  # of what went wrong within a template


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: by whom, such as system, user or assistant, and what was said.

    >>> turns = [Message("user", "Name a bird.")]  # for engine.tokenizer.chat_prompt(turns)
    >>> turns[0].role
    'user'
    """

    role: str
    content: str


Turn = Message | Mapping[str, str]  # a message, or one as {"role": …, "content": …}


class Chat:
    """How conversations with one model are written. Its template is read on first use, so that a
    broken one harms nobody who does not chat.
    """

    def __init__(
        self,
        folder: Path,
        special_tokens: Mapping[str, str],
        added_tokens: Collection[str],
        model_names: Collection[str] = (),
    ) -> None:
        """`special_tokens`: texts by names such as eos_token, for templates; `added_tokens`: the
        texts of all special tokens; `model_names`: names that may identify a published model.
        """
        self._folder = folder
        self._special_tokens = special_tokens
        self._added_tokens = added_tokens
        self._model_names = model_names

    @property
    def note(self) -> str | None:
        """What the user should know about the template; raises CheckpointError as prompt() does."""
        return self._template.note

    @property
    def source(self) -> str:
        """The template itself; raises CheckpointError as prompt() does."""
        return self._template.source

    def prompt(
        self,
        messages: Sequence[Turn],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> str:
        """The conversation, then the beginning of the answer, unless `add_generation_prompt` is False.
        With `continue_final` it ends within the last message, which so goes on.

        Raises CheckpointError where the model has no chat template or a faulty one, RequestError for
        messages that its template refuses.
        """
        is_list = isinstance(messages, Iterable) and not isinstance(messages, str | bytes | Mapping)
        if not is_list or not messages:
            got = "none" if messages is None or is_list else f"{messages!r:.80}"
            raise RequestError("a list of at least one message", got, "add the user's message")
        turns = list(map(_as_message, messages))
        if continue_final:
            turns[-1] = Message(turns[-1].role, turns[-1].content + ANSWER)
            add_generation_prompt = False
        text = self._rendered(turns, add_generation_prompt)
        if not continue_final:
            return text
        begun, mark, _ = text.rpartition(ANSWER)
        if not mark:
            where = f"a chat template in {self._template.where} that writes the last message"
            raise RequestError(where, "one that changes it", "end with a user's message")
        return begun

    def _rendered(self, turns: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._render(turns, add_generation_prompt)
        except TooMuch as error:
            raise CheckpointError(
                f"a chat template in {self._template.where} that keeps within its bounds",
                str(error),
                "use another template, or shorter messages",
            ) from None
        except TemplateError as error:
            raise RequestError(
                f"messages as the chat template in {self._template.where} takes them",
                _line(error),
                "change the messages",
            ) from None
        except GyrfalconError:
            raise
        except Exception as error:  # whatever a template leads to
            raise RequestError(
                f"messages that the chat template in {self._template.where} can write",
                _line(error),
                "change the messages, or correct the template",
            ) from None

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """The text that ends an answer: the special token that the template writes after one, else
        the beginning of the user's next turn. None where the template does not show one.
        """
        talk = [
            Message("user", "a"),
            Message("assistant", ANSWER),
            Message("user", QUESTION),
        ]
        try:
            text = self.prompt(talk)
        except RequestError:  # it takes one turn only, say
            return ()
        between, asked, _ = text.rpartition(ANSWER)[2].partition(QUESTION)
        stop = _ending(between, self._added_tokens) if ANSWER in text and asked else ""
        return (stop,) if stop else ()

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        variables = {
            **self._special_tokens,
            "messages": [asdict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        given_len = sum(len(message.role) + len(message.content) for message in messages)
        return render(self._code, variables, given_len)

    @cached_property
    def _template(self) -> ChatTemplate:
        return read_template(self._folder, self._model_names)

    @cached_property
    def _code(self) -> CodeType:
        try:
            return compile_template(self._template.source)
        except Exception as error:  # jinja2's kinds, and Python's where it is nested too deeply
            at = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise CheckpointError(
                f"a chat template in {self._template.where}", at + _line(error), "correct it"
            ) from None


def _as_message(turn: Turn) -> Message:
    if isinstance(turn, Mapping) and set(turn) == {"role", "content"}:
        turn = Message(**turn)
    if isinstance(turn, Message) and isinstance(turn.role, str) and isinstance(turn.content, str):
        return turn
    raise RequestError(
        'as a message Message(role, content) or {"role": …, "content": …} of texts',
        f"{turn!r:.80}",
        "pass one for each turn",
    )


def _ending(between: str, added_tokens: Collection[str]) -> str:
    """The first special token between an answer and the next question, or the text before it."""
    marks = sorted(filter(None, added_tokens), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, marks)), between) if marks else None
    text = between[: found.start()] if found else between
    if found and not text.strip():
        return found[0]
    on_the_answers_line = re.match(r"[^\S\n]*\S[^\n]*", text)  # a mark that is no token
    return (on_the_answers_line[0] if on_the_answers_line else text).rstrip()


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()) or "nothing"
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f"{kind}{said}"[:MAX_MESSAGE_LEN]
