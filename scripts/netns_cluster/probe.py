"""What every rank runs to be compared: logits and greedy tokens of a prompt, the bytes that a step sends,
and the seconds that it takes. Rank 0 writes them to a file.
"""

import json
import sys
import time
from pathlib import Path

import torch

from gyrfalcon import Engine, SamplingParams
from netns_cluster.hosts import INTERFACE

PROMPT = [17, 30, 31, 32, 200, 401, 5, 90, 91, 92, 93, 94, 7, 8, 9, 10]
NUM_TOKENS, STREAMS, STEPS = 24, 48, 12
SENT = Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes")


def run(model: str, world_size: int, out: str) -> None:
    """Probes a model on this many ranks."""
    with Engine(model, world_size=world_size, dtype="fp32", max_len=256, threads=1) as engine:
        logits = engine.logits(torch.tensor([PROMPT]), single_steps=4)
        greedy = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
        [output] = engine.generate([PROMPT], greedy)
        found = {"tokens": list(output.output_ids), **_costs(engine)}
        if engine.is_first_rank:
            torch.save(logits, f"{out}.pt")
            Path(out).write_text(json.dumps(found))


def _costs(engine: Engine) -> dict[str, object]:
    """Of decoding steps with STREAMS sequences."""
    params = SamplingParams(max_new_tokens=STEPS + 2, ignore_eos=True)
    for index in range(STREAMS):
        engine.add([*PROMPT, index], params)
    engine.step()  # their prompts
    engine.step()
    seconds, before = [], _sent()
    for _ in range(STEPS):
        begin = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - begin)
    sent = _sent() - before
    while engine.has_work:
        engine.step()
    return {"sent_bytes": sent / STEPS, "seconds": sorted(seconds)}


def _sent() -> int:
    return int(SENT.read_text()) if SENT.exists() else 0


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3])
