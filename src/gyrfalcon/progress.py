"""A progress bar on stderr, shown only to people: nothing is printed when stderr is no terminal."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What a caller may do with a bar."""

    def update(self, n: float = 1) -> bool | None:
        """Says that `n` more units are done."""
        ...


class _Hidden:
    """A bar for nobody. (A hidden tqdm would still hold a lock that a killed process leaks.)"""

    def update(self, n: float = 1) -> None:
        pass


def bar(total: float, unit: str, label: str, shown: bool = True) -> AbstractContextManager[Bar]:
    """A bar over `total` units, closed by leaving its `with`."""
    if not (shown and sys.stderr.isatty()):
        return nullcontext(_Hidden())
    return tqdm(total=total, unit=unit, unit_scale=True, desc=label, file=sys.stderr, leave=False)
