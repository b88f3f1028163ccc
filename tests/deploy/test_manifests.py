"""The manifests for Kubernetes: valid, and every flag, port, path and metric in them is one of the code."""

import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

import jsonschema
import yaml
from custom_resources import PREDICTOR_FIELDS, SCHEMAS
from serve_client import engine_of, serving
from torch.distributed.run import get_args_parser

from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.cli.parser import parse
from gyrfalcon.serve.app import OPEN_PATHS

ROOT = Path(__file__).parents[2]
FOLDER, PAGE = ROOT / "deploy" / "kubernetes", ROOT / "docs" / "kubernetes.md"
FILES = sorted(FOLDER.glob("*.yaml"))
METRIC = re.compile(r"\b(?:vllm|gyrfalcon):[a-z]\w+")
TORCHRUN_SECONDS = 30  # that torchrun leaves its processes between SIGTERM and SIGKILL
VARIABLES = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "leader.group"}
Json = Any  # of a manifest, which a test looks into


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest asks for."""

    name: str
    annotations: dict[str, str]
    spec: Json

    @property
    def container(self) -> Json:
        [container] = self.spec["containers"]
        return container

    @property
    def words(self) -> list[str]:
        """What follows `gyrfalcon`, after torchrun's own options where that starts it."""
        args = [word for word in self.container["args"] if word != "-m"]
        return args[args.index("gyrfalcon") + 1 :] if self.is_torchrun else args

    @property
    def is_torchrun(self) -> bool:
        return bool(self.container["command"] == ["torchrun"])

    @property
    def served(self) -> Namespace:
        return parse(self.words)

    @property
    def probes(self) -> dict[str, Json]:
        return {name: probe for name, probe in self.container.items() if name.endswith("Probe")}


def resources(file: Path) -> list[Json]:
    return [one for one in yaml.safe_load_all(file.read_text("utf-8")) if one is not None]


def pods() -> Iterator[Pod]:
    for file in FILES:
        for one in resources(file):
            spec, name = one["spec"], f"{file.stem}"
            if one["kind"] == "Deployment":
                template = spec["template"]
                yield Pod(name, template["metadata"].get("annotations", {}), template["spec"])
            elif one["kind"] == "LeaderWorkerSet":
                for role in ("leader", "worker"):
                    template = spec["leaderWorkerTemplate"][f"{role}Template"]
                    yield Pod(f"{name}-{role}", {}, template["spec"])
            elif one["kind"] == "InferenceService":
                predictor = spec["predictor"]
                left = {key: predictor[key] for key in predictor if key not in PREDICTOR_FIELDS}
                yield Pod(name, predictor.get("annotations", {}), left)


PODS = list(pods())
SERVERS = [pod for pod in PODS if pod.probes]
NAME = attrgetter("name")


def test_all_manifests_are_looked_at() -> None:
    assert [file.stem for file in FILES] == [
        "deployment",
        "inferencepool",
        "kserve",
        "leaderworkerset",
    ]
    names = ["deployment", "kserve", "leaderworkerset-leader", "leaderworkerset-worker"]
    assert [pod.name for pod in PODS] == names
    assert [pod.name for pod in SERVERS] == names[:3]


@pytest.mark.parametrize("file", FILES, ids=attrgetter("stem"))
def test_resources_of_kubernetes_itself_are_valid(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    version = validate.latest_version()
    for one in resources(file):
        if one["kind"] not in SCHEMAS:
            validate.validate(one, version, strict=True)


@pytest.mark.parametrize("pod", PODS, ids=NAME)
def test_pods_are_valid(pod: Pod) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    template = {"metadata": {"annotations": pod.annotations}, "spec": pod.spec}
    one = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}}
    validate.validate(one | {"template": template}, validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", FILES, ids=attrgetter("stem"))
def test_custom_resources_are_valid(file: Path) -> None:
    for one in resources(file):
        if one["kind"] in SCHEMAS:
            jsonschema.validate(one, SCHEMAS[one["kind"]])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schema_of_a_custom_resource_refuses_a_misspelt_field(kind: str) -> None:
    [one] = [one for file in FILES for one in resources(file) if one["kind"] == kind]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(one | {"spec": one["spec"] | {"replica": 1}}, SCHEMAS[kind])


@pytest.mark.parametrize("pod", PODS, ids=NAME)
def test_options_are_those_of_serve_and_of_torchrun(pod: Pod) -> None:
    assert pod.words[0] == "serve"
    assert pod.served.host == "0.0.0.0"
    if pod.is_torchrun:
        args = pod.container["args"]
        torchrun = get_args_parser().parse_args([_expanded(word) for word in args])
        assert (torchrun.nnodes, torchrun.node_rank, torchrun.nproc_per_node) == ("2", 1, "1")
        assert (torchrun.master_addr, torchrun.master_port) == ("leader.group", 29500)
        assert (torchrun.module, torchrun.training_script) == (True, "gyrfalcon")


def _expanded(word: str) -> str:
    """An argument as Kubernetes hands it over, with what a LeaderWorkerSet sets in each pod."""
    return re.sub(r"\$\((\w+)\)", lambda found: VARIABLES[found[1]], word)


@pytest.mark.parametrize("pod", SERVERS, ids=NAME)
def test_probes_ask_paths_that_need_no_key_at_the_port_that_is_served(pod: Pod) -> None:
    ports = {one["name"]: one["containerPort"] for one in pod.container["ports"]}
    assert pod.served.port in ports.values()
    assert set(pod.probes) == {"startupProbe", "readinessProbe", "livenessProbe"}
    for probe in pod.probes.values():
        asked = probe["httpGet"]
        assert asked["path"] in OPEN_PATHS
        assert ports.get(asked["port"], asked["port"]) == pod.served.port


def test_leader_and_workers_run_the_same_command() -> None:
    [leader, worker] = [pod for pod in PODS if pod.is_torchrun]
    assert leader.container["args"] == worker.container["args"]
    assert leader.container["env"] == worker.container["env"]


@pytest.mark.parametrize("pod", PODS, ids=NAME)
def test_a_pod_is_given_the_time_that_its_answers_may_take(pod: Pod) -> None:
    grace, shutdown = pod.spec["terminationGracePeriodSeconds"], pod.served.shutdown_timeout
    assert grace >= shutdown + 10
    if pod.is_torchrun:
        assert shutdown < TORCHRUN_SECONDS
    if pod not in SERVERS:  # a worker that is ended with its leader leaves it the time to answer
        seconds = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert shutdown < seconds < grace


@pytest.mark.parametrize("pod", PODS, ids=NAME)
def test_what_options_name_is_mounted(pod: Pod) -> None:
    mounts = [one["mountPath"] for one in pod.container["volumeMounts"]]
    for path in (pod.served.model, pod.served.api_key_file):
        assert any(path.startswith(f"{mount}/") for mount in mounts)
    assert {one["name"] for one in pod.container["volumeMounts"]} == {
        one["name"] for one in pod.spec["volumes"]
    }


def test_services_and_pools_lead_to_the_port_of_the_pods_that_they_select() -> None:
    [pool] = [one for one in resources(FOLDER / "inferencepool.yaml")]
    [deployment] = [
        one for one in resources(FOLDER / "deployment.yaml") if one["kind"] == "Deployment"
    ]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [one["number"] for one in pool["spec"]["targetPorts"]] == [PODS[0].served.port]
    for file, pod in (("deployment", PODS[0]), ("leaderworkerset", PODS[2])):
        [service] = [one for one in resources(FOLDER / f"{file}.yaml") if one["kind"] == "Service"]
        names = {one["name"]: one["containerPort"] for one in pod.container["ports"]}
        [port] = service["spec"]["ports"]
        assert names[port["targetPort"]] == pod.served.port


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of all that /metrics shows."""
    with serving(lambda: engine_of(NESTLING)) as server:
        text = server.get("/metrics").body.decode()
        assert server.get("/metrics").status == 200
    return set(re.findall(r"^# TYPE ([\w:]+) ", text, re.M))


@pytest.mark.parametrize("file", [*FILES, PAGE], ids=NAME)
def test_metrics_that_are_named_are_served(file: Path, metrics: set[str]) -> None:
    found = set(METRIC.findall(file.read_text("utf-8")))
    assert not found - metrics
    assert found or file.stem not in ("kserve", "kubernetes")


@pytest.mark.parametrize("pod", SERVERS, ids=NAME)
def test_what_reads_metrics_needs_no_key(pod: Pod) -> None:
    assert pod.served.public_metrics
    if pod.annotations:
        assert pod.annotations["prometheus.io/path"] == "/metrics"
        assert pod.annotations["prometheus.io/port"] == str(pod.served.port)


def test_the_query_of_the_autoscaler_asks_for_the_name_that_is_served() -> None:
    [service] = resources(FOLDER / "kserve.yaml")
    [metric] = service["spec"]["predictor"]["autoScaling"]["metrics"]
    names = set(re.findall(r'model_name="([^"]*)"', metric["external"]["metric"]["query"]))
    [pod] = [pod for pod in PODS if pod.name == "kserve"]
    assert names == set(pod.served.served_model_names)
