"""Options whose effect is seen beside other requests: priority, cache_salt; and how long a text has to be."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from serve_client import Answer, Json, Server, engine_of, serving, wait_for

from gyrfalcon import Engine

pytest_plugins = ["serve_fixtures"]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENDING = {"logit_bias": {"11": 100}}  # the end of text is all but certain


def body(path: str, **options: object) -> dict[str, object]:
    long = "Which bird of prey nests on rocks in the far north and is larger than all others? "
    messages = [{"role": "user", "content": long}]
    asked = {"prompt": long} if path == COMPLETIONS else {"messages": messages}
    return {"model": "nestling", "temperature": 0, "max_tokens": 4, **asked, **options}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_of_two_requests_that_wait_the_lower_priority_is_answered_first(
    model: Path, path: str
) -> None:
    ended: list[int] = []
    waits, may_go = threading.Event(), threading.Event()

    def wait(engine: Engine) -> None:
        waits.set()
        may_go.wait()

    with serving(lambda: engine_of(model, max_sequences=1)) as server:
        server.service.thread._call(wait)
        assert waits.wait(20)  # what comes now is there before a step
        pending = []
        for priority in (3, 0, -2, 1):
            asked = server.later(path, body(path, priority=priority))

            def note(_: "Future[Answer]", priority: int = priority) -> None:
                ended.append(priority)

            asked._answer.add_done_callback(note)
            pending.append(asked)
            wait_for(lambda: server.service.thread.num_live == len(pending))
        may_go.set()
        assert [one.answer().status for one in pending] == [200] * 4
    assert ended == [-2, 0, 1, 3]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_cached_beginning_is_shared_with_the_same_salt_alone(server: Server, path: str) -> None:
    def cached(salt: str | None) -> int:
        answer = server.post(path, body(path, cache_salt=salt)).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(f"{path} a") == 0
    assert cached(f"{path} b") == 0
    assert cached(f"{path} a") > 0
    assert cached(f"{path} b") > 0


def num_generated(server: Server, path: str, **options: object) -> int:
    answer = server.post(path, body(path, **options))
    assert answer.status == 200, answer.body
    return answer.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_nothing_ends_a_text_before_its_least_tokens(server: Server, path: str) -> None:
    assert num_generated(server, path, max_tokens=12, **ENDING) == 1
    assert num_generated(server, path, max_tokens=12, min_tokens=7, **ENDING) == 8
    assert num_generated(server, path, max_tokens=12, min_tokens=12, **ENDING) == 12


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": 5},
        {"min_tokens": 17, "max_tokens": None},  # of 16
        {"min_tokens": 1, "max_tokens": 0, "echo": True},
        {"min_tokens": 60, "max_tokens": None, "prompt": [30] * 140},  # of 192 tokens in all
    ],
)
def test_more_tokens_than_may_come_are_refused(server: Server, options: dict[str, object]) -> None:
    refused = server.post(COMPLETIONS, body(COMPLETIONS, **options))
    assert (refused.status, refused.error["param"]) == (400, "min_tokens")


def test_a_prompt_that_is_too_long_is_told_so_whatever_else_is_asked(server: Server) -> None:
    asked = body(COMPLETIONS, prompt=[30] * 250, max_tokens=None, min_tokens=5)
    assert server.post(COMPLETIONS, asked).error["code"] == "context_length_exceeded"


def test_a_chat_may_have_as_many_tokens_as_fit(server: Server) -> None:
    assert num_generated(server, CHAT, max_tokens=None, min_tokens=130, ignore_eos=True) >= 130
    refused = server.post(CHAT, body(CHAT, max_tokens=None, min_tokens=190))
    assert (refused.status, refused.error["param"]) == (400, "min_tokens")


def prompt_scores(answer: Json, path: str) -> list[dict[str, Json]]:
    of = answer["choices"][0] if path == COMPLETIONS else answer
    return of["prompt_logprobs"][1:]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_each_score_of_a_prompt_has_its_rank(server: Server, path: str) -> None:
    asked = body(path, prompt_logprobs=4, return_token_ids=True, max_tokens=1)
    answer = server.post(path, asked).json()
    own_ranks = set()
    for token_id, scores in zip(
        prompt_ids(answer, path)[1:], prompt_scores(answer, path), strict=True
    ):
        own_ranks.add(scores[str(token_id)]["rank"])
        by_rank = sorted(scores.values(), key=lambda one: one["rank"])
        assert [one["rank"] for one in by_rank[:4]] == [1, 2, 3, 4]
        logprobs = [one["logprob"] for one in by_rank]
        assert logprobs == sorted(logprobs, reverse=True)
    assert min(own_ranks) == 1
    assert max(own_ranks) > 20


def prompt_ids(answer: Json, path: str) -> list[int]:
    of = answer["choices"][0] if path == COMPLETIONS else answer
    return of["prompt_token_ids"]
