"""Errors of the server: an HTTP status and OpenAI's envelope, {"error": {message, type, param, code}}."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from gyrfalcon.errors import EngineClosed, QueueFull, RankDied, RequestError

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
RETRY_LATER = {"Retry-After": "5"}  # seconds
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """What a request is answered with instead of a result. `param` names the option at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's type of it."""
        return TYPES.get(self.status, "invalid_request_error")

    @property
    def envelope(self) -> dict[str, object]:
        """The body."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def as_json(value: object) -> bytes:
    """A value as the server sends it. Half a surrogate pair, which JSON can escape and UTF-8 cannot write,
    becomes a question mark.
    """
    return ENCODE(value).encode("utf-8", "replace")


def wrong_option(param: str, wanted: str, got: str) -> ApiError:
    """400 for the value of one option."""
    line = f"wanted {wanted} for `{param}`, got {got}"
    return ApiError(400, line, param=param, code="invalid_value")


def queue_full(message: str) -> ApiError:
    """429 for a request that has to wait before it is queued."""
    return ApiError(429, message, code="queue_full", headers=RETRY_LATER)


def without_folder(message: str, folder: Path) -> str:
    """A message without the paths of the model's files, which are nobody's business: their names remain."""
    for path in {str(folder), str(folder.absolute()), str(folder.resolve())}:
        message = re.sub(rf"(?<![\w./-]){re.escape(path)}/", "", message)
        message = re.sub(
            rf"(?<![\w./-]){re.escape(path)}(?![\w./-])", "the model's folder", message
        )
    return message


def as_api_error(error: BaseException) -> ApiError:
    """What a caller is told of an error of ours: its own mistake with 400, what is gone with 503, anything
    else with 500 and no more than its kind.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, QueueFull):
        return queue_full(str(error))
    if isinstance(error, EngineClosed):
        return ApiError(503, str(error), headers=RETRY_LATER)
    if isinstance(error, RankDied):
        message = "wanted an answer, got an engine that failed; ask again later"
        return ApiError(503, message, code="failed", headers=RETRY_LATER)
    return ApiError(500, f"wanted an answer, got {type(error).__name__} in the server; see its log")
