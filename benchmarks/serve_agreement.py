"""How often a greedy text stays the same when others are computed beside it, or its beginning is cached.

    gyrfalcon serve nestling --dtype bf16 --port 8000 &
    python benchmarks/serve_agreement.py http://127.0.0.1:8000 nestling [--prompts 64] [--tokens 64]

Asks a running server for each prompt alone, for all at once, and for all once more: the first two find
nothing in the cache, by a salt of their own, the third what the second left. Prints how many texts are equal
to the ones alone, and how many of their tokens come before the first difference.
"""

import argparse
import json
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from gyrfalcon.measure.passage import PASSAGE

Ids = tuple[int, ...]


def main() -> None:
    """Asks and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    text, salt = PASSAGE.read_text("utf-8"), str(time.time())
    prompts = [text[start : start + 150] for start in range(0, 97 * args.prompts, 97)]
    bodies = [
        {"model": args.model, "prompt": one, "max_tokens": args.tokens, "temperature": 0}
        | {"ignore_eos": True, "return_token_ids": True, "cache_salt": salt}
        for one in prompts
    ]
    alone = [
        asked(args.url, body | {"cache_salt": f"{salt} {number}"})
        for number, body in enumerate(bodies)
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        for how in ("all at once", "all at once, their beginnings cached"):
            found = list(pool.map(lambda body: asked(args.url, body), bodies))
            report(how, [ids for ids, _ in alone], found)


def asked(url: str, body: object) -> tuple[Ids, int]:
    """The token ids of a completion, and how many of its prompt were cached."""
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        told = json.load(answer)
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tuple(told["choices"][0]["token_ids"]), cached


def report(how: str, alone: Sequence[Ids], found: Sequence[tuple[Ids, int]]) -> None:
    """One line."""
    pairs = [(one, other) for one, (other, _) in zip(alone, found, strict=True)]
    num_equal = sum(one == other for one, other in pairs)
    before = sum(
        sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))
        for one, other in pairs
    )
    num_tokens = sum(map(len, alone))
    print(
        f"{how}: {num_equal} of {len(pairs)} texts equal to those alone; {before} of {num_tokens} tokens "
        f"before a difference; {sum(cached for _, cached in found)} prompt tokens cached"
    )


if __name__ == "__main__":
    main()
