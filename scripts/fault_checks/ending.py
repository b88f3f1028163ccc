"""How the scripts end when they are asked to: as after an error, so that whatever they made is taken away."""

import signal
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_tidily() -> None:
    """Has these signals raise SystemExit with the exit code of a shell; only the first counts."""

    def end(number: int, frame: FrameType | None) -> None:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ENDING:
        signal.signal(number, end)
