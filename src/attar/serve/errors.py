"""What a client is told when something is wrong: a status, and JSON of OpenAI's shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from attar.serve.log import log

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that cannot be answered: its status, what is wrong, in which field, and a code."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.field = status, message, code, field
        self.retry_after = retry_after

    def plain(self) -> dict[str, Any]:
        """The error as OpenAI writes one."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        found = {"message": self.message, "type": kind, "param": self.field, "code": self.code}
        return {"error": found}

    def text(self) -> str:
        """The same as JSON; what is no Unicode in a client's own words is replaced."""
        text = json.dumps(self.plain(), ensure_ascii=False)
        return text.encode("utf-8", "replace").decode("utf-8")

    def response(self) -> Response:
        """The same as an answer."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.text(), self.status, headers, "application/json")


def busy(message: str, code: str, status: int = 503) -> ApiError:
    """An error that goes away by itself."""
    return ApiError(status, message, code, retry_after=1 if status == 429 else 5)


def install(app: FastAPI) -> None:
    """Answer every error of the framework in the same shape."""
    app.add_exception_handler(ApiError, _api)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _api(request: Request, error: Any) -> Response:
    if error.__cause__ is not None:
        log("failed", logging.ERROR, error.__cause__, path=request.url.path)
    return error.response()


async def _http(request: Request, error: Any) -> Response:
    headers: Mapping[str, str] = error.headers or {}
    message, path = str(error.detail), request.url.path
    if error.status_code == 404:
        message = f"there is no path {path}"
    elif error.status_code == 405:
        message = f"{path} takes {headers.get('Allow')}, not {request.method}"
    elif error.status_code == 400:
        message = (
            "the body cannot be read. Send JSON in UTF-8, without numbers of thousands of digits "
            "or lists thousands deep"
        )
    response = ApiError(error.status_code, message).response()
    response.headers.update(headers)
    return response


async def _invalid(request: Request, error: Any) -> Response:
    """The first thing that is wrong, and where; 400, as OpenAI answers, where FastAPI says 422."""
    first = error.errors()[0]
    field = ".".join(_places(first, error.body)) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        field, message = None, f"the body is no JSON: {first.get('ctx', {}).get('error', message)}"
    elif first["type"] == "extra_forbidden":
        message = f"there is no parameter {field!r}"
    elif field:
        message = f"{field}: {message}"
    elif first["type"] == "missing":
        message = "a body is required: a JSON object"
    elif first["type"] == "model_attributes_type":
        kind = request.headers.get("content-type", "application/json").partition(";")[0].lower()
        if not kind.strip().endswith("json"):
            said = f"the body is said to be {kind}: send a JSON object as application/json"
            return ApiError(415, said, "unsupported_media_type").response()
        message = "the body is no valid dictionary: send a JSON object as application/json"
    return ApiError(400, message, "invalid_value", field).response()


def _places(error: Mapping[str, Any], body: Any) -> list[str]:
    """The way to it in the body; of a value that may be of several kinds, not which was taken."""
    found: list[str] = []
    for part in error["loc"][1:]:
        if isinstance(body, dict):
            held: dict[Any, Any] = cast("dict[Any, Any]", body)
            found.append(str(part))
            body = held.get(part)  # none where it is missing
        elif isinstance(body, list) and isinstance(part, int):
            found.append(str(part))
            body = cast("list[Any]", body)[part]
    return found
