"""Damages one target's file led by the lines that readers reach, with atheris. Runs in a process of its own:

    python -m fuzzing.by_coverage TARGET FOLDER SECONDS SEED

Writes FOLDER/found.json as it goes, since libFuzzer ends the process itself.
"""

import json
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gyrfalcon"]):
    from fuzzing.targets import TARGETS

from fuzzing.loop import MOST_BYTES, Bench, auditor, written

EVERY = 200  # files between two notes of what was found


def main() -> None:
    """Fuzzes until the time is over; libFuzzer ends the process."""
    name, folder, seconds, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    bench = Bench(TARGETS[name], folder, auditor())
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(bench.whole)

    def one_input(raw: bytes) -> None:
        is_new = bench.trial(raw) is not None
        if is_new or bench.found.num_files % EVERY == 0:
            (folder / "found.json").write_text(json.dumps(written(bench.found)))

    def mutate(raw: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        # What was damaged often is soon rubbish.
        start = bench.whole if chance.random() < 0.5 else raw
        return bench.target.mutate(start, chance)[:most]

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={MOST_BYTES}",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
