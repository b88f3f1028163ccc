"""What Ctrl-C reports: which results were saved, and how to resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_tell(kept: Callable[[], str]) -> Iterator[None]:
    """Adds a note to a KeyboardInterrupt in here: what was saved. The command line shows it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if words := kept():
            interrupt.add_note(words)
        raise


def interrupt_message(interrupt: KeyboardInterrupt) -> str:
    """One line for the user."""
    return "; ".join(("interrupted", *getattr(interrupt, "__notes__", ())))
