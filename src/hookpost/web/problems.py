"""Errors as RFC 9457 problems: one shape for every error of the API.

A problem tells the client what to do next and nothing of our insides; what is unexpected is logged and answered with a
bare 500. ``type`` is a relative reference, stable: clients may switch on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from hookpost import telemetry
from hookpost.ingest import Overloaded, RateLimited, UnknownTenant
from hookpost.intake import UnknownEndpoint
from hookpost.storage.contract import Conflict, DataRejected, NotFound, SecretLocked, StoreUnavailable, Unfit
from hookpost.web.limits import limit_headers

MEDIA_TYPE = "application/problem+json"
# On every answer of the API: it concerns one tenant only, and is never to be guessed to be a page.
SAFETY_HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# The store comes back within a second or not for a while; clients back off by themselves.
RETRY_AFTER_S = "1"
# Somebody has to bring a key and restart a process.
LOCKED_RETRY_AFTER_S = "60"
# More than that helps nobody to mend a request.
ERRORS_MAX = 100
ERRORS_SUMMED_MAX = 3

_SLUGS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "request-timeout",
    409: "conflict",
    413: "content-too-large",
    414: "uri-too-long",
    415: "unsupported-media-type",
    422: "invalid",
    429: "rate-limited",
    431: "header-fields-too-large",
    500: "internal-error",
    503: "unavailable",
}
_TITLES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


class Problem(Exception):
    """An answer that is an error. ``errors`` are ``{"field": dotted path, "message": …}``."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    @property
    def slug(self) -> str:
        """The last part of ``type``."""
        return _SLUGS.get(self.status, f"http-{self.status}")

    def body(self) -> bytes:
        """The problem document."""
        document: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": _encodable(self.detail),
        }
        if self.errors:
            document["errors"] = [
                {name: _encodable(text) for name, text in error.items()} for error in self.errors[:ERRORS_MAX]
            ]
        return msgspec.json.encode(document)

    def response(self) -> Response:
        """For Starlette and FastAPI."""
        return Response(self.body(), self.status, {**SAFETY_HEADERS, **self.headers}, media_type=MEDIA_TYPE)

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers for ASGI, all but content-length."""
        headers = {"Content-Type": MEDIA_TYPE, **SAFETY_HEADERS, **self.headers}
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def refusal(status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> Problem:
    """A problem with its status's own title."""
    return Problem(status, _TITLES.get(status) or HTTPStatus(status).phrase, detail, headers=headers)


def invalid(field: str, message: str) -> Problem:
    """One bad field."""
    return invalid_fields([{"field": field, "message": message}])


def invalid_fields(errors: Sequence[Mapping[str, str]]) -> Problem:
    """Bad fields."""
    shown = "; ".join(f"{error['field'] or 'the body'}: {error['message']}" for error in errors[:ERRORS_SUMMED_MAX])
    return Problem(422, _TITLES[422], shown, errors=errors)


def not_found(what: str) -> Problem:
    """No such thing here, or another tenant's: the two look alike on purpose."""
    return refusal(404, f"there is no such {what}")


def unavailable() -> Problem:
    """The store does not answer."""
    return refusal(
        503,
        "the store does not answer; nothing is known to be stored: try again",
        headers={"Retry-After": RETRY_AFTER_S},
    )


def rate_limited(error: RateLimited) -> Problem:
    """The tenant posts more than its limit allows."""
    retry_after_s = math.ceil(error.standing.wait_s)
    return refusal(
        429,
        f"{error}: nothing of this request was stored, post it again in {retry_after_s} s",
        headers={**limit_headers(error.standing), "Retry-After": str(retry_after_s)},
    )


def problem_of(error: Exception, where: str) -> Problem:
    """The problem that answers an exception; what nobody expected is logged."""
    match error:
        case Problem():
            return error
        case StoreUnavailable() | Overloaded():
            telemetry.log("request_unavailable", where=where, reason=error)
            return unavailable()
        case RateLimited():
            return rate_limited(error)
        case NotFound() | UnknownTenant() | UnknownEndpoint():
            return refusal(404, str(error) or "there is no such thing")
        case Conflict():
            return refusal(409, str(error))
        case SecretLocked():
            return refusal(503, str(error), headers={"Retry-After": LOCKED_RETRY_AFTER_S})
        case Unfit():
            return invalid(error.field, str(error))
        case DataRejected():
            telemetry.log_error(where, error)
            return refusal(422, "the store refuses a value of this request")
        case RequestValidationError():
            return _validation_problem(error)
        case HTTPException():
            return _http_problem(error)
    telemetry.log_error(where, error)
    return refusal(500, "an internal error; it was logged")


_EXPECTED = (
    Problem,
    StoreUnavailable,
    Overloaded,
    RateLimited,
    NotFound,
    UnknownTenant,
    UnknownEndpoint,
    Conflict,
    Unfit,
    SecretLocked,
    DataRejected,
    RequestValidationError,
    HTTPException,
)


def install(app: FastAPI) -> None:
    """Answer with problems whatever goes wrong in a route or before it."""

    async def answer(request: Request, error: Exception) -> Response:
        return problem_of(error, f"{request.method} {_route_of(request)}").response()

    for kind in (
        Problem,
        StoreUnavailable,
        Overloaded,
        RateLimited,
        NotFound,
        Conflict,
        Unfit,
        SecretLocked,
        DataRejected,
        RequestValidationError,
        HTTPException,
    ):
        app.add_exception_handler(kind, answer)


def _route_of(request: Request) -> str:
    """The route's pattern: a path may hold what a log should not."""
    route = request.scope.get("route")
    return str(getattr(route, "path", "(no route)"))


def _http_problem(error: HTTPException) -> Problem:
    details = {
        404: "there is no such route: /openapi.json lists all",
        405: "this route does not know the method: see the Allow header",
        400: "the request cannot be read",
    }
    return refusal(error.status_code, details.get(error.status_code, str(error.detail)), headers=error.headers)


def _validation_problem(error: RequestValidationError) -> Problem:
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return refusal(400, "the body is not JSON")
    return invalid_fields([{"field": _path(fault["loc"]), "message": _message(fault)} for fault in faults])


def _path(location: Sequence[str | int]) -> str:
    """``("body", "retry", "base_s")`` as ``retry.base_s``."""
    return ".".join(str(part) for part in location[1:] if part != "[key]")


_LENGTHS = {"min_length": "at least", "max_length": "at most"}


def _message(fault: Mapping[str, Any]) -> str:
    fixed = {
        "missing": "is required",
        "extra_forbidden": "is not a known field",
        "string_type": "must be a string",
        "bool_type": "must be true or false",
        "int_type": "must be an integer",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "list_type": "must be a list",
        "dict_type": "must be an object",
        "model_attributes_type": "must be an object",
        "model_type": "must be an object",
    }
    if fault["type"] in ("too_short", "too_long", "string_too_short", "string_too_long"):
        ((bound, count),) = ((b, fault["ctx"][k]) for k, b in _LENGTHS.items() if k in fault["ctx"])
        one, more = ("character", "characters") if isinstance(fault["input"], str) else ("entry", "entries")
        return f"must have {bound} {count} {one if count == 1 else more}"
    text = str(fault["msg"])
    return fixed.get(str(fault["type"])) or text.removeprefix("Value error, ").replace("Input should", "must", 1)


def _encodable(text: str) -> str:
    """Lone surrogates, which a request may contain, have no UTF-8."""
    return text.encode("utf-8", "replace").decode()
