"""A job on a Ray cluster of three nodes: 5,000 prompts while driver, actors and a node are killed; clusters
that are too small.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_fixtures import write_rows, written

from gyrfalcon import Engine, SamplingParams

pytest.importorskip("ray", reason="the extra ray-data is not installed")
pytest.importorskip("pandas", reason="the extra ray-data is not installed")

from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
NUM_PROMPTS, PART_ROWS = 5000, 50
NUM_PARTS = NUM_PROMPTS // PART_ROWS
PROMPTS = [[20 + (number * 7 + place * 31) % 480 for place in range(8)] for number in range(5000)]
SECONDS = 240.0
MEMORY_SECONDS = 2.0  # between two looks, each of which reads the page tables of all processes
MOST_BYTES = 3 << 30
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
CHECKED = 50  # every fiftieth row is compared with an engine


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray would leave a token in HOME
    before = set(processes())
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    _, left = psutil.wait_procs(set(processes()) - before, timeout=20)
    assert left == []


@pytest.fixture
def command(cluster: Cluster, tmp_path: Path) -> list[str]:
    """`gyrfalcon score` of the prompts into out/, on two actors."""
    rows = ({"id": number, "prompt": prompt} for number, prompt in enumerate(PROMPTS))
    source = write_rows(tmp_path / "prompts.jsonl", rows)
    words = ["score", str(source), str(tmp_path / "out"), "-m", "nestling", "--max-len", "64"]
    words += [
        "--dtype",
        "fp32",
        "--threads",
        "1",
        "--part-rows",
        str(PART_ROWS),
        "--cache-memory",
        "64MiB",
    ]
    return [sys.executable, "-m", "gyrfalcon", *words, "--ray-workers", "2"]


def processes() -> list[psutil.Process]:
    """What this process has started, and what that has."""
    return psutil.Process().children(recursive=True)


def start(command: list[str], cluster: Cluster) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(parts: int, out: Path, driver: subprocess.Popen[str]) -> int:
    """The most memory of all processes until so many parts are finished."""
    most_bytes, looked_at = memory(), time.monotonic()
    deadline = looked_at + SECONDS
    while len(list(out.glob("part-*.jsonl"))) < parts:
        assert time.monotonic() < deadline, f"not {parts} parts after {SECONDS:.0f} s"
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.1)
        if time.monotonic() - looked_at > MEMORY_SECONDS:
            most_bytes, looked_at = max(most_bytes, memory()), time.monotonic()
    return most_bytes


def memory() -> int:
    """What all processes take, pages that several share counted once."""
    total = 0
    for process in processes():
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def kill_actor(out: Path) -> None:
    """Kills the process that began a part last."""
    found = re.findall(r"begun by process (\d+) ", (out / "log").read_text())
    os.kill(int(found[-1]), signal.SIGKILL)


def test_kills_of_driver_actors_and_a_node_lose_nothing_and_double_nothing(
    cluster: Cluster, command: list[str], tmp_path: Path
) -> None:
    out, most_bytes = tmp_path / "out", 0
    driver = start(command, cluster)

    def kill_driver() -> None:
        nonlocal driver
        driver.kill()
        driver.communicate()
        driver = start(command, cluster)

    def kill_node() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**NODE)

    kills: list[tuple[int, Callable[[], object], int]] = [  # and the most parts that each loses
        (10, lambda: kill_actor(out), 1),
        (25, kill_driver, 2),
        (45, lambda: kill_actor(out), 1),
        (60, kill_node, 1),
        (75, kill_driver, 2),
    ]
    try:
        for parts, kill, _ in kills:
            most_bytes = max(most_bytes, wait_for(parts, out, driver))
            kill()
        _, err = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0, err
    finally:
        driver.kill()
    results = written(out)
    assert [row["id"] for row in results] == list(range(NUM_PROMPTS))
    begun = (out / "log").read_text().count(" begun ")
    assert NUM_PARTS <= begun <= NUM_PARTS + sum(lost for *_, lost in kills)
    assert most_bytes < MOST_BYTES
    assert_scores(results)


def assert_scores(results: list[dict[str, Any]]) -> None:
    """Those of an engine in this process."""
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    with Engine("nestling", max_len=64, dtype="fp32") as engine:
        outputs = engine.generate(PROMPTS[::CHECKED], params)
    for row, output in zip(results[::CHECKED], outputs, strict=True):
        assert output.prompt_logprobs is not None
        expected = [token.logprob for token in output.prompt_logprobs if token is not None]
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)


WRONG = {  # and the end of the line that tells it
    ("--ray-workers", "3"): " in the Ray cluster, got machines with 1, 1, 1 logical CPUs; ",
    ("--ray-cpus", "2"): " in the Ray cluster, got machines with 1, 1, 1 logical CPUs; ",
    ("--ray-gpus", "1"): " in the Ray cluster, got machines with ",
    ("--cache-memory", "1"): "--cache-memory",
}


def test_a_cluster_that_is_too_small_and_an_engine_that_cannot_be_are_one_line_each(
    cluster: Cluster, command: list[str], tmp_path: Path
) -> None:
    place = command.index(str(tmp_path / "out"))
    drivers = []
    for number, more in enumerate(WRONG):  # at once: each takes seconds to start
        words = [*command, *more]
        words[place] = str(tmp_path / f"out{number}")
        drivers.append(start(words, cluster))
    for driver, told in zip(drivers, WRONG.values(), strict=True):
        _, err = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 2, err
        assert err.splitlines()[-1].startswith("gyrfalcon: error: wanted ")
        assert told in err.splitlines()[-1]
