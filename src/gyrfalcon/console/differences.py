"""In words: what an earlier run had otherwise than this one."""

from collections.abc import Mapping

from gyrfalcon.bounds import shown

Facts = Mapping[str, object]


def differences(then: Facts, now: Facts, options: Mapping[str, str]) -> str:
    """Such as "--shots 5 and no --limit": what the earlier run had; "" where nothing differs.

    options: what people call a fact; one whose name ends in … is told without its value, and what is
    not there by its own name.
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
