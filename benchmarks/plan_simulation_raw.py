"""What benchmarks/plan_simulation.py measures of a model with one seed, before anything is made of it: kept
as JSON, so that figures can be computed again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plan_simulation_server import Rows, Steps

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import TimedStep
from gyrfalcon.plan.step_load import StepLoad

COLUMNS = (*StepLoad._fields, "seconds", "arrivals")


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at a share of the capacity, and the steps that they took."""

    load: float
    rows: Rows
    steps: Steps


@dataclass(frozen=True, slots=True)
class Raw:
    """All of it."""

    seconds: float
    capacity: tuple[float, float]  # before and after
    others: float  # the share of the processors that others used
    fitted: Sequence[Steps]  # to which step times are fitted: before, between and after open loops
    closed: Sequence[Rows]  # of each closed loop
    opened: Sequence[OpenLoop]
    simulated: SimulatedSettings  # of the engine

    def write(self, path: Path) -> None:
        """As JSON."""
        plain: dict[str, Any] = {
            **asdict(self),
            "columns": COLUMNS,
            "fitted": [_numbers(steps) for steps in self.fitted],
            "opened": [{**asdict(one), "steps": _numbers(one.steps)} for one in self.opened],
        }
        path.write_text(json.dumps(plain) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Raw":
        """What write() wrote."""
        plain = json.loads(path.read_text("utf-8"))
        assert tuple(plain["columns"]) == COLUMNS, "written by another version"
        return cls(
            plain["seconds"],
            tuple(plain["capacity"]),
            plain["others"],
            [_steps(rows) for rows in plain["fitted"]],
            plain["closed"],
            [OpenLoop(one["load"], one["rows"], _steps(one["steps"])) for one in plain["opened"]],
            _settings(plain["simulated"]),
        )


def _settings(plain: Mapping[str, Any]) -> SimulatedSettings:
    return SimulatedSettings(**{**plain, "limits": StepLimits(**plain["limits"])})


def _numbers(steps: Steps) -> list[list[float]]:
    return [[*one.load, one.seconds, one.arrivals] for one in steps]


def _steps(rows: Sequence[Sequence[Any]]) -> Steps:
    size = len(StepLoad._fields)
    return [TimedStep(StepLoad(*row[:size]), *row[size:]) for row in rows]
