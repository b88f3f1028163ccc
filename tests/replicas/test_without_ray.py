"""Without the extra ray: one line."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

import pytest

from gyrfalcon import UsageError


def test_an_import_says_in_one_line_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "ray" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.delitem(sys.modules, "gyrfalcon.ray", raising=False)
    with pytest.raises(
        ImportError, match=r"^wanted what .* \(the extra ray\), got no ray; "
    ) as caught:
        importlib.import_module("gyrfalcon.ray")
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)
    assert "gyrfalcon[ray]" in str(caught.value)
