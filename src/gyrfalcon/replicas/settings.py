"""ReplicasConfig: what replicas behind Ray Serve are asked for. Imports neither ray nor torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from gyrfalcon.bounds import ENGINE, Bounds, shown
from gyrfalcon.console.suggestion import did_you_mean, known_names
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import UsageError
from gyrfalcon.serve.queue import MOST_REQUESTS, MOST_TOKENS

COUNTS, SECONDS = Bounds(1, 10_000), Bounds(0, 86_400)
WHOLE: Mapping[str, Bounds] = {
    "num_replicas": COUNTS,
    "max_replicas": COUNTS,
    "num_ingresses": COUNTS,
    "max_queued_requests": ENGINE["max_queued_requests"],
    "max_queued_tokens": ENGINE["max_queued_tokens"],
}
NUMBERS: Mapping[str, Bounds] = {
    **WHOLE,
    "target_requests": Bounds(0, 100_000, above=True),
    "num_cpus": Bounds(0, 4096),
    "num_gpus": Bounds(0, 1024),
    "upscale_seconds": SECONDS,
    "downscale_seconds": SECONDS,
    "shutdown_seconds": SECONDS,
}


@known_names(UsageError, "settings of replicas")
@dataclass(frozen=True, slots=True)
class ReplicasConfig:
    """The settings of an application for Ray Serve.

    engine: the settings of the engine that each replica owns. Where it names no `threads`, an engine on
        the CPU computes on `num_cpus` of them, shared among its ranks.
    served_model_names: what requests call the model; by default its hub id, else its folder's name.
    num_replicas: how many there are; with `max_replicas` the fewest.
    max_replicas: the most; Ray adds replicas while each has more than `target_requests` unfinished ones on
        average for `upscale_seconds`, and ends some after `downscale_seconds` with fewer. None: always
        `num_replicas`.
    num_cpus, num_gpus: what Ray reserves for a replica, all of its ranks together.
    num_ingresses: processes that receive requests and choose their replicas. Each learns on its own which
        replica has which prefix.
    unknown_options: refuse or ignore options of a request that no one knows.
    max_queued_requests, max_queued_tokens: what may wait in a replica for its first token; what comes
        beyond gets 429.
    api_key_file: a file of keys, one a line, which has to be there on every node; GYRFALCON_API_KEY in the
        environment of the replicas is a key as well. Without any, everybody may ask.
    public_metrics: show /metrics without a key, too.
    shutdown_seconds: how long what is being answered may take to finish when a replica is ended.

    >>> ReplicasConfig(engine=EngineConfig("nestling"), num_replicas=2).max_replicas is None
    True
    """

    engine: EngineConfig
    served_model_names: tuple[str, ...] = ()
    num_replicas: int = 1
    max_replicas: int | None = None
    target_requests: float = 32.0
    upscale_seconds: float = 10.0
    downscale_seconds: float = 300.0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_ingresses: int = 1
    unknown_options: str = "refuse"
    max_queued_requests: int = MOST_REQUESTS
    max_queued_tokens: int = MOST_TOKENS
    api_key_file: str | None = None
    public_metrics: bool = False
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.engine, EngineConfig):
            do = "pass EngineConfig(model=…)"
            raise UsageError("an EngineConfig for `engine`", shown(self.engine), do)
        names = self.served_model_names
        if not isinstance(names, tuple) or not all(isinstance(one, str) and one for one in names):
            do = "pass names in a list"
            raise UsageError("names for `served_model_names`", shown(names), do)
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in NUMBERS and not (value is None and one.default is None):
                _check_number(one.name, value)
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            wanted = f"`max_replicas` of at least `num_replicas`, {self.num_replicas}"
            raise UsageError(wanted, str(self.max_replicas), "raise it, or leave it out")
        if self.unknown_options not in ("refuse", "ignore"):
            wanted = "refuse or ignore for `unknown_options`"
            raise UsageError(wanted, shown(self.unknown_options), "pass one of these")
        if not isinstance(self.public_metrics, bool):
            wanted = "True or False for `public_metrics`"
            raise UsageError(wanted, shown(self.public_metrics), "pass one of these")
        if self.api_key_file is not None and not isinstance(self.api_key_file, str):
            raise UsageError("a path for `api_key_file`", shown(self.api_key_file), "pass a string")

    @property
    def replica_engine(self) -> EngineConfig:
        """The engine's settings with the threads of one replica."""
        if self.engine.threads is not None or self.num_cpus < 1:
            return self.engine
        threads = max(1, int(self.num_cpus) // (self.engine.world_size or 1))
        return replace(self.engine, threads=threads)


def replicas_config(
    config: "ReplicasConfig | EngineConfig | Mapping[str, object]",
) -> ReplicasConfig:
    """The settings as app() takes them: whole, of the engine alone, or the fields of both by name, as a
    file of Ray Serve's has them under `args`. UsageError for names that neither has.
    """
    if isinstance(config, ReplicasConfig):
        return config
    if isinstance(config, EngineConfig):
        return ReplicasConfig(config)
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        wanted = "a ReplicasConfig, an EngineConfig or settings by name"
        raise UsageError(wanted, shown(config), "pass one of these")
    own = {one.name for one in fields(ReplicasConfig)} - {"engine"}
    settings = {name: value for name, value in config.items() if name in own}
    engine = {name: value for name, value in config.items() if name not in own}
    names = settings.get("served_model_names")
    if isinstance(names, list):
        settings["served_model_names"] = tuple(names)
    known = [*own, *(one.name for one in fields(EngineConfig))]
    for name in engine:
        if name not in known:
            do = did_you_mean(name, known, "see help(ReplicasConfig) and help(EngineConfig)")
            raise UsageError("settings of replicas or of an engine", shown(name), do)
    if "model" not in engine:
        got = f"settings of {', '.join(config)}" if config else "no settings"
        raise UsageError("a `model`", got, "name one")
    return ReplicasConfig(EngineConfig(**engine), **settings)  # type: ignore[arg-type]  # checked there


def _check_number(name: str, value: object) -> None:
    bounds = NUMBERS[name]
    is_number = isinstance(value, int if name in WHOLE else int | float)
    if isinstance(value, bool) or not (is_number and value in bounds):  # type: ignore[operator]  # a number
        kind = "a whole number" if name in WHOLE else "a number"
        wanted = f"{kind} {bounds.words} for `{name}`"
        raise UsageError(wanted, shown(value), f"give another `{name}`")
