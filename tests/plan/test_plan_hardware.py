"""Hardware by name and by file: what is taken, and which line refuses the rest."""

import copy
import json
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.plan import measured
from gyrfalcon.plan.hardware import hardware_of, known_hardware

TABLE = json.loads(resources.files("gyrfalcon.plan").joinpath("hardware.json").read_text("utf-8"))
FIELDS = (
    "memory_bytes",
    "reserved_bytes",
    "bytes_per_second",
    "flops_per_second",
    "link",
    "network",
)
LAUNCHES = ("launch_seconds", "eager_launch_seconds")


def file_with(tmp_path: Path, **changed: object) -> Path:
    """The table's A100 as a user's file, with these fields changed; None leaves one out."""
    entry: dict[str, Any] = copy.deepcopy(
        next(one for one in TABLE["hardware"] if one["name"] == "a100")
    )
    entry.update(name="mine", **changed)
    entry = {name: value for name, value in entry.items() if value is not None}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**TABLE, "hardware": [entry]}))
    return path


def test_every_figure_of_the_table_has_its_source() -> None:
    for entry in TABLE["hardware"]:
        counted = {"layer_launches"} & set(entry)
        assert set(entry["sources"]) == {*FIELDS, *LAUNCHES, *counted}, entry["name"]


@pytest.mark.parametrize(
    ("word", "name", "cards", "per_machine"),
    [
        ("910b3x4", "910b3", 4, 4),
        ("h200", "h200", None, 8),
        ("H100x8", "h100", 8, 8),
        ("mi300x", "mi300x", None, 8),
        ("mi300xx2", "mi300x", 2, 2),
        ("mi300x8", "mi300x", 8, 8),
        ("a100x16", "a100", 16, 8),
    ],
)
def test_a_name_may_say_how_many_cards(
    word: str, name: str, cards: int | None, per_machine: int
) -> None:
    hardware, found = hardware_of(word)
    assert (hardware.name, found, hardware.cards_per_machine) == (name, cards, per_machine)


def test_a_file_of_the_same_format_is_taken(tmp_path: Path) -> None:
    hardware, cards = hardware_of(str(file_with(tmp_path, price_per_hour=2.5)))
    assert (hardware.name, hardware.price_per_hour, cards) == ("mine", 2.5, None)
    assert hardware.bytes_per_second == known_hardware()["a100"].bytes_per_second


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory_bytes": None}, "a field memory_bytes"),
        ({"memory_bytes": 0}, "memory_bytes above 0"),
        ({"bytes_per_second": "fast"}, "a number for bytes_per_second"),
        ({"bytes_per_second": 1e30}, "a number for bytes_per_second"),
        ({"launch_seconds": -1}, "launch_seconds of 0 or more"),
        ({"link": {"latency_seconds": 1e-6}}, "a field bytes_per_second"),
        (
            {"link": {"latency_seconds": 0, "bytes_per_second": 1, "peers": 0}},
            "peers from 1 to 1,024",
        ),
        ({"link": 3}, "an object for link"),
        ({"reserved_bytes": 81e9}, "reserved_bytes below memory_bytes"),
        ({"cards_per_machine": 5000}, "cards_per_machine from 1 to 1,024"),
        ({"sources": {}}, "a field memory_bytes"),
        ({"price_per_hour": -1}, "price_per_hour above 0"),
        ({"block_size": -1}, "block_size from 1 to"),
        ({"graphs": "yes"}, "true or false for graphs"),
        ({"layer_launches": 0}, "layer_launches from 1 to 1,000"),
        ({"fp8": 1}, "true or false for fp8"),
        ({"colour": "red"}, "only fields whose meaning is known"),
    ],
)
def test_a_file_s_wrong_field_is_named(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        hardware_of(str(file_with(tmp_path, **changed)))


def test_a_file_has_one_entry_of_this_format(tmp_path: Path) -> None:
    file = tmp_path / "hardware.json"
    file.write_text(json.dumps(TABLE))
    with pytest.raises(ConfigError, match="one entry"):
        hardware_of(str(file))
    file.write_text('{"format": "another", "version": 1, "hardware": []}')
    with pytest.raises(ConfigError, match="format gyrfalcon-hardware"):
        hardware_of(str(file))


@pytest.mark.parametrize("word", ["h300", "h100x0", "h100x2000", "", "x8"])
def test_other_words_are_refused_in_a_line(word: str) -> None:
    with pytest.raises(UsageError, match="wanted"):
        hardware_of(word)


def test_a_dtype_without_a_peak_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bf16, fp16\), got fp32"):
        known_hardware()["910b3"].peak("fp32")


def test_fp8_is_refused_where_the_engine_refuses_it() -> None:
    """On Ascend cards (device/npu.py)."""
    for name, hardware in known_hardware().items():
        if name == "910b3":
            with pytest.raises(UsageError, match=f"8-bit floating point for fp8, got {name}"):
                hardware.require_fp8()
        else:
            hardware.require_fp8()


def test_a_machine_without_fp8_is_not_measured_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = known_hardware()["910b3"]  # which has this of a device alone
    monkeypatch.setattr(measured, "kind_for", lambda _: SimpleNamespace(at=lambda _: card))
    with pytest.raises(UsageError, match="8-bit floating point"):
        measured.this_machine("bf16", "fp8")
