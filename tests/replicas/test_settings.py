"""The settings of replicas behind Ray Serve, which are checked before anything starts."""

import pytest

from gyrfalcon import EngineConfig, UsageError
from gyrfalcon.replicas.settings import ReplicasConfig, replicas_config


def test_settings_by_name_are_those_of_the_replicas_and_of_the_engine() -> None:
    config = replicas_config(
        {
            "model": "nestling",
            "world_size": 2,
            "num_replicas": 3,
            "served_model_names": ["a", "b"],
            "max_queued_requests": 7,
        }
    )
    engine = EngineConfig("nestling", world_size=2)
    names = ("a", "b")
    assert config == ReplicasConfig(
        engine, num_replicas=3, served_model_names=names, max_queued_requests=7
    )


def test_an_engine_s_settings_alone_are_those_of_one_replica() -> None:
    engine = EngineConfig("nestling")
    assert replicas_config(engine) == replicas_config(ReplicasConfig(engine, num_replicas=1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "wanted a model, got no settings"),
        ({"num_replicas": 2}, "got settings of num_replicas"),
        ({"model": "nestling", "num_replica": 2}, "got 'num_replica'; did you mean num_replicas"),
        ({"model": "nestling", "num_replicas": 0}, "a whole number from 1 to 10,000 for num_rep"),
        ({"model": "nestling", "num_replicas": True}, "got True"),
        ({"model": "nestling", "num_replicas": 1.5}, "got 1.5"),
        ({"model": "nestling", "num_cpus": "many"}, "a number from 0 to 4,096 for num_cpus"),
        ({"model": "nestling", "num_replicas": 3, "max_replicas": 2}, "max_replicas of at least"),
        ({"model": "nestling", "unknown_options": "drop"}, "refuse or ignore"),
        ({"model": "nestling", "served_model_names": "a"}, "names for served_model_names"),
        ({"model": "nestling", "public_metrics": 1}, "True or False"),
        ({"model": "nestling", "api_key_file": 1}, "a path for api_key_file"),
        ({"model": "nestling", "world_size": 0}, "world_size"),
        ("nestling", "a ReplicasConfig, an EngineConfig or settings by name"),
    ],
)
def test_wrong_settings_are_refused(settings: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        replicas_config(settings)  # type: ignore[arg-type]  # wrong on purpose
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("num_cpus", "world_size", "threads", "wanted"),
    [(1, None, None, 1), (4, None, None, 4), (4, 2, None, 2), (1, 2, None, 1), (4, None, 3, 3)],
)
def test_an_engine_computes_on_the_processors_of_its_replica(
    num_cpus: float, world_size: int | None, threads: int | None, wanted: int
) -> None:
    engine = EngineConfig("nestling", world_size=world_size, threads=threads)
    assert ReplicasConfig(engine, num_cpus=num_cpus).replica_engine.threads == wanted


def test_an_engine_without_a_whole_processor_keeps_its_own_number_of_threads() -> None:
    assert ReplicasConfig(EngineConfig("nestling"), num_cpus=0).replica_engine.threads is None
