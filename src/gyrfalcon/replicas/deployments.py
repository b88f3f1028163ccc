"""The two deployments of Ray Serve: replicas with an engine each, and the ingress before them."""

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from gyrfalcon.replicas.engine_replica import EngineReplica
from gyrfalcon.replicas.ingress import Ingress
from gyrfalcon.replicas.prefix_router import PrefixRouter
from gyrfalcon.replicas.settings import ReplicasConfig

HEALTH_SECONDS = 2.0  # between two looks whether an engine steps
HEALTH_TIMEOUT_SECONDS = 10.0
DRAIN_LOOK_SECONDS = 0.5  # between two looks whether a replica that ends has answered all
INGRESS_REQUESTS = 100_000  # no bound: replicas have one


def bound(config: ReplicasConfig) -> Application:
    """The application, which starts nothing before Ray Serve runs it."""
    replicas = serve.deployment(EngineReplica).options(
        name="EngineReplica",
        num_replicas=None if config.max_replicas is not None else config.num_replicas,
        autoscaling_config=_autoscaling(config),
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=config.engine.max_sequences + config.max_queued_requests,
        graceful_shutdown_timeout_s=config.shutdown_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=config.num_ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=config.shutdown_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
    )
    return ingress.bind(replicas.bind(config))


def _autoscaling(config: ReplicasConfig) -> AutoscalingConfig | None:
    if config.max_replicas is None:
        return None
    return AutoscalingConfig(
        min_replicas=config.num_replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=config.target_requests,
        upscale_delay_s=config.upscale_seconds,
        downscale_delay_s=config.downscale_seconds,
    )
