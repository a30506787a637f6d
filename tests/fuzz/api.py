"""Requests made from the OpenAPI document, good and bad, and what must hold of every answer: no 5xx, no surprise.

An answer's status is documented for the operation, its media type is the documented one, and its body matches the schema.
Path parameters are half of the time those of things that exist, as random ids lead nowhere but to a 404. The server sends
nothing anywhere meanwhile: its egress proxy is a closed port.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.patience import PATIENCE_S

CLOSED_PORT = "http://127.0.0.1:1"
"""Nobody listens there: whatever URL is made up, no request leaves."""

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TIMEOUT_S = PATIENCE_S


@dataclass(frozen=True)
class Target:
    """A server to fuzz: whose keys are used, and ids that exist by the name of their path parameter."""

    url: str
    admin_key: str
    tenant_key: str
    ids: Mapping[str, str]

    def key_for(self, path: str) -> str:
        """Tenants are the operator's affair."""
        admin = path.startswith(("/v1/tenants", "/v1/pools", "/metrics"))
        return self.admin_key if admin else self.tenant_key


def target(url: str, admin_key: str) -> Target:
    """A tenant with a key, an endpoint, an event and whatever else an operation may ask for."""

    def post(path: str, key: str, **body: Any) -> dict[str, Any]:
        answer = requests.post(url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)
        assert answer.status_code in (201, 202), answer.text
        made: dict[str, Any] = answer.json()
        return made

    tenant_id = post("/v1/tenants", admin_key, name="fuzz")["tenant_id"]
    other_id = post("/v1/tenants", admin_key, name="fuzzed")["tenant_id"]
    key = post(f"/v1/tenants/{tenant_id}/api_keys", admin_key, name="fuzz")["key"]
    ids = {
        "tenant_id": other_id,
        "api_key_id": post(f"/v1/tenants/{other_id}/api_keys", admin_key, name="fuzzed")["api_key_id"],
        "endpoint_id": post("/v1/webhook_endpoints", key, url="http://127.0.0.1:2000/")["endpoint_id"],
        "event_id": post("/v1/events", key, type="a.b", payload={})["event_id"],
        "replay_id": post("/v1/replays", key, status="any")["replay_id"],
    }
    return Target(url, admin_key, key, ids)


def operations(target: Target) -> list[Any]:
    """Of the document that the server itself gives."""
    document = requests.get(target.url + "/openapi.json", timeout=TIMEOUT_S).json()
    schema = schemathesis.openapi.from_dict(document)
    return [each.ok() for each in schema.get_all_operations()]


@dataclass
class Tried:
    """What one operation was tried with, and what was found, with the request as curl."""

    operation: str
    requests: int = 0
    fault: str = ""


def fuzz(target: Target, operation: Any, mode: GenerationMode, *, examples: int, seed: int, until: float) -> Tried:
    """Try one operation."""
    headers = {"Authorization": f"Bearer {target.key_for(operation.path)}"}
    tried = Tried(f"{operation.label} {mode.value}")

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # what is found is shown as it was sent
    )
    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    def attempt(case: Any, real: bool) -> None:
        if time.monotonic() > until:
            return
        if real:
            known = {name: target.ids[name] for name in case.path_parameters or {} if name in target.ids}
            case.path_parameters = {**(case.path_parameters or {}), **known}
        tried.requests += 1
        case.call_and_validate(base_url=target.url, headers=headers, checks=CHECKS, timeout=TIMEOUT_S, session=session)

    with requests.Session() as session:
        try:
            attempt()
        except Unsatisfiable:  # it takes nothing that could be wrong
            pass
        except (FailureGroup, requests.RequestException) as found:
            tried.fault = str(found)
    return tried


def rounds(target: Target, *, seconds: float, examples: int, seed: int) -> Iterator[Tried]:
    """All operations in turn, with good data and with bad, until the time is up; what was tried."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    todo = [(each, mode) for each in operations(target) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    while True:
        rng.shuffle(todo)
        # Whatever deletes what the others need comes last.
        todo.sort(key=lambda item: item[0].method.upper() == "DELETE")
        for operation, mode in todo:
            if time.monotonic() > until:
                return
            seed_of_it = rng.randrange(2**32)
            yield fuzz(target, operation, mode, examples=examples, seed=seed_of_it, until=until)
