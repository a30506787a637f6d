"""How rows of the store look in the API: names, ids, times. No decisions."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Mapping
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from hookpost.model import OnDead, RetryPolicy, Timeouts, show_id
from hookpost.policy.expiry import standing
from hookpost.policy.headers import MASK
from hookpost.policy.public_bins import warning_of
from hookpost.policy.signing import show_secret
from hookpost.policy.tls import describe
from hookpost.storage.contract import EventView

Row = Mapping[str, Any]
# PEM texts whose certificates are known: a page of endpoints should not parse as many certificates.
CERTIFICATES_REMEMBERED = 256


def show_time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds; cut, not rounded, so that ``since=`` it includes what it was shown for."""
    if seconds is None:
        return None
    whole, milliseconds = divmod(round(seconds * 1e6) // 1000, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def event_type(row: Row) -> dict[str, Any]:
    """An event type, its schema as it was given."""
    schema = row["schema"]
    return {
        "name": row["name"],
        "tenant_id": show_id("ten", row["tenant_id"]),
        "description": row["description"],
        "schema": None if schema is None else msgspec.Raw(schema.encode()),
        "created_at": show_time(row["created_at"]),
        "updated_at": show_time(row["updated_at"]),
    }


def tenant(row: Row) -> dict[str, Any]:
    """A tenant."""
    return {
        "tenant_id": show_id("ten", row["tenant_id"]),
        "name": row["name"],
        "pool": row["pool"],
        "spread": len(row["home_shards"]),
        "spread_automatic": row["spread"] is None,
        "moving": row["moving"],
        "ingest_rate_limit": row["ingest_rate_limit"],
        "max_in_flight": row["max_in_flight"],
        "alert_email": row["alert_email"],
        "created_at": show_time(row["created_at"]),
        "updated_at": show_time(row["updated_at"]),
    }


def pool(row: Row) -> dict[str, Any]:
    """A pool."""
    return {name: row[name] for name in ("name", "shards", "tenants", "workers")}


def api_key(row: Row) -> dict[str, Any]:
    """An API key, without the key."""
    return {
        "api_key_id": f"key_{row['key_id']}",
        "tenant_id": show_id("ten", row["tenant_id"]),
        "name": row["name"],
        "scopes": sorted(row["scopes"]),
        "created_at": show_time(row["created_at"]),
        "expires_at": show_time(row["expires_at"]),
        "revoked_at": show_time(row["revoked_at"]),
        "last_used_at": show_time(row["last_used_at"]),
    }


def audit_entry(row: Row) -> dict[str, Any]:
    """A row of the audit log; without a tenant it is about the platform."""
    return {
        "tenant_id": show_id("ten", row["chain"]) if row["chain"].int else None,
        "seq": row["seq"],
        "at": show_time(row["at"]),
        "actor": row["actor"],
        "address": row["address"],
        "action": row["action"],
        "target": row["target"],
        "before": None if row["before"] is None else msgspec.Raw(row["before"].encode()),
        "after": None if row["after"] is None else msgspec.Raw(row["after"].encode()),
        "previous": row["previous"].hex(),
        "hash": row["hash"].hex(),
    }


def effective_retry(row: Row, default: RetryPolicy) -> RetryPolicy:
    """The endpoint's retry policy, its own values before the installation's."""
    return RetryPolicy(
        base_s=_or(row["base_s"], default.base_s),
        cap_s=_or(row["cap_s"], default.cap_s),
        max_attempts=_or(row["max_attempts"], default.max_attempts),
        deadline_s=_or(row["deadline_s"], default.deadline_s),
    )


def effective_timeouts(row: Row, default: Timeouts) -> Timeouts:
    """The endpoint's timeouts, its own values before the installation's."""
    return Timeouts(
        connect_s=_or(row["connect_s"], default.connect_s),
        first_byte_s=_or(row["first_byte_s"], default.first_byte_s),
        total_s=_or(row["total_s"], default.total_s),
    )


def endpoint(row: Row, *, retry: RetryPolicy, timeouts: Timeouts, max_in_flight: int, now: float) -> dict[str, Any]:
    """An endpoint without its secret; the keyword arguments are the installation's defaults, and the time."""
    certificates, ends_at = standing(row["tls_ca"], row["tls_cert"], now=now) or (None, None)
    own_retry, own_timeouts = effective_retry(row, retry), effective_timeouts(row, timeouts)
    warning = warning_of(row["url"])
    return {
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "url": row["url"],
        "warnings": [] if warning is None else [warning],
        "events": list(row["events"]),
        "status": row["status"],
        "status_reason": row["status_reason"],
        "enabled": row["status"] != "disabled",
        "health": {
            "state": row["breaker_state"],
            "since": show_time(row["breaker_since"]),
            "reopen_at": show_time(row["breaker_reopen_at"]),
            "consecutive_failures": row["consecutive_failures"],
            "failing_since": show_time(row["failing_since"]),
            "certificates": certificates,
            "certificates_end_at": show_time(ends_at),
        },
        "rate_limit": row["rate_limit"],
        "ordered": row["ordered"],
        "on_dead": row["on_dead"] or OnDead.BLOCK,
        "ack": row["ack"],
        "forward_trace": row["forward_trace"],
        "spread": row["spread"],
        "description": row["description"],
        "uid": row["uid"],
        "metadata": row["metadata"],
        "headers": {name: MASK if value is None else value for name, value in row["headers"].items()},
        "tls": _tls(row),
        "retry": {
            "base_s": own_retry.base_s,
            "cap_s": own_retry.cap_s,
            "max_attempts": own_retry.max_attempts,
            "deadline_s": own_retry.deadline_s,
        },
        "timeouts": {
            "connect_s": own_timeouts.connect_s,
            "first_byte_s": own_timeouts.first_byte_s,
            "total_s": own_timeouts.total_s,
        },
        "max_in_flight": _or(row["max_in_flight"], max_in_flight),
        "created_at": show_time(row["created_at"]),
        "updated_at": show_time(row["updated_at"]),
    }


def _tls(row: Row) -> dict[str, Any] | None:
    if row["tls_ca"] is None and row["tls_cert"] is None:
        return None
    return {"ca": _certificates(row["tls_ca"]), "client_cert": _certificates(row["tls_cert"])}


@lru_cache(maxsize=CERTIFICATES_REMEMBERED)
def _certificates(pem: str | None) -> list[dict[str, Any]]:
    return [
        {
            "subject": each.subject,
            "issuer": each.issuer,
            "not_before": show_time(each.not_before),
            "expires_at": show_time(each.expires_at),
            "sha256": each.sha256,
        }
        for each in (describe(pem) if pem else ())
    ]


def secret(row: Row) -> dict[str, Any]:
    """A signing secret."""
    return {
        "secret": show_secret(row["key"]),
        "created_at": show_time(row["created_at"]),
        "expires_at": show_time(row["expires_at"]),
    }


def event_item(row: Row) -> dict[str, Any]:
    """An event without its payload."""
    return {
        "event_id": show_id("evt", row["event_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "type": row["type"],
        "created_at": show_time(row["created_at"]),
        "idempotency_key": row["idempotency_key"],
        "trace_id": None if row["trace_id"] is None else row["trace_id"].hex,
        "delivery_count": row["delivery_count"],
    }


def event(view: EventView, payload: bytes | None, payload_state: str) -> dict[str, Any]:
    """An event; its payload is the JSON text as it was posted, number spelling and order of keys included."""
    row = {**view.event, "delivery_count": len(view.event["owed"])}
    return {
        **event_item(row),
        "status": row["status"],
        "payload": None if payload is None else msgspec.Raw(payload),
        "payload_state": payload_state,
        "deliveries": [_delivery(delivery) for delivery in view.deliveries],
    }


def _delivery(row: Row) -> dict[str, Any]:
    return {
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "status": row["status"],
        "reason": row["reason"],
        "generation": row["generation"],
        "attempt_count": row["attempt_count"],
        "next_attempt_at": show_time(row["next_attempt_at"]),
        "last_http_status": row["last_http_status"],
    }


def attempt(row: Row) -> dict[str, Any]:
    """An attempt. A response is bytes: as text for people, and in base64 without loss."""
    head, digest = row["response_head"], row["response_hash"]
    return {
        "attempt_id": show_id("att", row["attempt_id"]),
        "event_id": show_id("evt", row["event_id"]),
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "generation": row["generation"],
        "trace_id": (row["event_id"] if row["trace_id"] is None else row["trace_id"]).hex,
        "scheduled_at": show_time(row["scheduled_at"]),
        "started_at": show_time(row["started_at"]),
        "finished_at": show_time(row["finished_at"]),
        "http_status": row["http_status"],
        "error_code": row["error_code"],
        "retry_count": row["retry_count"],
        "latency_ms": row["latency_ms"],
        "response_hash": None if digest is None else f"sha256:{digest.hex()}",
        "response_head": head.decode("utf-8", "replace"),
        "response_head_base64": b64encode(head).decode(),
        "request_bytes": row["request_bytes"],
        "response_bytes": row["response_bytes"],
        "possible_duplicate": row["possible_duplicate"],
        "outcome": row["outcome"],
        "timings_ms": {
            "dns": row["dns_ms"],
            "connect": row["connect_ms"],
            "tls": row["tls_ms"],
            "first_byte": row["first_byte_ms"],
            "total": row["latency_ms"],
        },
        "address": row["address"],
        "protocol": row["protocol"],
        "worker": row["worker"],
    }


def dead_letter(row: Row) -> dict[str, Any]:
    """A delivery that gave up."""
    return {
        "event_id": show_id("evt", row["event_id"]),
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "type": row["type"],
        "reason": row["reason"],
        "died_at": show_time(row["died_at"]),
        "attempt_count": row["attempt_count"],
        "last_http_status": row["last_http_status"],
        "last_error_code": row["last_error_code"],
    }


def replay(row: Row) -> dict[str, Any]:
    """A bulk replay."""
    endpoint_id = row["endpoint_id"]
    return {
        "replay_id": show_id("rpl", row["replay_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "endpoint_id": None if endpoint_id is None else show_id("ep", endpoint_id),
        "type": row["type"],
        "status": row["status"],
        "reason": row["reason"],
        "since": show_time(row["since"]),
        "until": show_time(row["until"]),
        "rate_limit": row["rate_limit"],
        "matched": row["matched"],
        "matched_exact": row["matched_exact"],
        "replayed": row["replayed"],
        "state": row["state"],
        "failure": row["failure"],
        "created_at": show_time(row["created_at"]),
        "finished_at": show_time(row["finished_at"]),
    }


def waiting_delivery(row: Row) -> dict[str, Any]:
    """A delivery that waits in the backlog."""
    due_at = row["due_at"] if row["reason"] == "retry" else None
    return _endpoint_delivery(row, "waiting", row["reason"], row["retry_count"], due_at, row["last_http_status"])


def dead_delivery(row: Row) -> dict[str, Any]:
    """A dead letter as a delivery of its endpoint."""
    return _endpoint_delivery(row, "dead", row["reason"], row["attempt_count"], None, row["last_http_status"])


def delivered_delivery(row: Row) -> dict[str, Any]:
    """A delivery, told by the attempt that made it."""
    return _endpoint_delivery(row, "delivered", None, row["retry_count"] + 1, None, row["http_status"])


def delivery_of_endpoint(row: Row) -> dict[str, Any]:
    """A delivery in whatever state it is."""
    told = {**row, "last_error_code": None}
    return _endpoint_delivery(
        told, row["status"], row["reason"], row["attempt_count"], row["next_attempt_at"], row["last_http_status"]
    )


def _endpoint_delivery(
    row: Row, status: str, reason: str | None, attempt_count: int, due_at: float | None, http_status: int | None
) -> dict[str, Any]:
    return {
        "event_id": show_id("evt", row["event_id"]),
        "endpoint_id": show_id("ep", row["endpoint_id"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "status": status,
        "reason": reason,
        "generation": row["generation"],
        "attempt_count": attempt_count,
        "next_attempt_at": show_time(due_at),
        "last_http_status": http_status,
        "last_error_code": row["last_error_code"] if status != "delivered" else None,
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def show_day(days: int) -> str:
    """A day as the store counts them, from 2000-01-01."""
    return (date(2000, 1, 1) + timedelta(days=days)).isoformat()


def usage(row: Row) -> dict[str, Any]:
    """What a tenant had on a day, in the order of answers.UsageItem."""
    return {
        "day": show_day(row["day"]),
        "tenant_id": show_id("ten", row["tenant_id"]),
        "complete": row["complete"],
        "accepted": row["accepted"],
        "attempts": row["attempts"],
        "delivered": row["delivered"],
        "dead": row["dead"],
        "retries": row["retries"],
        "rate_limited": row["rate_limited"],
        "request_bytes": row["request_bytes"],
        "response_bytes": row["response_bytes"],
        "request_ms": row["total_ms"],
    }
