"""Conversations are written by the checkpoint's own chat template as transformers writes them, and answers
end where the template ends them.
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from chat_templates import (
    BLANK_LINES,
    CHATML,
    FALCON_180B,
    HUMAN,
    INST,
    MANY_TURNS,
    MARKS_OF_TURNS,
    ONE_TURN,
    WITH_MACROS,
    WITH_SYSTEM,
    make_chat_folder,
)
from engines import small
from jinja2.exceptions import TemplateError
from scripted import make_scripted
from tokenizers import processors
from tokenizers_ import make_tokenizer
from transformers import AutoTokenizer

from gyrfalcon.cli.main import main
from gyrfalcon.errors import CheckpointError, RequestError
from gyrfalcon.text.chat import Message
from gyrfalcon.text.tokenizer import Tokenizer

FORMS = {
    "chatml": CHATML,
    "180b": FALCON_180B,
    "blank-lines": BLANK_LINES,
    "human": HUMAN,
    "inst": INST,
    "marks": MARKS_OF_TURNS,
    "macros": WITH_MACROS,
}
TALKS = {"one-turn": ONE_TURN, "with-system": WITH_SYSTEM, "many-turns": MANY_TURNS}
NAMED_TOKENS = {"bos_token": "<|endoftext|>", "pad_token": ">>PREFIX<<"}
Talk = list[tuple[str, str]]


def chat_of(folder: Path, *model_names: str) -> Tokenizer:
    return Tokenizer.load(folder, model_names)


def written(tokenizer: Tokenizer, talk: Talk) -> str:
    return tokenizer.chat_prompt([Message(*turn) for turn in talk])


def by_transformers(folder: Path, talk: Talk) -> tuple[str, list[int]]:
    """The text of a conversation and its ids."""
    reference = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in talk]
    text = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return text, ids


def assert_equals_transformers(folder: Path, talk: Talk) -> None:
    tokenizer = chat_of(folder)
    text, ids = by_transformers(folder, talk)
    assert written(tokenizer, talk) == text
    assert tokenizer.chat_ids([Message(*turn) for turn in talk]) == ids


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_written_as_transformers_writes_it(
    form: str, talk: str, tmp_path: Path
) -> None:
    folder = make_chat_folder(tmp_path, FORMS[form], **NAMED_TOKENS)
    try:
        by_transformers(folder, TALKS[talk])
    except TemplateError as error:  # raise_exception, for a conversation it does not take
        with pytest.raises(RequestError, match=f"got {str(error)[:20]}"):
            written(chat_of(folder), TALKS[talk])
    else:
        assert_equals_transformers(folder, TALKS[talk])


def test_a_template_file_comes_before_the_config(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path, FALCON_180B)
    (folder / "chat_template.jinja").write_text(CHATML + "\r\n\n")
    assert_equals_transformers(folder, MANY_TURNS)
    assert "<|im_start|>" in written(chat_of(folder), ONE_TURN)


def test_lines_may_end_in_any_way(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path)
    for end in (b"\r\n", b"\r"):
        (folder / "chat_template.jinja").write_bytes(HUMAN.encode().replace(b"\n", end))
        assert_equals_transformers(folder, WITH_SYSTEM)


def test_a_begin_token_stands_before_a_chat_only_where_its_template_writes_one(
    tmp_path: Path,
) -> None:
    folder = make_chat_folder(tmp_path, INST, **NAMED_TOKENS)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>", "$A"], special_tokens=[("<|endoftext|>", 11)]
    )
    library.save(str(folder / "tokenizer.json"))
    tokenizer = chat_of(folder)
    assert tokenizer.encode("A bird")[0] == 11
    ids = tokenizer.chat_ids([Message(*turn) for turn in ONE_TURN])
    assert ids == by_transformers(folder, ONE_TURN)[1]
    assert ids.count(11) == 1


def test_falcons_own_tokenizer_writes_chats_as_in_transformers(
    tmp_path: Path, data: Callable[[str], Path]
) -> None:
    shutil.copytree(data("falcon-tokenizer"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(BLANK_LINES)
    for talk in TALKS.values():
        assert_equals_transformers(tmp_path, talk)


@pytest.mark.parametrize("named", ["list", "object", "files"])
def test_of_several_templates_the_default_is_used(named: str, tmp_path: Path) -> None:
    both = {"tool_use": HUMAN, "default": CHATML}
    as_list = [{"name": name, "template": text} for name, text in both.items()]
    template = {"list": as_list, "object": both, "files": FALCON_180B}[named]
    folder = make_chat_folder(tmp_path, template)
    if named == "files":
        (folder / "additional_chat_templates").mkdir()
        for name, text in both.items():
            (folder / f"additional_chat_templates/{name}.jinja").write_text(text)
    assert_equals_transformers(folder, WITH_SYSTEM)
    assert "<|im_start|>" in written(chat_of(folder), ONE_TURN)


def test_named_templates_without_a_default_are_refused_as_by_transformers(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path, [{"name": "rag", "template": CHATML}])
    with pytest.raises(ValueError, match="no default"):
        by_transformers(folder, ONE_TURN)
    with pytest.raises(CheckpointError, match="got rag; name"):
        written(chat_of(folder), ONE_TURN)


@pytest.mark.parametrize(
    ("template", "got"),
    [
        (None, "neither chat_template.jinja nor one in tokenizer_config.json"),
        ("{% for m in messages %}\n{% if %}", "line 2: Expected an expression"),
        ("{{ 'x'|no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{{ x", "line 1: unexpected end of template"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "RecursionError"),
        ("a" * 65537, "a larger one"),
        (["no", "templates"], "['no', 'templates']"),
        (5, "5"),
        ({"default": ["x"]}, "['x']"),
    ],
)
def test_a_template_that_is_missing_or_faulty_harms_only_who_chats(
    template: object, got: str, tmp_path: Path
) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, template))
    assert tokenizer.encode("A bird")
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            written(tokenizer, ONE_TURN)
        assert got in str(caught.value)
        assert "\n" not in str(caught.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def test_a_template_file_that_is_no_utf8_or_too_long_is_refused(tmp_path: Path) -> None:
    folder = make_chat_folder(tmp_path)
    for content, got in (
        (b"\xff{{ messages }}", "not UTF-8"),
        (b"a" * 65537, "a larger one"),
        (LFS, "git lfs pull"),
    ):
        (folder / "chat_template.jinja").write_bytes(content)
        with pytest.raises(CheckpointError, match=got):
            written(chat_of(folder), ONE_TURN)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no\nsystem, please') }}",
        "{{ messages[0].nope.nothing }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ messages | tojson(sort_keys=5, indent={}) }}",
        "{% include 'x' %}",
        "{% extends messages[0].content %}",
        "{% import 'x' as x %}",
        "{{ ''.join(messages) }}",
        "{{ dict(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 10.0 ** 400 }}",
        "{{ (1, 2)|sort(attribute='x.y')|first + nothing.at.all }}",
    ],
)
def test_whatever_a_template_runs_into_is_one_line(template: str, tmp_path: Path) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, template))
    with pytest.raises(RequestError) as caught:
        written(tokenizer, ONE_TURN)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_messages_may_be_dicts_as_in_transformers(tmp_path: Path) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, CHATML))
    talk = [{"role": role, "content": content} for role, content in MANY_TURNS]
    assert tokenizer.chat_prompt(talk) == written(tokenizer, MANY_TURNS)


@pytest.mark.parametrize("form", FORMS)
def test_a_last_message_that_goes_on_ends_the_prompt(form: str, tmp_path: Path) -> None:
    chat = chat_of(make_chat_folder(tmp_path, FORMS[form])).chat
    question = Message("user", "Name a bird.")
    begun = chat.prompt([question, Message("assistant", "The ")], continue_final=True)
    assert begun.endswith("The ")
    whole = chat.prompt(
        [question, Message("assistant", "The falcon.")], add_generation_prompt=False
    )
    assert whole.startswith(begun + "falcon.")


def test_a_last_message_that_the_template_drops_cannot_go_on(tmp_path: Path) -> None:
    dropping = "{% for message in messages[:-1] %}{{ message.content }}{% endfor %}"
    chat = chat_of(make_chat_folder(tmp_path, dropping)).chat
    with pytest.raises(RequestError, match="writes the last message"):
        chat.prompt([Message("user", "a"), Message("assistant", "b")], continue_final=True)


NO_MESSAGES: list[object] = [
    5,
    b"hello",
    [],
    None,
    [None],
    "Name a bird.",
    ["Name a bird."],
    {"role": "user", "content": "a"},
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [Message("user", 5)],  # type: ignore[arg-type]  # that is the point
]


@pytest.mark.parametrize("messages", NO_MESSAGES)
def test_what_are_no_messages_is_refused(messages: object, tmp_path: Path) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, CHATML))
    with pytest.raises(RequestError, match="message"):
        tokenizer.chat_prompt(messages)  # type: ignore[arg-type]  # that is the point


def test_threads_render_side_by_side(tmp_path: Path) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, WITH_MACROS))
    talks = [[("user", f"{i} birds"), *MANY_TURNS[1:]] for i in range(8)]
    wanted = [written(tokenizer, talk) for talk in talks]
    got: dict[int, set[str]] = {i: set() for i in range(8)}

    def render(i: int) -> None:
        got[i] = {written(tokenizer, talks[i]) for _ in range(10)}

    threads = [threading.Thread(target=render, args=(i,)) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [got[i] for i in range(8)] == [{text} for text in wanted]


@pytest.mark.parametrize(
    ("form", "stop"),
    [
        (CHATML, "<|im_end|>"),
        (FALCON_180B, "\nUser:"),
        (BLANK_LINES, "\n\nUser:"),
        (HUMAN, "\n### Human:"),
        (INST, "<|endoftext|>"),
        (MARKS_OF_TURNS, "<|user|>"),
        (CHATML.replace("<|im_end|>", "<end of turn>"), "<end of turn>"),
        (CHATML.replace("<|im_start|>", "<<").replace("<|im_end|>", "\n"), "\n\n<<user"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content ~ '\n' }}{% endfor %}", None),
        ("{{ messages[-1].content }}", None),
        ("{{ messages[0].content | upper }}", None),
        ("{{ raise_exception('one turn') if messages|length > 1 }}", None),
    ],
)
def test_an_answer_ends_at_its_mark_or_where_the_next_turn_begins(
    form: str, stop: str | None, tmp_path: Path
) -> None:
    folder = make_chat_folder(tmp_path, form, **NAMED_TOKENS)
    assert chat_of(folder).chat.stops == (() if stop is None else (stop,))


BUILT_IN_TALK = [
    ("system", "Be brief."),
    ("user", " Hello!\n"),
    ("assistant", ""),
    ("user", "Name a bird."),
]


@pytest.mark.parametrize(
    ("name", "system", "assistant"),
    [
        ("tiiuae/falcon-7b-instruct", "", "Assistant:"),
        ("/models/Falcon-40B-Instruct/", "", "Assistant:"),
        ("models--tiiuae--falcon-180B-chat", "System: ", "Falcon:"),
    ],
)
def test_published_models_without_a_template_have_a_form_and_a_note(
    name: str, system: str, assistant: str, tmp_path: Path
) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path), "cut", name)
    turns = f"User: Hello!\n{assistant}\nUser: Name a bird.\n{assistant}"
    wanted = f"{system}Be brief.\n{turns}"
    assert written(tokenizer, BUILT_IN_TALK) == wanted
    assert tokenizer.chat.stops == ("\nUser:",)
    assert tokenizer.chat.note is not None
    assert "no chat template" in tokenizer.chat.note


@pytest.mark.parametrize(
    "name",
    ["tiiuae/falcon-7b", "falcon-180B", "my-falcon-7b-instruct-chatml", "falcon-7b-instruct/x"],
)
def test_other_models_without_a_template_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="write the turns into the prompt"):
        written(chat_of(make_chat_folder(tmp_path), name), ONE_TURN)


def test_the_models_own_template_comes_before_a_built_in_form(tmp_path: Path) -> None:
    tokenizer = chat_of(make_chat_folder(tmp_path, CHATML), "falcon-7b-instruct")
    assert written(tokenizer, ONE_TURN).startswith("<|im_start|>user\n")
    assert tokenizer.chat.note is None


@pytest.mark.parametrize(
    ("messages", "got"),
    [
        ([("tool", "x"), ("user", "a")], "a message by tool"),
        ([("User", "a")], "a message by User"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "a system message in place 2"),
        ([("user", "a"), ("assistant", "b")], "a last message by assistant"),
        ([("system", "a")], "a last message by system"),
    ],
)
def test_built_in_forms_refuse_conversations_that_cannot_be_continued(
    messages: Talk, got: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=got):
        written(chat_of(make_chat_folder(tmp_path), "falcon-7b-instruct"), messages)


def scripted_chat(folder: Path, template: str | None, answer: str) -> Path:
    """A model that answers, and goes on with, the same text whatever it is asked."""
    tokenizer = Tokenizer.load(make_chat_folder(folder, template))
    before = ":" if template is None else "\n"  # what the template ends with
    make_scripted(folder, tokenizer.vocab_size, tokenizer.encode(before + answer))
    return folder


def generated(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """What is written for one chat prompt, and why it ended."""
    arguments = ["--prompt", "A bird?", "--chat", "--json", "-", "--max-new-tokens", "12", *words]
    assert main(["generate", str(folder), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    return result["text"], result["finish_reason"]


def test_an_answer_ends_before_the_users_turn_but_not_before_a_users_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scripted_chat(tmp_path / "1/falcon-7b-instruct", None, " it\nUser:")
    assert generated(folder, capsys) == (" it", "stop")
    assert generated(folder, capsys, "--ignore-eos")[0].startswith(" it\nUser: it\nUser:")
    folder = scripted_chat(tmp_path / "2/falcon-7b-instruct", None, " it\nUsers<|endoftext|>")
    assert generated(folder, capsys) == (" it\nUsers", "stop")


def test_an_answer_in_chatml_ends_at_its_mark_which_no_config_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scripted_chat(tmp_path, CHATML, " it<|im_end|>\n")
    assert generated(folder, capsys) == (" it", "stop")
    text, reason = generated(folder, capsys, "--ignore-eos")
    assert (text.count(" it"), reason) == (4, "length")


def test_a_cut_chats_like_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = scripted_chat(tmp_path / "own", None, " it<|im_end|>\n")
    (own / "chat_template.jinja").write_text(CHATML.replace("assistant\n", "assistant:"))
    known = scripted_chat(tmp_path / "known", None, " it\nUser:")
    config = json.loads((known / "config.json").read_text())
    named = {**config, "_name_or_path": "tiiuae/falcon-40b-instruct"}
    (known / "config.json").write_text(json.dumps(named))
    for folder in (own, known):
        assert main(["cut", str(folder), str(tmp_path / "cut"), "-w", "1", "--overwrite"]) == 0
        capsys.readouterr()
        assert generated(folder, capsys) == generated(tmp_path / "cut", capsys) == (" it", "stop")


def test_a_built_in_form_is_said_in_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scripted_chat(tmp_path / "falcon-40b-instruct", None, " it\nUser:")
    assert main(["generate", str(folder), "--prompt", "a", "--chat"]) == 0
    assert "note: no chat template: turns are written as" in capsys.readouterr().err


def test_a_missing_template_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tokenizer(small(tmp_path))
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "a", "--chat", "--cache-memory", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wanted a chat template in" in line
