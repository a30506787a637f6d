"""The ASGI application: events go straight to their handler, everything else through FastAPI.

Under ``/v1`` nothing is read or routed before the principal is known, so no route can forget to ask. Bodies are read
with a limit before FastAPI sees them. Whatever goes wrong is answered with a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hookpost.exposition import Metrics, alone
from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import AdminStore, PayloadStore
from hookpost.web import (
    accepted,
    answers,
    audit,
    deliveries,
    endpoint_tests,
    endpoints,
    event_types,
    explain,
    health,
    metrics,
    problems,
    replays,
    schemas,
    search,
    stats,
    tenants,
)
from hookpost.web.api import Api, Submit, WebSettings
from hookpost.web.auth import Authenticator
from hookpost.web.cursors import Cursors
from hookpost.web.dashboard.site import Dashboard
from hookpost.web.problems import Problem, refusal

__all__ = ["BODY_BYTES_MAX", "EVENT_PATHS", "WebSettings", "make_app"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# The largest form is an endpoint with full metadata and a hundred filters: some 30 KiB.
BODY_BYTES_MAX = 128 * 1024
# A client that takes longer for so little is stuck, or wants to keep us waiting.
BODY_S_MAX = 30.0
EVENT_PATHS = frozenset({"/v1/events", "/v1/events/batch"})
# In the order of the OpenAPI document.
ROUTES = tuple(
    module.router
    for module in (
        tenants, endpoints, accepted, replays, deliveries, health,
        endpoint_tests, explain, metrics, stats, audit, search, event_types,
    )
)  # fmt: skip
_DASHBOARD = "/dashboard"
_PROTECTED = ("/v1/", "/metrics")
_METHODS = frozenset({"get", "post", "patch", "put", "delete"})
_SAFETY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in problems.SAFETY_HEADERS.items()]


def make_app(
    *,
    store: AdminStore,
    payloads: PayloadStore,
    authenticator: Authenticator,
    submit: Submit,
    raw_events: AsgiApp,
    settings: WebSettings,
    shown_metrics: Metrics | None = None,
    lifespan: Any = None,
) -> AsgiApp:
    """The application of one API process. ``shown_metrics``: the page of its server; None: of this process alone."""
    app = FastAPI(
        title="Hookpost",
        version=settings.version,
        summary="Self-hosted webhook delivery",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.api = Api(
        store, payloads, submit, settings, Cursors(settings.cursor_secret), shown_metrics or alone(store)
    )
    for routes in ROUTES:
        app.include_router(routes)
    app.add_middleware(_CatchAll)
    problems.install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign] # FastAPI's own way to extend the document
    dashboard = Dashboard(
        app, app.state.api, authenticator, secret=settings.cursor_secret, public_url=settings.public_url
    )
    return _Dispatcher(app, authenticator, raw_events, dashboard)


class _Dispatcher:
    """In front of everything: raw events, authentication, limits of bodies, headers of answers."""

    def __init__(self, app: AsgiApp, authenticator: Authenticator, raw_events: AsgiApp, dashboard: AsgiApp) -> None:
        self._app = app
        self._dashboard = dashboard
        self._authenticator = authenticator
        self._raw_events = raw_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in EVENT_PATHS:
            await self._raw_events(scope, receive, send)
        elif scope["path"] == _DASHBOARD or scope["path"].startswith(_DASHBOARD + "/"):
            await self._dashboard(scope, receive, send)
        else:
            await self._answer(scope, receive, _with_safety_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = dict(scope["headers"])
            if scope["path"].startswith(_PROTECTED):
                principal = await self._authenticator.principal(
                    _text(headers.get(b"authorization")), _text(headers.get(b"x-tenant-id"))
                )
                scope["hookpost.principal"] = principal
                act_as(Actor(principal.name, _address(scope)))
            body = await _body(headers, receive)
        except Exception as error:  # noqa: BLE001 - every fault is an answer, and the unexpected is logged
            await _refuse(problems.problem_of(error, scope["method"]), send)
            return
        await self._app(_as_json(scope, headers), _replayed(body, receive), send)


class _CatchAll:
    """Inside Starlette's own: an unexpected fault is logged once and answered with a problem."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await _refuse(problems.problem_of(error, scope["method"]), send)


async def _refuse(problem: Problem, send: Send) -> None:
    body = problem.body()
    headers = [*problem.raw_headers(), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_safety_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message.get("headers", ())}
            missing = [(name, value) for name, value in _SAFETY_HEADERS if name not in present]
            message["headers"] = [*message.get("headers", ()), *missing]
        await send(message)

    return sending


async def _body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The whole body, within the limit."""
    declared = headers.get(b"content-length")
    if declared is not None and (not declared.isdigit() or int(declared) > BODY_BYTES_MAX):
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            body = await _chunks(receive)
    except TimeoutError as error:
        raise refusal(
            408, f"the body did not arrive within {BODY_S_MAX:g} s", headers={"Connection": "close"}
        ) from error
    media_type = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if body and media_type != b"application/json":
        raise refusal(415, "send JSON: Content-Type: application/json")
    return body


async def _chunks(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refusal(400, "the body was cut off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            raise _too_large()
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What was read already, then the connection itself."""
    done = False

    async def receiving() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _as_json(scope: Scope, headers: Mapping[bytes, bytes]) -> Scope:
    """A body without a type is JSON: there is nothing else."""
    if b"content-type" in headers:
        return scope
    return {**scope, "headers": [*scope["headers"], (b"content-type", b"application/json")]}


def _address(scope: Scope) -> str:
    """Where the request came from: of the connection, as what a header says of it anybody can write."""
    client = scope.get("client")
    return client[0] if client else ""


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _too_large() -> Problem:
    return refusal(413, f"a body of this route may have {BODY_BYTES_MAX} bytes", headers={"Connection": "close"})


# ---- the OpenAPI document -------------------------------------------------------------------------------------------

_PROBLEM_REF = {"$ref": "#/components/schemas/ProblemAnswer"}
_WORDS = {
    "400": "The request cannot be read, or the admin key names no tenant to write for",
    "401": "No valid API key",
    "403": "The API key lacks the scope",
    "404": "No such thing, or another tenant's",
    "409": "It collides with what is stored",
    "413": "The body is too large",
    "415": "The body is not JSON by its Content-Type",
    "422": "Bad fields; `errors` names them",
    "429": "More events than the tenant's limit allows: try again after Retry-After",
    "503": "The store does not answer: try again after Retry-After",
}
# 404 is also the answer to an X-Tenant-Id that names no tenant.
_ALWAYS = ("400", "401", "403", "404", "422", "503")


def _document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with our problems, the key, and the routes that FastAPI does not serve."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = document.setdefault("components", {})
        _add_schemas(components.setdefault("schemas", {}))
        components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
        document["paths"].setdefault("/v1/events", {})["post"] = _event_operation(batch=False)
        document["paths"]["/v1/events/batch"] = {"post": _event_operation(batch=True)}
        for path, operations in document["paths"].items():
            for method in _METHODS & operations.keys():
                if path.startswith(_PROTECTED):
                    _describe(path, method, operations[method])
                elif "422" in operations[method]["responses"]:
                    operations[method]["responses"]["422"] = _problem("422")
        app.openapi_schema = document
    return app.openapi_schema


def _add_schemas(known: dict[str, Any]) -> None:
    models = (
        answers.ProblemAnswer,
        schemas.EventForm,
        schemas.EventBatchForm,
        answers.AcceptedEvent,
        answers.AcceptedBatch,
    )
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        known.update(schema.pop("$defs", {}))
        known[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)


def _problem(code: str) -> dict[str, Any]:
    return {"description": _WORDS[code], "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM_REF}}}


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add what all routes under /v1 have in common."""
    codes = {
        *_ALWAYS,
        *(["429"] if method == "post" and (path in EVENT_PATHS or path.endswith("/test")) else []),
        *(["413", "415", "409"] if method != "get" else []),
    }
    for code in sorted(codes):
        operation["responses"][code] = _problem(code)
    operation["security"] = [{"apiKey": []}]
    operation.setdefault("parameters", []).append(
        {
            "name": "X-Tenant-Id",
            "in": "header",
            "required": False,
            "description": "the tenant that the admin key acts for",
            "schema": {"type": "string"},
        }
    )


def _event_operation(*, batch: bool) -> dict[str, Any]:
    form = "EventBatchForm" if batch else "EventForm"
    answer = "AcceptedBatch" if batch else "AcceptedEvent"
    operation: dict[str, Any] = {
        "tags": ["events"],
        "summary": "Post events" if batch else "Post an event",
        "description": "Answered when it is durable."
        + (" Each event is accepted or refused on its own." if batch else ""),
        "operationId": "post_events_batch" if batch else "post_event",
        "parameters": [],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}"}}},
        },
        "responses": {
            "202": {
                "description": "Accepted",
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}},
            }
        },
    }
    if not batch:
        operation["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "does the same as the field idempotency_key",
                "schema": {"type": "string", "maxLength": 255},
            }
        )
    return operation
