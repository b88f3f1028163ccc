"""Running the server: what ends it, and how."""

from pathlib import Path

import pytest
from serve_client import engine_of

from gyrfalcon.serve import server
from gyrfalcon.serve.server import Listening, listen
from gyrfalcon.serve.service import Settings

pytest_plugins = ["serve_fixtures"]


def run(model: Path) -> None:
    """A server of its own on this thread's loop, until it ends."""
    listening = Listening("127.0.0.1", 0)
    server.run(
        lambda: engine_of(model),
        Settings(("nestling",)),
        listening,
        listen(listening.host, listening.port),
        lambda engine: None,
    )


def test_a_part_that_serves_connections_and_dies_ends_the_server(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(uvicorn: server._Server) -> None:
        raise OSError("planted")

    monkeypatch.setattr(server._Server, "main_loop", dies)
    with pytest.raises(OSError, match="planted"):
        run(model)


def test_a_part_that_serves_connections_and_returns_ends_the_server(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def returns(uvicorn: server._Server) -> None:
        pass

    monkeypatch.setattr(server._Server, "main_loop", returns)
    with pytest.raises(RuntimeError, match="ended by itself"):
        run(model)
