"""Describes how the settings of an earlier run differ from those of this one."""

from collections.abc import Mapping

from gyrfalcon.bounds import shown

Facts = Mapping[str, object]


def differences(then: Facts, now: Facts, options: Mapping[str, str]) -> str:
    """The earlier run's settings that differ, such as "--shots 5 and no --limit"; "" where none do.

    options: what users call a setting; a name that ends in … is shown without its value, an
    unlisted setting by its own name.
    """
    names = [name for name in (*now, *(set(then) - set(now))) if then.get(name) != now.get(name)]
    return " and ".join(_described(options.get(name, name), then.get(name)) for name in names)


def flat(part: object, prefix: str = "") -> dict[str, object]:
    """The leaves of nested JSON objects, each by its path: machine.cores."""
    if not isinstance(part, dict):
        return {prefix: part}
    leaves: dict[str, object] = {}
    for name, value in part.items():
        leaves |= flat(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def _described(name: str, value: object) -> str:
    if name.endswith("…"):
        return name.removesuffix("…")
    if value is None:
        return f"no {name}"
    return f"{name} {value if isinstance(value, str) else shown(value)}"
