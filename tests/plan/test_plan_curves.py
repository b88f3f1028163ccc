"""What the plots of a plan show."""

from pathlib import Path

import pytest

from gyrfalcon.cli.main import main
from gyrfalcon.plan.curves import card_curves, rate_curve, step_curves
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.hardware import hardware_of
from gyrfalcon.plan.lengths import Streams, default_lengths
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.sizing import Demand, size
from gyrfalcon.plan.step_load import decoding_load
from gyrfalcon.plan.target import target_of

SETTING = Setting(planned_model("falcon-7b"), hardware_of("h100")[0], "bf16", "none", 512, 64)


def test_steps_rise_to_the_most_sequences_and_prompts_take_longer() -> None:
    alone, mixed = step_curves(SETTING, 1, 1000)
    assert alone.x[:6] == (1, 2, 3, 4, 6, 8)
    assert alone.x[-1] == 64
    assert list(alone.y) == sorted(alone.y)
    assert all(both > one for both, one in zip(mixed.y, alone.y, strict=True))
    seconds = SETTING.predicted(1).seconds(decoding_load(8, 8000))
    assert alone.y[alone.x.index(8)] == pytest.approx(1000 * seconds)
    assert rate_curve(alone).y[alone.x.index(8)] == pytest.approx(8 / seconds)


def test_cards_over_streams_are_those_of_the_sizing() -> None:
    streams = Streams.of(*default_lengths(2048), 2048)
    demand = Demand(target_of("30 tok/s, 2k context, 300 users"), 2.0, streams, spare=1)
    found = size(SETTING, demand)
    curves = card_curves(demand, found)
    assert curves[0].y[curves[0].x.index(300)] == found[0].split.cards
    assert all(list(curve.y) == sorted(curve.y) for curve in curves)


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("words", [[], ["--target", "30 tok/s, 2k context, 300 users"]])
def test_a_plan_is_drawn(suffix: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / f"plan.{suffix}"
    assert main(["plan", "falcon-7b", "--hardware", "h100", *words, "--plot", str(file)]) == 0
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        text = content.decode()
        for word in ("Memory of a rank", "A step", "Cards" if words else "Tokens a second"):
            assert word in text


def test_another_kind_of_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "falcon-7b", "--hardware", "h100", "--plot", "plan.gif"]) == 2
    assert "ends in .png or .svg" in capsys.readouterr().err
