"""Requests that Schemathesis makes from the OpenAPI document: no answer is a 5xx, or one that the document
does not have. `scripts/serve-check schemathesis` runs it for longer.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serve_client import Server, engine_of, serving

from gyrfalcon.serve.openapi import document
from gyrfalcon.serve.server import _config, _Server, listen

pytest.importorskip("schemathesis", reason="the extra test is not installed")
pytest_plugins = ["serve_fixtures"]

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
OPTIONS = (
    f"--phases examples,fuzzing --max-examples 12 --seed 1 --checks {CHECKS} --no-color".split()
)


@contextmanager
def on_a_port(server: Server) -> Iterator[str]:
    """The same server with a socket."""
    bound = listen("127.0.0.1", 0)
    uvicorn = _Server(_config(server.gate))
    done = asyncio.run_coroutine_threadsafe(uvicorn.serve([bound]), server.loop)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        uvicorn.should_exit = True
        done.result(20)


def test_what_schemathesis_makes_is_answered_as_the_document_says(
    model: Path, tmp_path: Path
) -> None:
    with serving(lambda: engine_of(model, max_len=64)) as server, on_a_port(server) as url:
        words = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        done = subprocess.run(
            [*words, *OPTIONS], capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
        generated = server.service.metrics.text().decode()
    assert done.returncode == 0, done.stdout[-6000:]
    paths = document(["nestling"])["paths"]
    assert isinstance(paths, dict)
    others = set(paths) - {"/openapi.json"}  # which it has read by then
    assert f"Tested: {len(others)}\n" in done.stdout
    counted = re.search(r"^vllm:generation_tokens_total{.*} (\S+)$", generated, re.M)
    assert counted is not None
    assert float(counted[1]) >= 2 * 16  # an example of each endpoint that generates
