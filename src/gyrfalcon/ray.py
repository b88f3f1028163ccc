"""Replicas of an engine behind Ray Serve: `gyrfalcon.ray.app(config)`. Needs the extra ray.

The module begins with a look whether that is there, so that an import says in one line what is missing.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import PIP_INSTALL, MissingExtra
from gyrfalcon.replicas.settings import ReplicasConfig, replicas_config

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["ReplicasConfig", "app"]

NEEDED = ("ray", "starlette", "uvicorn", "prometheus_client", "llguidance")
if missing := [name for name in NEEDED if find_spec(name) is None]:
    do = f"{PIP_INSTALL} 'gyrfalcon[ray]'"
    raise MissingExtra("what Ray Serve needs (the extra ray)", f"no {missing[0]}", do)


def app(config: "ReplicasConfig | EngineConfig | Mapping[str, object]") -> "Application":
    """An application for Ray Serve: OpenAI's API over HTTP, answered by replicas that own an engine each.
    UsageError for settings that are wrong, before anything is started.

    >>> from ray import serve
    >>> serve.run(app(ReplicasConfig(EngineConfig("nestling"), num_replicas=2)))

    In a file for `serve run` or `serve deploy`, with settings of the replicas and of the engine by name::

        applications:
        - import_path: gyrfalcon.ray:app
          args: {model: nestling, num_replicas: 2}
    """
    settings = replicas_config(config)
    from gyrfalcon.replicas.deployments import bound

    return bound(settings)
