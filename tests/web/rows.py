"""A tenant's client, and rows as the journal, the worker and its settles would write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from hookpost.model import show_id


@dataclass
class Submitted:
    """Stands where ingest is, and remembers what it was given."""

    calls: list[tuple[UUID, str, bytes, list[UUID]]] = field(default_factory=list)

    async def __call__(self, tenant_id: UUID, type: str, payload: bytes, target_endpoints: list[UUID]) -> UUID:
        self.calls.append((tenant_id, type, payload, target_endpoints))
        return uuid7()


class TenantClient:
    """A tenant with a key, and requests made with it."""

    def __init__(self, client: httpx.AsyncClient, tenant_id: str, key: str) -> None:
        self.client = client
        self.tenant_id = tenant_id
        self.uuid = UUID(tenant_id.removeprefix("ten_"))
        self.key = key

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.request("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.request("POST", path, json=json, **options)

    async def patch(self, path: str, json: Any) -> httpx.Response:
        return await self.request("PATCH", path, json=json)

    async def delete(self, path: str) -> httpx.Response:
        return await self.request("DELETE", path)

    async def endpoint(self, **fields: Any) -> dict[str, Any]:
        answer = await self.post("/v1/webhook_endpoints", {"url": "https://example.com/hook", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()


async def make_tenant(client: httpx.AsyncClient, name: str = "acme", **key: Any) -> TenantClient:
    """A new tenant with a key."""
    tenant = (await client.post("/v1/tenants", json={"name": name})).json()
    answer = await client.post(f"/v1/tenants/{tenant['tenant_id']}/api_keys", json={"name": "k", **key})
    assert answer.status_code == 201, answer.text
    return TenantClient(client, tenant["tenant_id"], answer.json()["key"])


async def append_event(
    db: Any, tenant: UUID, owed: list[UUID], *, shard: int = 0, type: str = "a.b", payload: bytes = b'{"n": 1.50}'
) -> tuple[UUID, int]:
    """An event in the journal; returns its id and number."""
    event_id = uuid7()
    seq = await db.fetchval("select coalesce(max(seq), 0) + 1 from events where shard = $1", shard)
    await db.execute(
        "insert into events (day, shard, seq, kind, event_id, tenant_id, type, payload, owed, created_at)"
        " values (hookpost_today(), $1, $2, 0, $3, $4, $5, $6, $7, clock_timestamp())",
        shard, seq, event_id, tenant, type, payload, owed,
    )  # fmt: skip
    return event_id, seq


async def set_progress(
    db: Any, *, read_to: int, open: str = "{}", partial: str | None = None, shard: int = 0, cursor: int = 0
) -> None:
    """What the owner of a shard wrote last."""
    await db.execute(
        "insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day, open, partial)"
        " select hookpost_today(), $1, coalesce(max(settle_no), 0) + 1, 1, $2, $3, hookpost_today(),"
        " $4::text::int8multirange, $5::text::jsonb from progress where shard = $1",
        shard, cursor, read_to, open, partial,
    )  # fmt: skip


async def add_attempt(db: Any, tenant: UUID, event_id: UUID, endpoint_id: UUID, *, outcome: str, **values: Any) -> UUID:
    """An attempt in the history."""
    attempt_id = uuid7()
    row = {"generation": 0, "retry_count": 0, "http_status": 200, "position": 1, "scheduled_s": 0.0, "error_code": None,
           "response_head": b"HTTP/1.1 200 OK\r\n\r\n\xff\x00<b>", **values}  # fmt: skip
    await db.execute(
        "insert into attempts (day, attempt_id, shard, settle_no, position, event_id, endpoint_id, tenant_id,"
        " generation, scheduled_at, started_at, finished_at, retry_count, latency_ms, dns_ms, connect_ms, tls_ms,"
        " first_byte_ms, request_bytes, response_bytes, http_status, possible_duplicate, outcome, error_code, worker,"
        " address, protocol, response_hash, response_head) values (hookpost_today(), $1, 0, 1, $2, $3, $4, $5, $6,"
        " date_trunc('day', now()) + make_interval(secs => $7), now(), now(), $8, 12, 1, 2, 3, 4, 100, 50, $9, false,"
        " $10, $13, 'w1', '127.0.0.1', 'HTTP/1.1', $11, $12)",
        attempt_id, row["position"], event_id, endpoint_id, tenant, row["generation"], row["scheduled_s"],
        row["retry_count"], row["http_status"], outcome, bytes(32), row["response_head"], row["error_code"],
    )  # fmt: skip
    return attempt_id


async def add_waiting(
    db: Any, tenant: UUID, event_id: UUID, endpoint_id: UUID, position: int, *, reason: str = "retry", shard: int = 0,
    generation: int = 0, due_at: str = "2030-01-02T03:04:05.678Z",
) -> None:  # fmt: skip
    """A delivery in the backlog."""
    await db.execute(
        "insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at,"
        " retry_count, deadline, created_at, last_http_status) values ($1, $2, $3, hookpost_today(), $4, $5, $6, $7,"
        " $8::text::timestamptz, 2, '2031-01-01', now(), 503)",
        shard, endpoint_id, position, tenant, event_id, generation, reason, due_at,
    )  # fmt: skip


async def add_dead(
    db: Any, tenant: UUID, event_id: UUID, endpoint_id: UUID, *, generation: int = 0, reason: str = "http_4xx"
) -> None:
    """A dead letter."""
    await db.execute(
        "insert into dead_letters (event_id, endpoint_id, tenant_id, shard, position, day, generation, type, reason,"
        " died_at, attempt_count, last_http_status, last_error_code)"
        " values ($1, $2, $3, 0, 1, hookpost_today(), $4, 'a.b', $5, now(), 1, 404, 'http_4xx')",
        event_id, endpoint_id, tenant, generation, reason,
    )  # fmt: skip


def endpoint_uuid(endpoint: dict[str, Any]) -> UUID:
    """The UUID of a shown endpoint."""
    return UUID(endpoint["endpoint_id"].removeprefix("ep_"))


def event_path(event_id: UUID) -> str:
    """The path of an event."""
    return f"/v1/events/{show_id('evt', event_id)}"


async def append_replay(db: Any, tenant: UUID, event_id: UUID, owed: list[UUID], *, shard: int = 0) -> int:
    """The event owed once more; returns its number."""
    return await db.fetchval("select hookpost_append_replay($1, $2, $3, 'a.b', $4)", shard, event_id, tenant, owed)
