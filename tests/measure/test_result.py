"""Result files that are none: the refusal names what came."""

import json
from pathlib import Path

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.measure import result

MARKS = {"format": result.FORMAT, "version": result.VERSION, "kind": "mmlu"}


@pytest.mark.parametrize(
    ("document", "got"),
    [
        ([1, 2], "JSON without an object: [1, 2]"),
        (None, "JSON without an object: null"),
        ("x" * 80, f'JSON without an object: "{"x" * 38}…'),
        ({}, "an empty JSON object"),
        ({"hidden_size": 1, "n_head": 2}, 'a JSON object with "hidden_size", "n_head"'),
        (dict.fromkeys("abcd"), 'a JSON object with "a", "b", "c", …'),
        (MARKS, 'one of kind "mmlu" and version 1'),
        ({**MARKS, "kind": "speed", "version": 2}, 'one of kind "speed" and version 2'),
        ({"format": result.FORMAT}, "one of kind null and version null"),
    ],
)
def test_what_came_is_named(document: object, got: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(UsageError) as caught:
        result.read(path, "speed", "precision")
    assert caught.value.wanted == f"a speed or precision result of gyrfalcon in {path}"
    assert caught.value.got == got
