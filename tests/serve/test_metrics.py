"""/metrics tells what was done and what the engine holds, under the names that dashboards know."""

from functools import partial
from pathlib import Path

import pytest
from engines import cache_of
from prometheus_client.parser import text_string_to_metric_families
from serve_client import Server, engine_of, held, serving, wait_for

from gyrfalcon import Engine
from gyrfalcon.serve.metrics import CONTENT_TYPE

pytest_plugins = ["serve_fixtures"]


def scraped(server: Server) -> dict[str, float]:
    """Every sample without labels that tell nothing here, as Prometheus reads it."""
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            shown = ("finished_reason", "status", "reason")
            of = [value for name, value in sample.labels.items() if name in shown]
            assert not sample.name.startswith("vllm:") or sample.labels["model_name"] == "nestling"
            found["/".join([sample.name, *of])] = sample.value
    return found


@pytest.fixture
def fresh(model: Path):  # type: ignore[no-untyped-def]  # a generator of a server
    with serving(lambda: engine_of(model, block_size=8)) as server:
        yield server


def test_tokens_requests_refusals_and_times_are_counted(fresh: Server) -> None:
    prompt = "The old captain looked at the sea, and on the other side of the hill"
    for _ in range(2):
        fresh.complete(prompt, max_tokens=5, n=2)
    fresh.post("/v1/completions", {"model": "nestling"})
    fresh.get("/nowhere")
    found = scraped(fresh)
    assert found["vllm:generation_tokens_total"] == 20
    assert found["vllm:request_success_total/length"] == 4
    assert found["vllm:time_to_first_token_seconds_count"] == 4
    assert found["vllm:inter_token_latency_seconds_count"] == 16
    assert found["vllm:e2e_request_latency_seconds_count"] == 4
    assert found["vllm:prompt_tokens_total"] == 2 * len(fresh.service.engine.encode(prompt))
    assert found["vllm:num_preemptions_total"] == 0
    assert found["gyrfalcon:refusals_total/missing_required_parameter/400"] == 1
    assert found["gyrfalcon:refusals_total/invalid_request_error/404"] == 1
    stats = fresh.service.engine.stats()
    assert found["vllm:prefix_cache_queries_total"] == stats.num_prompt_tokens
    assert found["vllm:prefix_cache_hits_total"] == stats.num_cached_tokens > 0
    assert found["vllm:spec_decode_num_draft_tokens_total"] == 0
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0


def test_the_time_that_samples_wait_for_cache_is_counted(model: Path) -> None:
    with serving(partial(engine_of, model, max_sequences=1)) as server:
        body = {"model": "nestling", "prompt": "One", "max_tokens": 150, "ignore_eos": True}
        asked = [server.later("/v1/completions", body) for _ in range(2)]
        assert [one.answer().status for one in asked] == [200, 200]
        found = scraped(server)
    waited, count = (found[f"vllm:request_queue_time_seconds_{one}"] for one in ("sum", "count"))
    assert count == 2
    # The second waits until the first has ended, then takes as long: a third of both times together.
    whole = found["vllm:e2e_request_latency_seconds_sum"]
    assert 0.05 * whole < waited < 0.5 * whole


def test_draft_tokens_are_counted_and_told_in_the_usage(model: Path) -> None:
    prompt, texts = "One two three four. One two three four. One two three", []
    for most in (0, 5):
        make = partial(engine_of, model, num_speculative_tokens=most, dtype="fp32")
        with serving(make) as server:
            answer = server.complete(prompt, max_tokens=60, ignore_eos=True)
            texts.append(answer["choices"][0]["text"])
            found, details = scraped(server), answer["usage"].get("completion_tokens_details")
    assert texts[0] == texts[1]
    accepted = found["vllm:spec_decode_num_accepted_tokens_total"]
    assert details == {"accepted_prediction_tokens": accepted}
    assert 0 < accepted <= found["vllm:spec_decode_num_draft_tokens_total"]
    assert 0 < found["vllm:spec_decode_num_drafts_total"] <= accepted


def test_an_endpoint_picker_finds_the_cache_s_shape(fresh: Server) -> None:
    text = fresh.get("/metrics").body.decode()
    num_blocks = fresh.service.engine.stats().num_blocks
    line = f'vllm:cache_config_info{{block_size="8",model_name="nestling",num_gpu_blocks="{num_blocks}"}} 1.0'
    assert line in text


@pytest.mark.parametrize("stream", [False, True])
def test_samples_whose_client_leaves_or_whose_engine_fails_are_counted(
    fresh: Server, stream: bool
) -> None:
    long = {"model": "nestling", "prompt": "Once", "max_tokens": 180, "ignore_eos": True}
    long |= {"n": 3, "stream": stream}
    pending = fresh.later("/v1/completions", long)
    with held(fresh, num_running=3):
        pending.leave()
        pending.answer()
        wait_for(lambda: scraped(fresh)["vllm:request_success_total/abort"] == 3)
    pending = fresh.later("/v1/completions", long)
    with held(fresh, num_running=3):
        fresh.service.engine.close()
    pending.answer()
    wait_for(lambda: scraped(fresh)["vllm:request_success_total/error"] == 3)


def test_preemptions_are_counted(model: Path, engine: Engine) -> None:
    # One sequence of the greatest length, and little more.
    blocks = 192 // engine.config.block_size + 2
    memory = cache_of(engine, blocks)
    with serving(lambda: engine_of(model, cache_memory=memory)) as server:
        server.complete("Once", max_tokens=150, n=3, ignore_eos=True)
        assert scraped(server)["vllm:num_preemptions_total"] > 0


def test_the_share_of_the_memory_bandwidth_can_be_computed(model: Path, brief_limits: None) -> None:
    with serving(lambda: engine_of(model)) as server:
        scraped(server)
        wait_for(lambda: "gyrfalcon:memory_bandwidth_bytes_per_second" in scraped(server))
        server.complete("Once", max_tokens=9, ignore_eos=True)
        found = scraped(server)
    weights = 10_000_000  # bytes of nestling, and more
    assert found["gyrfalcon:decode_bytes_total"] > 9 * weights
    assert found["gyrfalcon:memory_bandwidth_bytes_per_second"] > 0
