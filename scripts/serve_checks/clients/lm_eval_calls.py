"""Run by the check `lm-eval` in an environment with lm-evaluation-harness: its `local-completions` evaluates
the task in a file; prints scores, times and every request with its log-probability as JSON.

python -m serve_checks.clients.lm_eval_calls URL TOKENIZER TASK
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.openai_completions import LocalCompletionsAPI

NUM_SHOTS, NUM_AT_ONCE = 5, 4


def main(url: str, tokenizer: str, path: str) -> None:
    """Evaluates and prints."""
    task = json.loads(Path(path).read_text("utf-8"))
    model = _Timed(
        model="nestling",
        base_url=f"{url}/v1/completions",
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        num_concurrent=NUM_AT_ONCE,
        max_length=4096,
        max_retries=1,
    )
    results = lm_eval.simple_evaluate(
        model=model, tasks=[task], num_fewshot=NUM_SHOTS, bootstrap_iters=0, log_samples=True
    )
    rows = [row for sample in results["samples"][task["task"]] for row in _rows(sample)]
    found = {
        "seconds": model.seconds,
        "accuracy": results["results"][task["task"]]["acc,none"],
        "rows": rows,
    }
    print(json.dumps(found))


class _Timed(LocalCompletionsAPI):  # type: ignore[misc]  # of a package that is not installed here
    """Knows how long its requests took, reading of data and making of prompts aside."""

    seconds = 0.0

    def loglikelihood(self, requests: object, **options: object) -> object:
        begin = time.monotonic()
        found = super().loglikelihood(requests, **options)
        self.seconds += time.monotonic() - begin
        return found


def _rows(sample: Any) -> Iterator[dict[str, object]]:
    """The requests of a question: a context, what may follow, and its log-probability."""
    arguments = sample["arguments"]
    named = list(arguments.values()) if isinstance(arguments, dict) else arguments
    for one, response in zip(named, sample["resps"], strict=True):
        context, continuation = one.values() if isinstance(one, dict) else one
        logprob = float(response[0][0])
        yield {"context": context, "continuation": continuation, "logprob": logprob}


if __name__ == "__main__":
    main(*sys.argv[1:])
