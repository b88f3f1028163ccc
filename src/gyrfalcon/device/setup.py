"""What a kind of device needs of its machine: drivers and libraries that fit each other, and an
environment for the ranks. Each kind has a file NAME_setup.py with a SETUP; none imports torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from gyrfalcon.device.host import Host

MOST_LETTERS = 160  # of others' words


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. With a cure something could be better, and a fault is wrong."""

    name: str
    found: str
    cure: str = ""
    is_fault: bool = False

    def __post_init__(self) -> None:
        assert self.cure or not self.is_fault


def first_letters(text: str) -> str:
    """The beginning of what a program or library said, for one line."""
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def fault(name: str, found: str, cure: str) -> Finding:
    """A finding that is wrong."""
    return Finding(name, found, cure, True)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment that a library reads when it starts. Ranks get `value`, if there is
    one, unless the user has set the variable, or one of `aliases`, which say the same.
    """

    name: str
    value: str
    why: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """One kind of device as its machine knows it."""

    present: Callable[[Host], bool]  # whether there is such a device, or software for one
    check: Callable[[Host], Iterator[Finding]]
    num_cards: Callable[[Host], int]  # that the driver has
    variables: Callable[[Host], Sequence[Variable]]
    visible: Variable | None = None  # which cards a process may use: 0,1,… for as many ranks
    bandwidths: Mapping[str, float] = field(default_factory=dict)  # bytes a second as the maker
    # states them, by a part of the card's name: the first that fits
    packages: tuple[str, ...] = ()  # whose versions matter; nvidia-* are all that begin so
    noted: tuple[str, ...] = ()  # further variables that change what libraries do
    queries: tuple[tuple[str, ...], ...] = ()  # programs that describe the cards
    logs: tuple[str, ...] = ()  # patterns of files, below the home folder where they begin with ~,
    # and below a folder that the environment names where they begin with $NAME


@cache
def setup_of(name: str) -> Setup:
    """What one of KINDS needs."""
    setup: Setup = import_module(f"gyrfalcon.device.{name}_setup").SETUP
    return setup
