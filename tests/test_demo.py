"""`gyrfalcon demo` as a script that reads its result would call it."""

import json

import pytest

from gyrfalcon.cli import main


@pytest.mark.slow
def test_the_result_stands_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["faults"] == []
    assert result["text_of_1"] == result["text_of_2"]
    assert "verify" in err
