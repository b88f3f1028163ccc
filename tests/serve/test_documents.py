"""docs/api.md, docs/serving.md and the OpenAPI document say what the code says, and the table has the
options of clients.
"""

import argparse
import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import api_options
import openai.resources.chat.completions as openai_chat
import openai.resources.completions as openai_completions
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_client import Json, Server

from gyrfalcon.cli import serve
from gyrfalcon.serve import errors
from gyrfalcon.serve.options import OPTIONS, Endpoint, Kind, options_of

pytest_plugins = ["serve_fixtures"]

SERVING = (api_options.PAGE.parent / "serving.md").read_text("utf-8")
SOURCES = Path(errors.__file__).parent
NOT_IN_THE_BODY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def test_the_page_of_options_is_up_to_date() -> None:
    page = api_options.PAGE.read_text("utf-8")
    assert page == api_options.page(), "run python tools/api_options.py"


@pytest.mark.parametrize(
    ("endpoint", "create"),
    [
        (Endpoint.CHAT, openai_chat.Completions.create),
        (Endpoint.COMPLETIONS, openai_completions.Completions.create),
    ],
)
def test_every_option_of_openai_s_client_is_in_the_table(
    endpoint: Endpoint, create: object
) -> None:
    assert callable(create)
    names = set(inspect.signature(create).parameters) - NOT_IN_THE_BODY
    assert len(names) > 15
    assert names - set(options_of(endpoint)) == set()


def test_no_endpoint_has_an_option_twice() -> None:
    rows = [(endpoint, one.name) for one in OPTIONS for endpoint in one.endpoints]
    assert len(rows) == len(set(rows))


def test_the_openapi_document_has_every_option_that_is_taken(server: Server) -> None:
    document = server.get("/openapi.json").json()
    for endpoint in Endpoint:
        schema = body_schema(document, endpoint)
        taken = [one for one in options_of(endpoint).values() if one.kind is not Kind.REFUSED]
        assert set(schema["properties"]) == {one.name for one in taken}
        assert set(schema["required"]) == {one.name for one in taken if one.required}


def test_every_path_of_the_document_is_served(server: Server) -> None:
    document = server.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            real = path.replace("{name}", "nestling")
            answer = server.ask(method.upper(), real, b"", {})
            assert answer.status == (415 if method == "post" else 200), path
            assert str(answer.status) in operations[method]["responses"]


def body_schema(document: Json, endpoint: Endpoint) -> Json:
    content = document["paths"][endpoint.value]["post"]["requestBody"]["content"]
    return content["application/json"]["schema"]


def test_serving_links_to_the_page_of_options() -> None:
    assert "api.md" in SERVING


def test_serving_names_every_option_of_the_command() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    serve.add_arguments(parser)
    shown = [one for one in parser._actions if one.help is not argparse.SUPPRESS]
    options = {name for one in shown for name in one.option_strings}
    assert len(options) > 15
    missing = {name for name in options if not re.search(rf"`{name}[` ]", SERVING)}
    assert missing == set()


def test_serving_names_every_metric(server: Server) -> None:
    server.post("/v1/completions", {})  # a refusal, which is counted
    server.complete()
    families = list(text_string_to_metric_families(server.get("/metrics").body.decode()))
    names = {family.name for family in families if not family.name.endswith("_created")}
    assert len(names) > 10
    assert {name for name in names if f"| `{name}` |" not in SERVING} == set()


def test_serving_names_every_type_and_code_of_an_error() -> None:
    codes = {code for path in SOURCES.rglob("*.py") for code in codes_in(path)}
    assert {"queue_full", "invalid_value", "model_not_found"} <= codes
    assert {code for code in codes if f"| `{code}` |" not in SERVING} == set()
    assert {kind for kind in errors.TYPES.values() if f"| `{kind}` |" not in SERVING} == set()
    rows = re.findall(r"^\| ([0-9, ]+) \| `(\w+)` \|", SERVING, re.M)
    for statuses, kind in rows:
        for status in statuses.split(", "):
            assert errors.ApiError(int(status), "").envelope["error"]["type"] == kind  # type: ignore[index]  # a dict


def codes_in(path: Path) -> Iterator[str]:
    """The texts that a source gives as `code`, or assigns to that name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        given = isinstance(node, ast.keyword) and node.arg == "code"
        assigned = isinstance(node, ast.Assign) and "code" in map(ast.unparse, node.targets)
        if given or assigned:
            for one in ast.walk(node):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value


@pytest.mark.parametrize("state", ["loading", "draining", "failed"])
def test_serving_explains_every_state(state: str) -> None:
    assert f"| `{state}` |" in SERVING
    assert f'"{state}"' in (SOURCES / "service.py").read_text("utf-8")
