"""What a Ctrl-C tells: what is kept of the work, and how to go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_tell(kept: Callable[[], str]) -> Iterator[None]:
    """Adds to a KeyboardInterrupt in here what is kept; the command line shows it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if words := kept():
            interrupt.add_note(words)
        raise


def interrupt_message(interrupt: KeyboardInterrupt) -> str:
    """One line for people."""
    return "; ".join(("interrupted", *getattr(interrupt, "__notes__", ())))
