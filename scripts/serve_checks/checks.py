"""The list of checks: their names, what they do, and the functions that do it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serve_checks import (
    browser,
    curl,
    fairness,
    guidellm,
    hostile,
    idle,
    langchain,
    lm_eval_harness,
    openai_client,
    overload,
    rank_death,
    router,
    schemathesis,
    soak,
)
from serve_checks.context import Context
from serve_checks.report import Report


@dataclass(frozen=True, slots=True)
class Check:
    """A check; `run` notes in the report what holds, and raises NotRun where something cannot be had."""

    summary: str
    run: Callable[[Context, Report], None]


CHECKS: Mapping[str, Check] = {
    "openai": Check("OpenAI's client: its answers are those of the engine", openai_client.run),
    "curl": Check("curl: bodies, streams, connections, errors", curl.run),
    "langchain": Check("langchain-openai: chats, streams, batches, chains", langchain.run),
    "browser": Check("the page at / in Chromium, with axe-core", browser.run),
    "lm-eval": Check("lm-evaluation-harness: scores, and what prompts share", lm_eval_harness.run),
    "guidellm": Check("guidellm measures what `gyrfalcon load` measures", guidellm.run),
    "router": Check("vllm-router in front of two servers", router.run),
    "schemathesis": Check("requests that Schemathesis makes of /openapi.json", schemathesis.run),
    "hostile": Check("raw bytes, slow and idle clients, huge and deep bodies", hostile.run),
    "rank-death": Check("a rank is killed under load", rank_death.run),
    "fairness": Check("long prompts beside streams and short prompts", fairness.run),
    "idle": Check("processor time of a server that waits, 1 and 2 ranks", idle.run),
    "overload": Check("ten times the load that it can answer (10 minutes)", overload.run),
    "soak": Check("users who finish, leave and send garbage (30 minutes)", soak.run),
}
