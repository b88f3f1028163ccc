"""benchmarks/serve_peers.py: what it refuses, and how it sums up rounds."""

import sys

import pytest
import serve_peers

from gyrfalcon.errors import UsageError


@pytest.mark.parametrize(
    "text", ["vllm serve --port {port}", "=vllm --port {port}", "vllm=vllm serve"]
)
def test_a_server_needs_a_name_and_a_place_for_its_port(text: str) -> None:
    with pytest.raises(UsageError, match=r"--server NAME=COMMAND with \{port\}"):
        serve_peers.main(["--server", text])


def test_a_server_that_ends_is_named_with_its_last_words() -> None:
    command = f"{sys.executable} -c 'import sys; sys.exit(\"no model at {{port}}\")'"
    with pytest.raises(UsageError, match=r"no model at \d+"):
        serve_peers.main(["--server", f"one={command}"])


def test_rounds_are_summed_up_by_their_medians() -> None:
    rounds = [{"tokens/s": speed, "finished": 64.0} for speed in (10.0, 90.0, 20.0)]
    assert serve_peers._medians(rounds) == {"tokens/s": 20.0, "finished": 64.0}
