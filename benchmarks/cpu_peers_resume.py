"""Resumes a run of benchmarks/cpu_peers.py from its JSON file, and reads the turns in it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cpu_peers_plan import Plan
from cpu_peers_results import Case, Turn

from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import parsed_json
from gyrfalcon.measure.roofline import MachineLimits

SAME = ("format", "version", "threads", "dtype", "models", "versions")
SAME_MACHINE = ("processor", "kind", "system", "python")


def kept_turns(plan: Plan, facts: Mapping[str, object], file: Path) -> list[Turn]:
    """The turns in `file`, of each model up to the first round in which an engine failed; none where there
    is no such file. UsageError where they were measured on another machine, with other versions, or in
    other cases.
    """
    if not file.exists():
        return []
    try:
        found = cast(Any, parsed_json(file.read_bytes(), str(file), "name another file"))
        turns = [_turn(raw) for raw in found["turns"]]
        differing = [*_differing(found, facts, SAME)]
        differing += _differing(found["machine"], cast(Any, facts["machine"]), SAME_MACHINE)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        wanted = f"a result of cpu_peers.py in {file}"
        raise UsageError(wanted, f"{type(error).__name__}: {error}", "name another file") from None
    missing = cast(Collection[str], facts["missing"])
    if differing or any(
        rounds_of(turns, model) and _cases(turns, model) != _planned(plan, model, missing)
        for model in plan.configs
    ):
        got = ", ".join(differing) or "cases"
        do = "repeat its command, or name another file"
        raise UsageError(f"the rounds in {file} to be of this run", f"other {got}", do)
    return [turn for turn in turns if turn.round < _sound_rounds(turns, turn.case.model)]


def rounds_of(turns: Sequence[Turn], model: str) -> int:
    """How many rounds there are of a model."""
    return 1 + max((turn.round for turn in turns if turn.case.model == model), default=-1)


def _sound_rounds(turns: Sequence[Turn], model: str) -> int:
    """How many rounds of a model there are before one in which an engine failed."""
    failed = [turn.round for turn in turns if turn.case.model == model and turn.failed is not None]
    return min(failed, default=rounds_of(turns, model))


def _turn(raw: dict[str, Any]) -> Turn:
    return Turn(**{**raw, "case": Case(**raw["case"]), "limits": MachineLimits(**raw["limits"])})


def _differing(
    one: Mapping[str, object], other: Mapping[str, object], names: Collection[str]
) -> list[str]:
    return [name for name in names if one[name] != other[name]]


def _cases(turns: Sequence[Turn], model: str) -> set[tuple[Case, str]]:
    return {(turn.case, turn.engine) for turn in turns if turn.case.model == model}


def _planned(plan: Plan, model: str, missing: Collection[str]) -> set[tuple[Case, str]]:
    """The turns of each round of a model."""
    return {
        (Case(model, precision, batch, plan.prompt_len, plan.steps), engine)
        for precision, engine in plan.pairs(model, missing)
        for batch in plan.batches
    }
