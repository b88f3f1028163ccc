"""The environment of ranks: what libraries read when they start, set unless the user has set it.

Imports no torch.
"""

import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gyrfalcon.device.host import Host
from gyrfalcon.device.setup import Setup, Variable

OURS = "GYRFALCON_SET"  # the names of variables that gyrfalcon has set here, for its later looks
THREADS = "OMP_NUM_THREADS"
BY_US, BY_USER, DEFAULT = "set by gyrfalcon", "set by you", "default"


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable as a rank has it; `value` is empty where the library's own default holds."""

    name: str
    value: str
    origin: str
    why: str


def settings_of(
    setup: Setup, ranks_here: int, threads: int, environment: Mapping[str, str] = os.environ
) -> list[Setting]:
    """The environment of a rank among this many of a machine, each with `threads` threads."""
    variables = [*setup.variables(Host(environment=environment))]
    if setup.visible is not None:
        cards = ",".join(map(str, range(ranks_here)))
        visible = setup.visible
        variables.append(Variable(visible.name, cards, visible.why, visible.aliases))
    variables.append(Variable(THREADS, str(threads), "threads of a rank: its share of the cores"))
    return [_setting(variable, environment) for variable in variables]


def set_by_user(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable is set, and not by gyrfalcon."""
    return name in environment and name not in environment.get(OURS, "").split(",")


def set_up_process(setup: Setup, environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what the libraries of this process, which is a rank, read once they use a device. Which cards
    and how many threads are left alone: the process may be more than a rank.
    """
    variables = setup.variables(Host(environment=environment))
    _set([_setting(variable, environment) for variable in variables], environment)


@contextmanager
def set_up_ranks(settings: Sequence[Setting]) -> Iterator[None]:
    """Processes that are started within it have these settings. One thread at a time."""
    before = dict(os.environ)
    try:
        _set(settings, os.environ)
        yield
    finally:
        for name in (*(setting.name for setting in settings), OURS):
            if name not in before:
                os.environ.pop(name, None)
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]


def _setting(variable: Variable, environment: Mapping[str, str]) -> Setting:
    for name in (variable.name, *variable.aliases):
        if set_by_user(name, environment):
            return Setting(name, environment[name], BY_USER, variable.why)
    origin = BY_US if variable.value else DEFAULT
    return Setting(variable.name, variable.value, origin, variable.why)


def _set(settings: Sequence[Setting], environment: MutableMapping[str, str]) -> None:
    names = [name for name in environment.get(OURS, "").split(",") if name]
    for setting in settings:
        if setting.origin == BY_US:
            environment[setting.name] = setting.value
            names.append(setting.name)
    if names:
        environment[OURS] = ",".join(dict.fromkeys(names))
