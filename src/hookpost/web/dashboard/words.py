"""What the dashboard calls states, reasons and errors in lists; a single delivery is told by `policy.explain`.

Each text tells what is the case and, where somebody can do something about it, what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATUS: Mapping[str, str] = {
    "queued": "queued",
    "waiting": "waiting",
    "delivered": "delivered",
    "dead": "dead",
    "cancelled": "cancelled",
    "unknown": "unknown: please report this",
    "pending": "on its way",
    "partly_dead": "partly dead",
    "no_endpoints": "no endpoint wanted it",
    "enabled": "enabled",
    "paused": "paused",
    "disabled": "disabled",
    "closed": "closed",
    "open": "open",
    "half_open": "half open",
    "running": "running",
    "done": "done",
    "failed": "failed",
}
# What became of an attempt: one that is "dead" has ended its delivery.
OUTCOME: Mapping[str, str] = {"delivered": "delivered", "retry": "failed, retried", "dead": "failed for good"}
# The colour that a state is shown in: good, busy, bad or quiet.
TONE: Mapping[str, str] = {
    "delivered": "good",
    "enabled": "good",
    "closed": "good",
    "done": "good",
    "queued": "busy",
    "waiting": "busy",
    "pending": "busy",
    "running": "busy",
    "retry": "warn",
    "paused": "warn",
    "half_open": "warn",
    "partly_dead": "bad",
    "dead": "bad",
    "unknown": "bad",
    "disabled": "bad",
    "open": "bad",
    "failed": "bad",
}
WAITING: Mapping[str, str] = {
    "retry": "The last attempt failed; it is tried again when its time has come.",
    "rate_limited": "The endpoint's rate limit lets it through when its turn comes.",
    "in_flight_cap": "As many requests as the endpoint may have at once are under way; it goes when one is done.",
    "breaker_open": "The receiver failed several times in a row, so its breaker is open. One delivery probes it when "
    "the breaker reopens; if that succeeds, the rest follows. On the endpoint's page the breaker can be closed now.",
    "retry_budget": "Too many of the latest attempts were retries; first attempts go before it.",
    "ordered": "The endpoint is ordered, and an earlier event for it is not done yet.",
    "paused": "The endpoint is paused. Resume it to deliver what waits.",
    "disabled": "The endpoint is disabled. Resume it to deliver what waits.",
    "egress_down": "Most receivers cannot be reached from here, so sending is suspended; nobody is charged for it.",
    "payload_store": "The payload cannot be read from the payload store at the moment.",
    "secret_locked": "The key that the endpoint's secrets were sealed with is missing, so nothing can be signed.",
}
DEAD: Mapping[str, str] = {
    "http_4xx": "The receiver refused it with a 4xx status, which a retry would not change. Mend the receiver, then "
    "replay it.",
    "attempts_exhausted": "Every attempt that the endpoint's policy allows has failed. Replay it when the receiver is "
    "well.",
    "deadline": "It could not be delivered before its deadline. Replay it when the receiver is well.",
    "retry_after_beyond_deadline": "The receiver asked to wait (Retry-After) until after the deadline.",
    "payload_missing": "Its payload is gone from the payload store.",
    "internal_error": "A fault on our side; the log says more. Replay it.",
}
REPLAYED: Mapping[str, str] = {
    "dead": "dead ones",
    "delivered": "delivered ones",
    "any": "all, whatever became of them",
}
ERROR: Mapping[str, str] = {
    "dns_failure": "The host name could not be resolved.",
    "connect_refused": "The host refused the connection: nothing listens on that port.",
    "connect_timeout": "The host did not accept the connection in time.",
    "network_unreachable": "There is no route to the host.",
    "first_byte_timeout": "The receiver took the request and did not begin to answer in time.",
    "total_timeout": "The whole exchange took longer than it may.",
    "tls_failure": "The TLS handshake failed.",
    "tls_untrusted": "The receiver's certificate is not trusted, expired, or for another name.",
    "connection_reset": "The connection broke before the answer was complete.",
    "address_forbidden": "The host resolves to an address that deliveries may not go to (private or reserved).",
    "invalid_url": "The URL cannot be used.",
    "protocol_error": "What came back is not HTTP.",
    "egress_proxy_error": "The egress proxy failed; the endpoint is not charged for it.",
    "http_3xx": "The receiver answered with a redirect; redirects are not followed. Change the URL.",
    "http_4xx": "The receiver refused the request; such a status is not retried.",
    "http_410": "The receiver says it is gone (410): the endpoint was disabled.",
    "http_429": "The receiver asks to slow down (429).",
    "http_5xx": "The receiver failed (5xx).",
    "bad_ack": "The receiver answered 2xx without the signed acknowledgement that the endpoint asks for.",
    "internal_error": "A fault on our side; the log says more.",
}
# Why an endpoint is not enabled; what a worker wrote down is in words already.
STATUS_REASON: Mapping[str, str] = {"requested": "by request"}
BREAKER: Mapping[str, str] = {
    "closed": "lets deliveries through",
    "open": "holds deliveries: the receiver failed several times in a row",
    "half_open": "lets one delivery through to see whether the receiver is well",
}

# What the API calls a field, and what the page calls it.
FIELDS: Mapping[str, str] = {
    "q": "Find",
    "http_status": "HTTP status",
    "payload": "Payload",
    "since": "From",
    "until": "Until",
    "from": "From",
    "to": "Until",
    "url": "URL",
    "rate_limit": "Deliveries a second",
    "ingest_rate_limit": "Events a second",
    "max_in_flight": "Requests at once",
    "on_dead": "A dead delivery",
    "retry.base_s": "First wait",
    "retry.cap_s": "Longest wait",
    "retry.max_attempts": "Attempts at most",
    "retry.deadline_s": "Given up after",
    "base_s": "First wait",
    "cap_s": "Longest wait",
    "max_attempts": "Attempts at most",
    "deadline_s": "Given up after",
    "timeouts.connect_s": "Connect",
    "timeouts.first_byte_s": "First byte",
    "timeouts.total_s": "Total",
    "connect_s": "Connect",
    "first_byte_s": "First byte",
    "total_s": "Total",
    "tenant_id": "Tenant",
    "expires_at": "Expires",
    "alert_email": "Alerts are mailed to",
    "schema": "JSON Schema",
    "grace_period_s": "The old one ends",
    "delivery": "Letters",
}

# A page in place of the one that was asked for: what it is called, and what whoever sees it can do.
PROBLEM: Mapping[int, tuple[str, str]] = {
    400: ("That cannot be read", "Nothing was changed. Go back and try again."),
    403: (
        "Not allowed",
        "Sign in with a key that may: the operator makes one for a tenant, and what is about all of them needs the "
        "admin key.",
    ),
    404: ("Not found", "It may be misspelt, deleted, of another tenant, or past its retention: search for it."),
    405: ("Not a page", "Nothing was changed. Go to the page, and use its button."),
    408: ("Too slow", "Nothing was changed. Go back and send it again."),
    409: ("That does not go together", "Nothing was changed. Go back, and reload the page to see how things stand."),
    413: ("Too large", "Nothing of it was kept. Go back and send less. `hookpost verify` in a shell takes any size."),
    415: ("Not a form", "Nothing was changed. Send it from a page of the dashboard."),
    421: ("Not this host", "Nothing is shown under names that others could point here."),
    422: ("Something in it is wrong", "Nothing was changed. Go back, mend what is named here and send it again."),
    429: ("Too many requests", "Nothing was changed. Wait a moment and send it again."),
    500: ("A fault of ours", "Try again. If it stays, the operator finds it in the log of the API by the time of day."),
    503: ("Not available", "Reload in a few seconds. If it lasts, /readyz and the log tell the operator why."),
}
FOREIGN_FORM = ("Not sent from here", "Nothing was changed.")
"""In place of that of 403 where it is the form that may not, and not the key."""
AWAY = "the store does not answer at the moment"
"""To whoever has only looked: that something may or may not be stored is for those who sent it."""
NO_PAGE = "this address takes a form and shows nothing"
_OTHER_PROBLEM = ("That did not work", "Go back and try again.")


def problem(status: int) -> tuple[str, str]:
    """What a page is called that stands in for one that could not be shown, and what to do."""
    return PROBLEM.get(status, _OTHER_PROBLEM)


def protocol(version: str) -> str:
    """The protocol of an attempt by its name: of HTTP the version alone is written down."""
    return f"HTTP/{version}" if version[:1].isdigit() else version


def error(attempt: Mapping[str, Any]) -> str | None:
    """What went wrong in an attempt; None when nothing did."""
    code = attempt["error_code"]
    if code is None:
        return None
    return ERROR.get(code, f"It failed ({code}).")
