"""Resident memory of a server while a load runs, sampled on a thread."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from serve_checks.report import Report
from serve_checks.server import Server

EVERY_SECONDS = 1.0
WARM_UP, COMPARED = 0.2, 0.2  # parts of the run: not compared, and compared at either end
MOST_CHANGE = 0.02


@contextmanager
def sampled(server: Server) -> Iterator[list[int]]:
    """The list that samples in bytes are put into while the block runs."""
    samples, over = [server.rss_bytes()], threading.Event()

    def sample() -> None:
        while not over.wait(EVERY_SECONDS):
            samples.append(server.rss_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def claim_steady(report: Report, samples: Sequence[int]) -> None:
    """Compares the median of the last part of a run with that after its warm-up."""
    begin, length = int(len(samples) * WARM_UP), max(1, int(len(samples) * COMPARED))
    before, after = median(samples[begin : begin + length]), median(samples[-length:])
    report.figure("rss_mb_start", round(samples[0] / 1e6, 1))
    report.figure("rss_mb_warm", round(before / 1e6, 1))
    report.figure("rss_mb_end", round(after / 1e6, 1))
    report.figure("rss_mb_max", round(max(samples) / 1e6, 1))
    change = after / before - 1
    report.claim(
        f"resident memory stays within ± {MOST_CHANGE:.0%}",
        abs(change) <= MOST_CHANGE,
        f"{change:+.2%}",
    )
