"""docs/api.md and the OpenAPI document say what the table of options says, and clients' options are in it."""

import inspect
from pathlib import Path

import api_options
import openai.resources.chat.completions as openai_chat
import openai.resources.completions as openai_completions
import pytest
from serve_client import Json, Server

from gyrfalcon.serve.options import OPTIONS, Endpoint, Kind, options_of

pytest_plugins = ["serve_fixtures"]

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


def test_the_page_is_where_serving_links_to() -> None:
    assert "api.md" in (Path(api_options.PAGE).parent / "serving.md").read_text("utf-8")
