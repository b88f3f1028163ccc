"""Waiting for a device without being lost with it: what was captured in a graph may wait for a rank that has
died, and no error comes of that.
"""

import time
from collections.abc import Callable

SPIN_SECONDS = 0.001  # for which it is asked again at once: most steps are nearly done when we come
PAUSE_SECONDS = 5e-5
CHECK_SECONDS = 0.2


def wait_for(done: Callable[[], bool], check: Callable[[], object]) -> None:
    """Until `done`; raises what `check` raises, which is asked now and then."""
    start = time.monotonic()
    checked = start
    while not done():
        now = time.monotonic()
        if now - checked >= CHECK_SECONDS:
            check()
            checked = now
        time.sleep(0 if now - start < SPIN_SECONDS else PAUSE_SECONDS)
