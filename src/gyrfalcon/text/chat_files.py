"""Finds the chat template of a checkpoint, in the files and by the rules of transformers 5;
published models without one have a built-in template. Reads templates, runs none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.foreign import open_foreign, read_json, unreadable
from gyrfalcon.text.tokenizer_files import TEMPLATE_FOLDER

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT = "default"
MAX_BYTES = 64 << 10

# The last part of a published name, perhaps after its owner as the hub's cache writes it.
KNOWN = re.compile(r"(?:.*--)?(falcon-(?:7b|40b)-instruct|falcon-180b-chat)", re.IGNORECASE)

BUILT_IN = """\
{%- for message in messages %}
{%- if message.role not in ('system', 'user', 'assistant') %}
{{- raise_exception('a message by ' ~ message.role ~ ', not by system, user or assistant') }}
{%- elif message.role == 'system' and not loop.first %}
{{- raise_exception('a system message in place ' ~ loop.index ~ ', not in the first') }}
{%- endif %}
{%- set start = {'system': 'SYSTEM', 'user': 'User: ', 'assistant': 'ASSISTANT: '}[message.role] %}
{{- (start ~ message.content.strip()).rstrip() ~ '\\n' }}
{%- endfor %}
{%- if messages[-1].role != 'user' %}
{{- raise_exception('a last message by ' ~ messages[-1].role ~ ', not by the user') }}
{%- endif %}
{{- 'ASSISTANT:' }}"""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template and where it was found."""

    source: str
    where: str  # the file, for messages
    note: str | None = None  # what a user should know about it


def read_template(folder: Path, model_names: Iterable[str]) -> ChatTemplate:
    """The template in a tokenizer's folder, else the built-in one of a published model whose name
    is one of `model_names`. Raises CheckpointError where there is none, or none that can be read.
    """
    template = _from_files(folder) or _from_config(folder / CONFIG_FILE) or _built_in(model_names)
    if template is None:
        raise CheckpointError(
            f"a chat template in {folder}",
            f"neither {TEMPLATE_FILE} nor one in {CONFIG_FILE}",
            "copy the one that the model was tuned with there, or write the turns into the prompt",
        )
    _check_len(len(template.source.encode(errors="replace")), template.where)
    return template


def _from_files(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja; templates of other names beside it are ignored, but alone they are no
    default.
    """
    path, others = folder / TEMPLATE_FILE, sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    default = folder / TEMPLATE_FOLDER / f"{DEFAULT}.jinja"
    for found in (default, path):
        if found.exists():
            return ChatTemplate(_read(found), str(found))
    if others:
        raise _no_default([other.stem for other in others], folder / TEMPLATE_FOLDER)
    return None


def _from_config(path: Path) -> ChatTemplate | None:
    stated = read_json(path).get("chat_template") if path.exists() else None
    if stated is None:
        return None
    named = {DEFAULT: stated} if isinstance(stated, str) else _named(stated, path)
    if DEFAULT not in named:
        raise _no_default(list(named), path)
    default = named[DEFAULT]
    if not isinstance(default, str):
        raise CheckpointError(
            f"a text as the chat template in {path}", f"{default!r:.80}", "fetch it again"
        )
    return ChatTemplate(default, str(path))


def _named(stated: object, path: Path) -> dict[object, object]:
    """A list or an object of named templates."""
    if isinstance(stated, dict):
        return stated
    try:
        return {one["name"]: one["template"] for one in stated}  # type: ignore[attr-defined]
    except (TypeError, KeyError, IndexError):
        raise CheckpointError(
            f"a chat template or a list of named ones in {path}",
            f"{stated!r:.80}",
            "fetch it again",
        ) from None


def _built_in(model_names: Iterable[str]) -> ChatTemplate | None:
    for name in model_names:
        known = KNOWN.fullmatch(re.split(r"[/\\]", name.rstrip("/\\"))[-1])
        if known:
            is_180b = "180b" in known[1].lower()
            assistant, system = ("Falcon", "System: ") if is_180b else ("Assistant", "")
            template = BUILT_IN.replace("ASSISTANT", assistant).replace("SYSTEM", system)
            note = f"no chat template: turns are written as {known[1]}'s, User: and {assistant}:"
            return ChatTemplate(template, f"gyrfalcon for {known[1]}", note)
    return None


def _read(path: Path) -> str:
    """A text file; every kind of line end becomes a line feed, as Python reads text."""
    try:
        with open_foreign(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    _check_len(len(content), str(path))
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        got = "bytes that are not UTF-8"
        raise CheckpointError(f"a chat template in {path}", got, "fetch it again") from None


def _check_len(num_bytes: int, where: str) -> None:
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"a chat template of at most {MAX_BYTES >> 10} KB in {where}",
            "a larger one",
            "shorten it, or write the turns into the prompt",
        )


def _no_default(names: list[object] | list[str], where: Path) -> CheckpointError:
    got = ", ".join(map(str, names)) or "none"
    return CheckpointError(
        f"a chat template named {DEFAULT} in {where}", f"{got:.200}", "name one of them so"
    )
