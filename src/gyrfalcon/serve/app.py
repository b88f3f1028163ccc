"""The application: which path does what."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gyrfalcon import __version__
from gyrfalcon.serve import generating, tokens
from gyrfalcon.serve.access import Gate, unexpected
from gyrfalcon.serve.answers import error_response, json_response
from gyrfalcon.serve.bandwidth import Bandwidth
from gyrfalcon.serve.errors import RETRY_LATER, ApiError
from gyrfalcon.serve.live import Live
from gyrfalcon.serve.metrics import CONTENT_TYPE
from gyrfalcon.serve.openapi import document
from gyrfalcon.serve.page import page_files, page_routes
from gyrfalcon.serve.service import Service

Handler = Callable[[Service, Request], Awaitable[ASGIApp]]
OPEN_PATHS = ("/health", "/health/live")  # without a key


def application(
    service: Service, keys: Sequence[str] = (), hosts: Collection[str] | None = None
) -> Gate:
    """The whole of it. `keys` empty: everybody may ask; `hosts` None: whatever the Host header says."""
    get, post, page = ["GET"], ["POST"], page_files()
    live = Live(service)
    service.metrics.register(Bandwidth(service, live))
    routes = [
        *page_routes(page),
        _route(service, "/page/live.json", _readings(live), get),
        _route(service, "/v1/completions", generating.completions, post),
        _route(service, "/v1/chat/completions", generating.chat, post),
        _route(service, "/v1/models", _models, get),
        _route(service, "/v1/models/{name:path}", _model, get),
        _route(service, "/tokenize", tokens.tokenize, post),
        _route(service, "/detokenize", tokens.detokenize, post),
        _route(service, "/tokenizer_info", tokens.tokenizer_info, get),
        _route(service, "/health", _health, get),
        _route(service, "/health/live", _live, get),
        _route(service, "/metrics", _metrics, get),
        _route(service, "/version", _version, get),
        _route(service, "/openapi.json", _openapi, get),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            Exception: _on_fault,
        },
    )
    app.router.redirect_slashes = False
    open_paths = {*OPEN_PATHS, *(file.path for file in page)}
    if service.settings.public_metrics:
        open_paths.add("/metrics")
    return Gate(app, keys, hosts, open_paths, service.metrics.refuse)


def with_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application as scripts of web pages from these origins may use it; without any none may, and
    browsers see to that.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # clients send some of their own, such as X-Stainless-Lang
        expose_headers=["X-Request-Id", "X-Ignored-Options", "Retry-After"],
    )


def _route(service: Service, path: str, handler: Handler, methods: list[str]) -> Route:
    async def endpoint(request: Request) -> ASGIApp:
        return await handler(service, request)

    # Starlette's type asks for a Response, its code for what can be called as one.
    return Route(path, endpoint, methods=methods)


async def _models(service: Service, request: Request) -> Response:
    names = service.settings.names
    return json_response({"object": "list", "data": [_entry(service, name) for name in names]})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    service.check_model(name)
    return json_response(_entry(service, name))


def _entry(service: Service, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "gyrfalcon",
        "max_model_len": service.engine.max_len,
    }


async def _health(service: Service, request: Request) -> Response:
    if service.is_ready:
        return json_response({"status": service.state})
    return json_response({"status": service.state}, RETRY_LATER, 503)


async def _live(service: Service, request: Request) -> Response:
    return json_response({"status": "live"})


def _readings(live: Live) -> Handler:
    async def reading(service: Service, request: Request) -> Response:
        return json_response(asdict(live.reading(request.query_params.get("request", ""))))

    return reading


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _version(service: Service, request: Request) -> Response:
    return json_response({"version": __version__})


async def _openapi(service: Service, request: Request) -> Response:
    return json_response(document(service.settings.names))


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of the server, which is raised again and logged by the gate."""
    return error_response(unexpected())


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: paths and methods."""
    assert isinstance(error, HTTPException)
    wanted = (
        "a path of this server" if error.status_code == 404 else "a method that this path takes"
    )
    message = f"wanted {wanted}, got {request.method} {request.url.path[:80]}; see /openapi.json"
    return error_response(ApiError(error.status_code, message, headers=error.headers))
