"""Replicas behind Ray Serve on a local cluster of three nodes: answers, prefixes, drain, and what a killed
replica or node takes with it. The tests run in their order, on one cluster; the last one ends it.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from socket import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

import ray
from ray import serve
from ray.cluster_utils import Cluster
from serve_checks.asking import HOST, Reply, Streamed, ask, leave, post, stream
from serve_client import serving, wait_for
from torch import Tensor

import gyrfalcon.ray
from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.errors import RankDied
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.ray import ReplicasConfig
from gyrfalcon.replicas.deployments import _autoscaling
from gyrfalcon.replicas.engine_replica import MOST_PART_BYTES, EngineReplica, _Outbox
from gyrfalcon.replicas.forwarding import Start
from gyrfalcon.replicas.prefix_router import PrefixRouter

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
PATH = "/v1/completions"
ENGINE = EngineConfig("nestling", max_len=2048, cache_memory=128 << 20, threads=1)
BODY = {"model": "nestling", "temperature": 0, "ignore_eos": True}
NUM_STREAMS, MOST_BYTES, MOST_SECONDS = 16, 3 << 30, 150.0
NUM_PREFIXES, NUM_EACH = 57, 3
PATIENCE = 60.0
Record = Callable[[str, object], None]  # of a figure, for --junitxml


@dataclass(slots=True)
class RayCluster:
    """Three nodes with a processor each, and an application of two replicas."""

    cluster: Cluster
    port: int
    begin: float
    most_bytes: int = 0

    def ask(self, method: str, path: str) -> Reply:
        return asyncio.run(ask(self.port, method, path))

    def post(self, path: str, body: object) -> Reply:
        return asyncio.run(post(self.port, path, body))

    async def streams(self, *bodies: dict[str, object]) -> list[Streamed]:
        return await asyncio.gather(*(stream(self.port, PATH, BODY | body) for body in bodies))

    def by_replica(self, name: str, label: str = "") -> dict[str, float]:
        """A metric's sum for each replica, of samples that have this label."""
        found: dict[str, float] = {}
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith(f"{name}{{") and label in line:
                replica = line.split('replica="')[1].split('"')[0]
                found[replica] = found.get(replica, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def wait_for_replicas(self, number: int, seconds: float) -> None:
        """Returns when so many replicas answer, which has to be within these seconds."""
        deadline = time.monotonic() + seconds
        while len(self.by_replica("vllm:num_requests_running")) != number:
            assert time.monotonic() < deadline, f"not {number} replicas within {seconds:.0f} s"
            time.sleep(0.2)

    def note_memory(self) -> None:
        """What all processes take, pages that several share counted once."""
        total = 0
        for process in ray_processes():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.most_bytes = max(self.most_bytes, total)

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


def ray_processes() -> list[psutil.Process]:
    """What this process has started, and what that has."""
    return psutil.Process().children(recursive=True)


def replica_processes() -> list[psutil.Process]:
    """Those with an engine."""
    return [one for one in ray_processes() if "EngineReplica" in one.name()]


def free_port() -> int:
    with closing(socket()) as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def served() -> Iterator[RayCluster]:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray would leave a token in HOME
    begin, port = time.monotonic(), free_port()
    head = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
    serve.run(application())
    served = RayCluster(cluster, port, begin)
    served.note_memory()
    yield served
    if ray.is_initialized():
        served.close()


def application() -> Any:
    config = ReplicasConfig(ENGINE, num_replicas=2, shutdown_seconds=120)  # on a busy machine
    return gyrfalcon.ray.app(config)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(ENGINE) as engine:
        yield engine


def test_there_are_as_many_replicas_as_autoscaling_may_make() -> None:
    config = ReplicasConfig(ENGINE, num_replicas=2, max_replicas=5, target_requests=8)
    found = _autoscaling(config)
    assert found is not None
    assert (found.min_replicas, found.max_replicas) == (2, 5)
    assert found.target_ongoing_requests == 8
    assert _autoscaling(ReplicasConfig(ENGINE, num_replicas=2)) is None
    gyrfalcon.ray.app(config)


def test_a_router_without_its_memory_chooses_all_the_same() -> None:
    router = PrefixRouter.__new__(PrefixRouter)  # as if initialize_state had failed
    candidates: Any = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=one)) for one in "abc"]
    ranks = asyncio.run(router.choose_replicas(candidates, None))
    chosen = [one for rank in ranks for one in rank]
    assert len(chosen) == 2
    assert all(one in candidates for one in chosen)
    router.on_request_routed(None, None, None)
    router.on_request_completed(None, "")


def test_a_large_answer_comes_in_parts_that_a_message_can_hold() -> None:
    async def sent(*bodies: bytes) -> list[object]:
        outbox = _Outbox()
        await outbox.send({"type": "http.response.start", "status": 200, "headers": []})
        for body in bodies:
            await outbox.send({"type": "http.response.body", "body": body, "more_body": True})
        outbox.end(asyncio.get_running_loop().create_future())
        return [part async for part in outbox]

    large = os.urandom(3 * MOST_PART_BYTES)
    start, *parts = asyncio.run(sent(large, b"end"))
    assert start == Start(200, ())
    assert b"".join(part for part in parts if isinstance(part, bytes)) == large + b"end"
    assert [len(part) for part in parts if isinstance(part, bytes)] == [MOST_PART_BYTES] * 3 + [3]


def test_a_replica_whose_engine_stands_still_fails_its_health_check_until_it_moves() -> None:
    """As behind a driver that hangs: there is work, and none of it moves."""
    go_on = threading.Event()

    def stalling() -> Engine:
        engine = Engine(replace(ENGINE, rank_timeout=1))
        run = engine._core.model_runner

        def held(batch: Batch, pool: KVPool) -> Tensor:
            assert go_on.wait(PATIENCE)
            return run(batch, pool)

        engine._core.model_runner = held
        return engine

    with serving(stalling) as server:
        replica: Any = SimpleNamespace(_service=server.service)
        asyncio.run(EngineReplica.check_health(replica))
        pending = server.later(PATH, {"model": "nestling", "prompt": "A", "max_tokens": 1})
        wait_for(lambda: server.service.state == "stalled")
        with pytest.raises(RankDied, match="an engine that steps, got one that is stalled"):
            asyncio.run(EngineReplica.check_health(replica))
        go_on.set()
        assert pending.answer().status == 200
        wait_for(lambda: server.service.state != "stalled")  # at the watchdog's next look
        asyncio.run(EngineReplica.check_health(replica))


def test_texts_are_those_of_the_engine_whole_and_streamed(
    served: RayCluster, engine: Engine
) -> None:
    prompt, params = "The falcon", SamplingParams(max_new_tokens=24, ignore_eos=True)
    [output] = engine.generate([prompt], params)
    body = BODY | {"prompt": prompt, "max_tokens": 24}
    whole = served.post(PATH, body)
    [streamed] = asyncio.run(served.streams(body))
    assert whole.json()["choices"][0]["text"] == output.completions[0].text
    assert streamed.text == output.completions[0].text
    assert streamed.is_whole
    assert len(streamed.times) > 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", PATH, b'{"model": "nestling"}', 400, "prompt"),
        ("POST", PATH, b'{"model": "nestling", "prompt": "a", "n": 0}', 400, "`n`"),
        ("POST", PATH, b"{", 400, "JSON"),
        ("POST", PATH, b"", 400, "JSON"),
        ("POST", PATH, b'{"model": "other", "prompt": "a"}', 404, "nestling"),
        ("POST", "/v1/chat/completions", b'{"model": "nestling"}', 400, "messages"),
        ("POST", PATH, b'{"prompt": "' + b"a" * (9 << 20), 413, "8388608 bytes"),
        ("GET", PATH, b"", 405, "method"),
        ("GET", "/nowhere", b"", 404, "/openapi.json"),
    ],
)
def test_a_request_without_a_prompt_or_with_a_wrong_one_is_answered_as_by_the_server(
    served: RayCluster, method: str, path: str, body: bytes, status: int, words: str
) -> None:
    reply = asyncio.run(ask(served.port, method, path, body))
    assert reply.status == status
    assert words in reply.json()["error"]["message"]


def test_paths_without_a_prompt_are_answered(served: RayCluster) -> None:
    assert served.ask("GET", "/health").json() == {"status": "ready"}
    assert served.ask("GET", "/v1/models").json()["data"][0]["id"] == "nestling"
    tokens = served.post("/tokenize", {"model": "nestling", "prompt": "The falcon"}).json()
    assert tokens["count"] == len(tokens["tokens"])


def test_a_client_that_leaves_frees_what_its_stream_held(served: RayCluster) -> None:
    def num_aborted() -> float:
        label = 'finished_reason="abort"'
        return sum(served.by_replica("vllm:request_success_total", label).values())

    before = num_aborted()
    asyncio.run(leave(served.port, PATH, BODY | {"prompt": "A", "max_tokens": 1900}, 2))
    deadline = time.monotonic() + 20
    while num_aborted() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert num_aborted() == before + 1
    assert not any(served.by_replica("vllm:num_requests_running").values())


def test_prompts_that_begin_alike_find_their_prefix_in_the_cache(
    served: RayCluster, engine: Engine, record_property: Record
) -> None:
    chance = random.Random(1)
    words = "sea ship captain star night falcon river stone bread song king road".split()
    prefixes = [" ".join(chance.choices(words, k=200)) for _ in range(NUM_PREFIXES)]
    prompts = [f"{one} {number}" for number in range(NUM_EACH) for one in prefixes]
    before = engine.stats().num_cached_tokens
    engine.generate(prompts[:NUM_PREFIXES], SamplingParams(max_new_tokens=1))
    engine.generate(prompts[NUM_PREFIXES:], SamplingParams(max_new_tokens=1))
    hits_of_one = engine.stats().num_cached_tokens - before

    async def ask_all() -> None:
        gate = asyncio.Semaphore(8)

        async def ask_one(prompt: str) -> None:
            async with gate:
                body = BODY | {"prompt": prompt, "max_tokens": 1}
                assert (await post(served.port, PATH, body)).status == 200

        await asyncio.gather(*map(ask_one, prompts))

    hits, queries = "vllm:prefix_cache_hits_total", "vllm:request_success_total"
    hits_before, sent_before = served.by_replica(hits), served.by_replica(queries)
    asyncio.run(ask_all())
    num_hits = sum(served.by_replica(hits).values()) - sum(hits_before.values())
    sent = [number - sent_before[one] for one, number in served.by_replica(queries).items()]
    record_property("hits_of_one_replica", num_hits / hits_of_one)
    record_property("sent", sent)
    assert sum(sent) == len(prompts)
    assert num_hits >= 0.9 * hits_of_one
    assert max(sent) <= 1.5 * min(sent)


def test_replicas_that_make_way_for_a_new_version_finish_their_streams(
    served: RayCluster,
) -> None:
    before = set(served.by_replica("vllm:num_requests_running"))

    async def deploy_under_load() -> list[Streamed]:
        bodies = [{"prompt": f"{n} ships", "max_tokens": 600} for n in range(8)]
        running = asyncio.ensure_future(served.streams(*bodies))
        await asyncio.sleep(0.2)
        deploying = asyncio.ensure_future(asyncio.to_thread(serve.run, application()))
        await asyncio.sleep(0.2)
        assert not running.done()
        await deploying
        return await running

    answers = asyncio.run(deploy_under_load())
    assert [one.error for one in answers if not one.is_whole] == []
    served.wait_for_replicas(2, 60)
    assert not before & set(served.by_replica("vllm:num_requests_running"))


def test_a_killed_replica_takes_no_more_than_its_own_streams(
    served: RayCluster, record_property: Record
) -> None:
    async def kill() -> tuple[list[Streamed], dict[str, float], float]:
        bodies = [{"prompt": f"{n} ships", "max_tokens": 600} for n in range(NUM_STREAMS)]
        answers = [Streamed() for _ in bodies]
        running = asyncio.gather(
            *(
                stream(served.port, PATH, BODY | body, into)
                for body, into in zip(bodies, answers, strict=True)
            )
        )
        while not all(one.times for one in answers):
            await asyncio.sleep(0.01)
        counts = await asyncio.to_thread(served.by_replica, "vllm:num_requests_running")
        victim = replica_processes()[0]
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        reply = await post(served.port, PATH, BODY | {"prompt": "Now", "max_tokens": 1})
        seconds = time.monotonic() - killed
        assert reply.status == 200
        await running
        return answers, counts, seconds

    begin = time.monotonic()
    answers, num_running, seconds = asyncio.run(kill())
    broken = [one for one in answers if not one.is_whole]
    for one in broken:
        assert isinstance(one.error, dict)
        assert one.error["code"] == "failed"
    assert seconds <= 1
    served.wait_for_replicas(2, 60 - (time.monotonic() - begin))
    record_property("seconds_to_next_answer", seconds)
    record_property("seconds_to_two_replicas", time.monotonic() - begin)
    [killed] = set(num_running) - set(served.by_replica("vllm:num_requests_running"))
    record_property("broken", [len(broken), num_running[killed]])
    assert 1 <= len(broken) <= num_running[killed] < NUM_STREAMS
    served.note_memory()


def test_a_killed_node_is_replaced_by_another_one(
    served: RayCluster, record_property: Record
) -> None:
    nodes = {
        one.process.pid: node
        for node in served.cluster.worker_nodes
        for one in node.all_processes["raylet"]
    }
    above = [parent.pid for one in replica_processes() for parent in one.parents()]
    raylet = next(pid for pid in above if pid in nodes)
    lost = psutil.Process(raylet).children(recursive=True)
    served.cluster.remove_node(nodes[raylet], allow_graceful=False)
    for one in lost:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    _, alive = psutil.wait_procs(lost, timeout=20)
    assert not alive
    begin = time.monotonic()
    reply = served.post(PATH, BODY | {"prompt": "Now", "max_tokens": 1})
    while reply.status != 200 and time.monotonic() < begin + 60:
        time.sleep(0.2)
        reply = served.post(PATH, BODY | {"prompt": "Now", "max_tokens": 1})
    assert reply.status == 200
    record_property("seconds_to_next_answer", time.monotonic() - begin)
    served.wait_for_replicas(2, 60)
    record_property("seconds_to_two_replicas", time.monotonic() - begin)


def test_it_takes_no_more_than_3_gb_and_150_s_and_leaves_nothing(
    served: RayCluster, record_property: Record
) -> None:
    served.note_memory()
    children = ray_processes()
    served.close()
    seconds = time.monotonic() - served.begin
    _, alive = psutil.wait_procs(children, timeout=20)
    record_property("bytes", served.most_bytes)
    record_property("seconds", seconds)
    assert not alive
    assert served.most_bytes <= MOST_BYTES
    assert seconds <= MOST_SECONDS
