"""Schemas of the custom resources in deploy/kubernetes: the fields that the manifests use, written from the
API references of LeaderWorkerSet (v1), KServe's InferenceService (v1beta1) and the Gateway API's inference
extension (InferencePool, v1). Unknown fields are refused; pods in them are checked as Kubernetes' own.
"""

from collections.abc import Mapping

Schema = Mapping[str, object]


def _object(required: tuple[str, ...] = (), **properties: object) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _resource(group: str, kind: str, spec: Schema) -> Schema:
    names = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = _object(("name",), name={"type": "string"}, labels=names, annotations=names)
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": group},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_PERCENT: Schema = {"anyOf": [COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253}
POD: Schema = {"type": "object"}  # checked as a PodTemplate
QUANTITY: Schema = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9.]+[a-zA-Z]*$"}]
}

LEADER_WORKER_SET = _resource(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    _object(
        ("leaderWorkerTemplate",),
        replicas=COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=_object(
            ("type",),
            type={"enum": ["RollingUpdate"]},
            rollingUpdateConfiguration=_object(
                maxUnavailable=COUNT_OR_PERCENT, maxSurge=COUNT_OR_PERCENT, partition=COUNT
            ),
        ),
        leaderWorkerTemplate=_object(
            ("workerTemplate",),
            size={"type": "integer", "minimum": 1},
            restartPolicy={
                "enum": [
                    "Default",
                    "RecreateGroupOnPodRestart",
                    "RecreateGroupAfterStart",
                    "None",
                ]
            },
            leaderTemplate=POD,
            workerTemplate=POD,
        ),
        networkConfig=_object(
            ("subdomainPolicy",), subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}
        ),
    ),
)

EXTERNAL_METRIC = _object(
    ("metric", "target"),
    metric=_object(
        backend={"enum": ["prometheus", "graphite"]},
        serverAddress={"type": "string"},
        query={"type": "string"},
        namespace={"type": "string"},
    ),
    target=_object(
        type={"enum": ["Utilization", "Value", "AverageValue"]},
        value=QUANTITY,
        averageValue=QUANTITY,
        averageUtilization=COUNT,
    ),
)
# What a predictor has beside the fields of a pod.
PREDICTOR_FIELDS = ("minReplicas", "maxReplicas", "autoScaling", "annotations", "labels")
INFERENCE_SERVICE = _resource(
    "serving.kserve.io/v1beta1",
    "InferenceService",
    _object(
        ("predictor",),
        predictor={
            "type": "object",
            "required": ["containers"],
            "properties": {
                "minReplicas": COUNT,
                "maxReplicas": COUNT,
                "autoScaling": _object(
                    metrics={
                        "type": "array",
                        "items": _object(
                            ("type", "external"),
                            type={"const": "External"},
                            external=EXTERNAL_METRIC,
                        ),
                    }
                ),
            },
        },
    ),
)

INFERENCE_POOL = _resource(
    "inference.networking.k8s.io/v1",
    "InferencePool",
    _object(
        ("selector", "targetPorts"),
        selector=_object(
            ("matchLabels",),
            matchLabels={
                "type": "object",
                "additionalProperties": {"type": "string"},
                "minProperties": 1,
            },
        ),
        targetPorts={
            "type": "array",
            "items": _object(("number",), number=PORT),
            "minItems": 1,
            "maxItems": 8,
        },
        endpointPickerRef=_object(
            ("name", "port"),
            group={"type": "string"},
            kind={"type": "string"},
            name=NAME,
            port=_object(("number",), number=PORT),
            failureMode={"enum": ["FailOpen", "FailClose"]},
        ),
    ),
)

SCHEMAS = {
    "LeaderWorkerSet": LEADER_WORKER_SET,
    "InferenceService": INFERENCE_SERVICE,
    "InferencePool": INFERENCE_POOL,
}
