"""Server-sent events: the same answer in parts, usage, ends, pings, and clients that leave or stay behind."""

import json
import threading

import pytest
from serve_client import Json, Server, data_of, wait_for

from gyrfalcon.serve import stream

pytest_plugins = ["serve_fixtures"]

CHAT = {
    "model": "nestling",
    "messages": [{"role": "user", "content": "Name a bird."}],
    "temperature": 0,
    "max_tokens": 12,
}
LONG = {"model": "nestling", "prompt": "Once", "max_tokens": 180, "ignore_eos": True}


def chat_of(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def chat(server: Server, **options: object) -> list[Json]:
    answer = server.post("/v1/chat/completions", CHAT | {"stream": True} | options)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return answer.events()


def test_a_chat_s_parts_are_the_whole_answer_with_the_role_first(server: Server) -> None:
    whole = server.post("/v1/chat/completions", CHAT).json()
    events = chat(server)
    first, *others = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [event["choices"][0]["delta"] for event in others]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert all("usage" not in event for event in events)


def test_a_completion_s_parts_are_the_whole_answer(server: Server) -> None:
    prompts = ["The old captain", "In the north"]
    options = {"max_tokens": 9, "n": 2, "temperature": 1, "seed": 2, "logprobs": 1, "echo": True}
    whole = server.complete(prompts, **options)["choices"]
    parts: list[Json] = [{"text": "", "tokens": [], "offsets": []} for _ in range(4)]
    for event in server.complete(prompts, stream=True, **options):
        [choice] = event["choices"]
        own = parts[choice["index"]]
        own["text"] += choice["text"]
        own["tokens"] += choice["logprobs"]["tokens"]
        own["offsets"] += choice["logprobs"]["text_offset"]
    for one, own in zip(whole, parts, strict=True):
        assert own["text"] == one["text"]
        assert own["tokens"] == one["logprobs"]["tokens"]
        assert own["offsets"] == one["logprobs"]["text_offset"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_events_whose_frame_is_kept_are_those_that_are_written_whole(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"prompt": ['Say "a\\b"', "Ä"]} if path == "/v1/completions" else {}
    body = CHAT | {"n": 2, "seed": 3, "temperature": 1.5, "stream": True} | asked
    if asked:
        del body["messages"]
    kept = server.post(path, body).events()
    monkeypatch.setattr(stream.EventWriter, "_is_plain", lambda writer, part: False)
    whole = server.post(path, body).events()
    for events in (kept, whole):
        for event in events:
            del event["id"], event["created"]
    by_sample = [sorted(events, key=lambda e: e["choices"][0]["index"]) for events in (kept, whole)]
    assert by_sample[0] == by_sample[1]


def test_usage_comes_in_a_last_chunk_without_choices(server: Server) -> None:
    whole = server.post("/v1/chat/completions", CHAT).json()
    *events, last = chat(server, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events)


def test_usage_comes_in_every_chunk_where_it_is_asked_for(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = chat(server, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_prompt_log_probabilities_and_ids_come_in_the_first_chunk(server: Server) -> None:
    whole = server.post(
        "/v1/chat/completions", CHAT | {"prompt_logprobs": 1, "return_token_ids": True}
    ).json()
    first, *others = chat(server, prompt_logprobs=1, return_token_ids=True)
    assert first["prompt_logprobs"] == whole["prompt_logprobs"]
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert all("prompt_logprobs" not in event for event in others)
    ids = [i for event in others for i in event["choices"][0].get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]


def test_a_client_that_leaves_frees_its_cache(server: Server) -> None:
    for body in (LONG | {"stream": True}, LONG):
        pending = server.later("/v1/completions", body)
        wait_for(lambda: server.service.engine.stats().num_used_blocks > 0)
        pending.leave()
        pending.answer()
        wait_for(lambda: server.service.engine.stats().num_used_blocks == 0)
        assert server.service.thread.num_live == 0


def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    body = LONG | {"stream": True, "n": 16, "logprobs": 20}
    pending = server.later("/v1/completions", body, reads=False)
    assert pending.answer().status == 200
    assert len(pending.parts) == 1
    wait_for(lambda: server.service.engine.stats().num_used_blocks == 0)
    generated = server.complete(**LONG | {"max_tokens": 5})
    assert generated["choices"][0]["finish_reason"] == "length"  # others go on


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_large_opening_is_written_off_the_loop_and_cuts_off_nobody(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of a long prompt, in each sample's first event, are more than a slow client may leave."""
    monkeypatch.setattr(stream, "MOST_WAITING", 8)
    threads, event = set(), stream.EventWriter._event

    def seen(writer: stream.EventWriter, choice: Json, usage: Json | None) -> bytes:
        threads.add(threading.current_thread())
        return event(writer, choice, usage)

    monkeypatch.setattr(stream.EventWriter, "_event", seen)
    text = "sea " * 150
    asked = {"prompt": text} if path == "/v1/completions" else CHAT | {"messages": chat_of(text)}
    body = {"model": "nestling", "max_tokens": 9, "prompt_logprobs": 20, "n": 8} | asked
    events = server.post(path, body | {"stream": True, "ignore_eos": True}).events()
    reasons = [e["choices"][0]["finish_reason"] for e in events]
    assert reasons.count("length") == 8
    assert sum("prompt_logprobs" in str(e) for e in events) == (8 if "prompt" in body else 1)
    assert any(thread.name.startswith("asyncio") for thread in threads)


def test_a_waiting_stream_is_pinged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.0)
    answer = server.post("/v1/completions", LONG | {"stream": True, "max_tokens": 30})
    assert answer.body.count(stream.PING) > 0
    assert len(answer.events()) > 1


def test_an_engine_that_fails_in_mid_stream_sends_an_error_and_no_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = server.later("/v1/completions", LONG | {"stream": True})
    wait_for(lambda: bool(pending.parts))
    submission = next(iter(server.service.thread._live))
    server.loop.call_soon_threadsafe(submission.sink.fail, RuntimeError("planted"))
    *_, last = data_of(pending.answer().body)
    error = json.loads(last)["error"]
    assert error["type"] == "server_error"
    assert "planted" not in error["message"]  # it may hold what is nobody's business
