"""`gyrfalcon generate` with --json-schema, --regex, --choice and --grammar: the text matches, and what is
wrong with a schema is said before the weights are loaded."""

import json
import re
from pathlib import Path

import pytest

from gyrfalcon.cli import generate_run
from gyrfalcon.cli.main import main

pytest.importorskip("llguidance", reason="the extra serve is not installed")

SCHEMA = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}


def text_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    prompt = ["--prompt", "The falcon is", "--json", "-", "--max-new-tokens", "60"]
    assert main(["generate", "nestling", *prompt, *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] == "stop"
    return str(result["text"])


def test_each_option_is_matched_by_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text("\ufeff" + json.dumps(SCHEMA), "utf-8")
    grammar.write_text('start: "<" WORD ">"\nWORD: /[a-z]{3}/\n', "utf-8")
    assert len(json.loads(text_of(capsys, "--json-schema", str(schema)))) == 2
    assert re.fullmatch("[A-Z]{2}[0-9]", text_of(capsys, "--regex", "[A-Z]{2}[0-9]"))
    assert text_of(capsys, "--choice", "a kite", "--choice", "a merlin") in ("a kite", "a merlin")
    assert re.fullmatch("<[a-z]{3}>", text_of(capsys, "--grammar", str(grammar)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--regex", "(a"], "a regular expression that llguidance takes, got"),
        (["--json-schema", "{schema}"], "a JSON schema that llguidance takes, got"),
        (["--grammar", "{schema}"], "a grammar in Lark's syntax that llguidance takes, got"),
        (["--grammar", "missing"], "missing"),
        (["--choice", "a", "--regex", "a"], "one of --json-schema, --regex, --choice, --grammar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_one_line_before_the_weights_are_loaded(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"$ref": "#"}', "utf-8")
    monkeypatch.setattr(generate_run, "Engine", None)  # would be called to load them
    words = [word.format(schema=schema) for word in words]
    assert main(["generate", "nestling", "--prompt", "x", *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
