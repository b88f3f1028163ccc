"""The OpenAPI document, made of the table of options."""

from collections.abc import Sequence

from gyrfalcon import __version__
from gyrfalcon.serve.options import Endpoint, Kind, Option, options_of
from gyrfalcon.serve.values import Schema, nullable

ERRORS = {
    400: "An option is wrong, or the prompt is too long.",
    401: "A key is needed.",
    403: "The Host header is not served.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The queue is full; see Retry-After.",
    500: "The server or the model failed.",
    503: "The server is loading, draining or failed.",
}
OF_GET = (401, 403, 404, 500, 503)
SUMMARIES = {
    Endpoint.COMPLETIONS: "Continue prompts",
    Endpoint.CHAT: "Answer the last message of a conversation",
    Endpoint.TOKENIZE: "Text or a conversation to token ids",
    Endpoint.DETOKENIZE: "Token ids to text",
}
EXAMPLES: dict[Endpoint, Schema] = {
    Endpoint.COMPLETIONS: {"prompt": "The old captain", "max_tokens": 16, "temperature": 0},
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "Name a bird."}], "max_tokens": 16},
    Endpoint.TOKENIZE: {"prompt": "The old captain"},
    Endpoint.DETOKENIZE: {"tokens": [30, 31, 32]},
}
GETS = {
    "/v1/models": "The served models",
    "/v1/models/{name}": "One served model",
    "/tokenizer_info": "Special tokens and the chat template",
    "/health": "Whether requests are taken",
    "/health/live": "Whether the process answers",
    "/version": "The server's version",
    "/openapi.json": "This document",
}
ERROR_SCHEMA: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": nullable({"type": "string"}),
                "code": nullable({"type": "string"}),
            },
        }
    },
}


def document(names: Sequence[str]) -> Schema:
    """The document of a server whose model has these names."""
    paths: Schema = {endpoint.value: {"post": _post(endpoint, names)} for endpoint in Endpoint}
    paths |= {path: {"get": _get(path, summary, names)} for path, summary in GETS.items()}
    paths["/metrics"] = {"get": _metrics()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gyrfalcon", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def request_schema(endpoint: Endpoint, names: Sequence[str]) -> Schema:
    """The JSON Schema of a body. Refused options are not in it."""
    shown = [one for one in options_of(endpoint).values() if one.kind is not Kind.REFUSED]
    return {
        "type": "object",
        "properties": {one.name: _property(one, names) for one in shown},
        "required": [one.name for one in shown if one.required],
        "additionalProperties": False,
    }


def _property(option: Option, names: Sequence[str]) -> Schema:
    schema: Schema = option.value.schema() if option.name != "model" else {"enum": [*names]}
    schema = schema if option.required else nullable(schema)
    default = {} if option.default is None else {"default": option.default}
    return schema | {"description": f"{option.text} ({option.kind.value})"} | default


def _post(endpoint: Endpoint, names: Sequence[str]) -> Schema:
    example: Schema = {"model": names[0], **EXAMPLES[endpoint]}
    schema = request_schema(endpoint, names)
    body = {"application/json": {"schema": schema, "example": example}}
    content: Schema = {"application/json": {"schema": {"type": "object"}}}
    if endpoint in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        content["text/event-stream"] = {}  # one schema cannot say what each event is
    return {
        "summary": SUMMARIES[endpoint],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "The answer", "content": content}} | _errors(*ERRORS),
    }


def _get(path: str, summary: str, names: Sequence[str]) -> Schema:
    content = {"application/json": {"schema": {"type": "object"}}}
    responses = {"200": {"description": summary, "content": content}} | _errors(*OF_GET)
    if path == "/health":  # its state, whichever it is
        responses["503"] = {"description": "Requests are not taken", "content": content}
    operation: Schema = {"summary": summary, "responses": responses}
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [*names]}}
        operation["parameters"] = [name]
    return operation


def _metrics() -> Schema:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "summary": "Metrics for Prometheus",
        "responses": {"200": {"description": "The metrics", "content": content}} | _errors(*OF_GET),
    }


def _errors(*statuses: int) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(one): {"description": ERRORS[one], "content": content} for one in statuses}
