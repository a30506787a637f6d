"""Why: what happened to an event at one endpoint, and what happens next, in plain words. Pure.

Relies on facts that the store has written down; whom an event was owed to is one of them, so an endpoint's filter of
today explains only endpoints that the event was *not* owed to. Promises: the status is that of `GET /v1/events/{id}`,
or ``not_matched``; every status and reason has words; what only a worker knows (its turn, a cap, the retry budget) is
told as the possibility that it is. docs/explain.md lists the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, assert_never
from uuid import UUID

from hookpost.model import DeadReason, EndpointStatus, ErrorCode, WaitReason, show_id
from hookpost.policy.routing import RESERVED_PREFIX, Matcher

# Filters that are named in a sentence; an endpoint may have a hundred.
FILTERS_NAMED_MAX = 5
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3_600.0, 86_400.0


# ---- facts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What is recorded of an event. ``paused``: the operator has stopped sending on the whole platform."""

    event_id: UUID
    tenant_id: UUID
    type: str
    accepted_at: float
    payload_removed: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """An endpoint as it is now. ``updated_at`` moves with every change of it, its filter among them; ``moving``: it
    waits until what it was owed elsewhere is done. ``breaker``: the state of its receiver's."""

    endpoint_id: UUID
    created_at: float
    updated_at: float
    events: tuple[str, ...] = ("*",)
    status: EndpointStatus = EndpointStatus.ENABLED
    status_reason: str | None = None
    deleted_at: float | None = None
    rate_limit: float | None = None
    ordered: bool = False
    max_in_flight: int = 64
    max_attempts: int = 50
    hold_until: float = 0.0
    moving: bool = False
    breaker: str = "closed"
    reopen_at: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last attempt ended, if there was one that failed."""

    http_status: int | None = None
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """In the journal: so many entries of its shard are ``ahead`` and not done; ``read``: the owner has it in hand.
    ``worker`` None: nobody owns the shard. ``unread_since``: when the oldest unread entry was accepted."""

    ahead: int
    read: bool
    worker: str | None
    unread_since: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """In the backlog. ``behind``: the event that an ordered endpoint gets before it, dead if ``behind_dead``."""

    reason: WaitReason
    due_at: float
    retry_count: int
    deadline: float
    failure: Failure | None = None
    behind: UUID | None = None
    behind_dead: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """A dead letter."""

    reason: DeadReason
    at: float
    attempts: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Arrived:
    """Answered with success at ``at``; ``doubtful``: an attempt may have been one too many."""

    at: float
    http_status: int | None
    attempts: int
    arrivals: int = 1
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants it any more; ``asked_at`` None: because its endpoint was deleted."""

    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Untraced:
    """Owed, and nothing on record says what became of it."""


State = Queued | Waiting | Died | Arrived | Cancelled | Untraced


@dataclass(frozen=True, slots=True)
class Delivery:
    """The newest generation of what is owed; ``asked_at``: when that generation began, for a replay."""

    state: State
    generation: int = 0
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of an event at one endpoint; ``delivery`` None: it was never owed to it."""

    event: EventFacts
    endpoint: EndpointFacts
    delivery: Delivery | None


@dataclass(frozen=True, slots=True)
class EventWhy:
    """The facts of an event at several endpoints; ``more``: there are further ones that were not looked at."""

    event: EventFacts
    pairs: tuple[Facts, ...]
    more: bool = False


# ---- the answer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explanation:
    """``summary``: what happened and what happens next, in sentences. ``next_step``: what to do, if there is anything
    to do. ``until``: when the next thing happens by itself, a Unix time, if that is known."""

    status: str
    reason: str | None
    summary: str
    next_step: str | None = None
    until: float | None = None


def explain(facts: Facts, *, now: float) -> Explanation:
    """Why the event is where it is at this endpoint."""
    found = _explained(facts, now)
    if found.next_step is None:
        return found
    # What is to be done is told so that it can be pasted.
    step = found.next_step.replace("EVENT_ID", show_id("evt", facts.event.event_id))
    return replace(found, next_step=step.replace("ENDPOINT_ID", show_id("ep", facts.endpoint.endpoint_id)))


def _explained(facts: Facts, now: float) -> Explanation:
    event, endpoint, delivery = facts.event, facts.endpoint, facts.delivery
    if delivery is None:
        return _not_matched(event, endpoint)
    match delivery.state:
        case Queued() as state:
            found = _queued(state, event, endpoint, now)
        case Waiting() as state:
            found = _waiting(state, event, endpoint, now)
        case Died() as state:
            found = _dead(state, event, endpoint)
        case Arrived() as state:
            found = _delivered(state, event, delivery)
        case Cancelled() as state:
            found = _cancelled(state, event, endpoint)
        case Untraced():
            found = Explanation(
                "unknown",
                None,
                "It was owed to this endpoint, and nothing on record says what became of it: a fault of Hookpost.",
                "Replay it, and report this answer.",
            )
        case state:
            assert_never(state)
    if not delivery.generation:
        return found
    told = f"This is about replay no. {delivery.generation}. {found.summary}"
    return Explanation(found.status, found.reason, told, found.next_step, found.until)


# ---- never owed -----------------------------------------------------------------------------------------------------

_POST_AGAIN = "To deliver it here all the same, post it again with target_endpoints naming this endpoint."


def _not_matched(event: EventFacts, endpoint: EndpointFacts) -> Explanation:
    if endpoint.created_at > event.accepted_at:
        summary = (
            f"Not owed to this endpoint: it was created at {show_moment(endpoint.created_at)}, after the event was "
            f"accepted at {show_moment(event.accepted_at)}. An event goes to the endpoints that there are at that time."
        )
        return Explanation("not_matched", "created_later", summary, _POST_AGAIN)
    if endpoint.deleted_at is not None and endpoint.deleted_at <= event.accepted_at:
        summary = f"Not owed to this endpoint: it was deleted at {show_moment(endpoint.deleted_at)}, before the event."
        return Explanation("not_matched", "deleted_earlier", summary)
    changed = endpoint.updated_at > event.accepted_at
    named = bool(Matcher([(endpoint.endpoint_id, endpoint.events)]).match(event.type))
    if named and changed:
        summary = (
            f"Not owed to this endpoint. Its filter names {event.type} now, but the endpoint was changed at "
            f"{show_moment(endpoint.updated_at)}, after the event was accepted: the filter did not name it then, or "
            "the event was posted for other endpoints (target_endpoints)."
        )
        return Explanation("not_matched", "filter_changed", summary, _POST_AGAIN)
    if named:
        return Explanation("not_matched", "other_targets", _other_targets(event), _POST_AGAIN)
    return _filtered(event, endpoint, changed)


def _other_targets(event: EventFacts) -> str:
    if event.type.startswith(RESERVED_PREFIX):
        return (
            "Not owed to this endpoint, although its filter names the type: an operational event does not go to the "
            "endpoint that it is about, and a test event only to the one that is tested."
        )
    return (
        f"Not owed to this endpoint, although its filter names {event.type}: the event was posted for other endpoints "
        "only (target_endpoints)."
    )


def _filtered(event: EventFacts, endpoint: EndpointFacts, changed: bool) -> Explanation:
    shown = ", ".join(endpoint.events[:FILTERS_NAMED_MAX])
    if len(endpoint.events) > FILTERS_NAMED_MAX:
        shown += f" and {len(endpoint.events) - FILTERS_NAMED_MAX} more"
    summary = f"Not owed to this endpoint: its filter ({shown}) does not name {event.type}."
    if event.type.startswith(RESERVED_PREFIX) and "*" in endpoint.events:
        summary += " The filter * leaves out operational events: they have to be named."
    if changed:
        summary += (
            f" That is its filter now; the endpoint was changed at {show_moment(endpoint.updated_at)}, after the event "
            "was accepted, and it may have been another one then."
        )
    return Explanation(
        "not_matched", "filter", summary, f"Add the type to the endpoint's events for the next ones. {_POST_AGAIN}"
    )


# ---- queued ---------------------------------------------------------------------------------------------------------


def _queued(state: Queued, event: EventFacts, endpoint: EndpointFacts, now: float) -> Explanation:
    before = _count(state.ahead, "entry", "entries")
    if event.paused:
        return Explanation("queued", "sending_paused", *_PAUSED_PLATFORM)
    if state.worker is None:
        return Explanation(
            "queued",
            "no_worker",
            f"Accepted and stored. No living worker owns its shard, so nothing of it is sent now; {before} of the "
            "shard come before it.",
            "The operator starts workers for the tenant's pool (`hookpost worker`, GET /readyz); it is sent then.",
        )
    held, until = _may_hold(endpoint, now)
    if not state.read:
        lag = "" if state.unread_since is None else f", the oldest for {show_span(now - state.unread_since)}"
        return Explanation(
            "queued",
            "behind_others",
            f"Accepted and stored, and not read yet by its worker ({state.worker}): {before} of its shard come before "
            f"it{lag}. It is sent when they are read.{held}",
            until=until,
        )
    return Explanation(
        "queued",
        "in_hand",
        f"Its worker ({state.worker}) has it in hand: it is being sent now, or waits in memory for its turn"
        f"{f' behind at most {before} of its shard' if state.ahead else ''}.{held}",
        until=until,
    )


def _may_hold(endpoint: EndpointFacts, now: float) -> tuple[str, float | None]:
    """What of the endpoint holds back what is in memory, in sentences, and until when if that is known. Only a worker
    knows whose turn it is; the gates themselves are on record."""
    held = _held(endpoint, now)
    if held is not None:
        return held
    gates = []
    if endpoint.moving:
        gates.append("what was queued for the endpoint before it moved to another shard is delivered first")
    if endpoint.ordered:
        gates.append("the endpoint is ordered, so that one goes at a time, in the order of acceptance")
    if endpoint.rate_limit is not None:
        gates.append(f"its rate_limit lets {endpoint.rate_limit:g} a second through")
    return (f" What may hold it: {'; '.join(gates)}." if gates else ""), None


def _held(endpoint: EndpointFacts, now: float) -> tuple[str, float | None] | None:
    """What lets nothing to this endpoint at all now, in a sentence, and until when if that is known; None: nothing."""
    if endpoint.status is not EndpointStatus.ENABLED:
        return f" The endpoint is {endpoint.status}: it will wait.", None
    if endpoint.hold_until > now:
        told = f" The receiver asked to be left alone (Retry-After) until {show_moment(endpoint.hold_until)}."
        return told, endpoint.hold_until
    if endpoint.breaker != "closed":
        again = endpoint.reopen_at if endpoint.reopen_at is not None and endpoint.reopen_at > now else None
        when = "a probe is due" if again is None else f"the next probe goes at {show_moment(again)}"
        state = endpoint.breaker.replace("_", " ")
        return f" Its receiver failed several times in a row, so its breaker is {state}: {when}.", again
    return None


_PAUSED_PLATFORM: Final = (
    "Nothing is sent on the whole platform: the operator has paused it. It goes on from where it stopped.",
    "The operator says `hookpost sending --go`.",
)


# ---- waiting --------------------------------------------------------------------------------------------------------


def _waiting(state: Waiting, event: EventFacts, endpoint: EndpointFacts, now: float) -> Explanation:
    if event.paused:
        return Explanation("waiting", "sending_paused", *_PAUSED_PLATFORM)
    summary, next_step, until = _gate(state, endpoint, now)
    if state.deadline != float("inf"):
        summary += f" It is given up at {show_moment(state.deadline)}."
    return Explanation("waiting", state.reason, summary, next_step, until)


_RESUME = "Resume the endpoint (`POST /v1/webhook_endpoints/ENDPOINT_ID/resume`)."
_RETRY_NOW = "Nothing has to be done. `hookpost retry-now EVENT_ID` tries it at once."


def _gate(state: Waiting, endpoint: EndpointFacts, now: float) -> tuple[str, str | None, float | None]:
    """Which gate holds it, what to do about it, and until when."""
    match state.reason:
        case WaitReason.RETRY:
            return _retrying(state, endpoint, now)
        case WaitReason.BREAKER_OPEN:
            return _behind_breaker(state, endpoint, now)
        case WaitReason.RATE_LIMITED:
            return _rate_limited(endpoint, now)
        case WaitReason.ORDERED:
            return _in_order(state, endpoint)
        case WaitReason.PAUSED:
            return (
                "The endpoint is paused; what is owed to it waits, in order.",
                _RESUME,
                None,
            )
        case WaitReason.DISABLED:
            why = f" ({endpoint.status_reason})" if endpoint.status_reason else ""
            return (
                f"The endpoint is disabled{why}; what is owed to it waits.",
                "Mend the receiver, then enable the endpoint (`POST /v1/webhook_endpoints/ENDPOINT_ID/resume`).",
                None,
            )
        case WaitReason.IN_FLIGHT_CAP:
            return (
                "So many requests to the endpoint, or of the tenant, were under way that it had to wait "
                f"(max_in_flight of the endpoint: {endpoint.max_in_flight}). It is sent when its turn comes.",
                "Nothing has to be done. If it takes long: a faster receiver, or a larger max_in_flight.",
                None,
            )
        case WaitReason.RETRY_BUDGET:
            return (
                "So many deliveries of the platform are failing that retries wait, to leave room for first attempts. "
                "It is tried again when its turn comes.",
                _RETRY_NOW,
                None,
            )
        case WaitReason.PAYLOAD_STORE:
            return (
                "Its payload cannot be read from the payload store at the moment; that is ours, and no attempt is "
                "counted. It is tried every few seconds.",
                "The operator looks why the payload store does not answer (`payload_store_failed` in the log).",
                state.due_at if state.due_at > now else None,
            )
        case WaitReason.SECRET_LOCKED:
            return (
                "Its endpoint's secrets cannot be opened, as the installation lacks the encryption key that they were "
                "sealed with, so nothing can be signed. No attempt is counted; it is sent when the key is back.",
                "The operator gives the key back (HOOKPOST_ENCRYPTION_KEYS; GET /readyz counts those missing).",
                None,
            )
        case WaitReason.EGRESS_DOWN:
            return (
                "The platform's own way out is down: receivers that were well cannot be reached. No attempt is "
                "counted; it is sent when the way out is back.",
                "The operator checks network, resolver and egress proxy (`egress_down` in the log).",
                None,
            )
        case _:
            assert_never(state.reason)


def _retrying(state: Waiting, endpoint: EndpointFacts, now: float) -> tuple[str, str | None, float | None]:
    tried = _tried(state)
    left = max(0, endpoint.max_attempts - state.retry_count)
    rest = f"{_count(left, 'more attempt', 'more attempts')} at most"
    held = _held(endpoint, now)
    if held is not None:  # retry-now would not get past that
        since = "since" if state.due_at <= now else "at"
        step = "Nothing has to be done." if endpoint.status is EndpointStatus.ENABLED else _RESUME
        until = None if held[1] is None else max(held[1], state.due_at)
        return f"{tried} The next one is due {since} {show_moment(state.due_at)}; {rest}.{held[0]}", step, until
    if state.due_at <= now:
        summary = f"{tried} The next one is due since {show_moment(state.due_at)} and goes when its turn comes; {rest}."
        return summary, _RETRY_NOW, None
    wait = show_span(state.due_at - now)
    return f"{tried} Tried again at {show_moment(state.due_at)}, in {wait}; {rest}.", _RETRY_NOW, state.due_at


def _tried(state: Waiting) -> str:
    if not state.retry_count:
        return "It was not tried yet."
    words = failure_words(state.failure)
    if state.retry_count == 1:
        return f"1 attempt failed, because {words}."
    return f"{_count(state.retry_count, 'attempt', 'attempts')} failed, the last one because {words}."


def _behind_breaker(state: Waiting, endpoint: EndpointFacts, now: float) -> tuple[str, str | None, float | None]:
    tried = f" {_tried(state)}" if state.retry_count else ""
    step = "Mend the receiver. `POST /v1/webhook_endpoints/ENDPOINT_ID/resume` closes the breaker at once."
    if endpoint.breaker == "half_open":
        return (
            f"Its receiver failed several times in a row; one probe is under way to see whether it is back.{tried}",
            step,
            None,
        )
    if endpoint.breaker == "open":
        if endpoint.reopen_at is None or endpoint.reopen_at <= now:
            return f"Its receiver failed several times in a row; a probe is due.{tried}", step, None
        return (
            f"Its receiver failed several times in a row, so nothing is sent to it until "
            f"{show_moment(endpoint.reopen_at)}, in {show_span(endpoint.reopen_at - now)}; then one probe "
            f"looks whether it is back. Waiting spends no attempt.{tried}",
            step,
            endpoint.reopen_at,
        )
    return f"Its receiver was failing and is back: what waits is sent, a few at first.{tried}", None, None


def _rate_limited(endpoint: EndpointFacts, now: float) -> tuple[str, str | None, float | None]:
    if endpoint.hold_until > now:
        return (
            f"The receiver asked to be left alone (Retry-After) until {show_moment(endpoint.hold_until)}, in "
            f"{show_span(endpoint.hold_until - now)}.",
            "Nothing has to be done.",
            endpoint.hold_until,
        )
    if endpoint.rate_limit is None:
        return "It was held back by a limit or a Retry-After that is over: it is sent when its turn comes.", None, None
    return (
        f"More is owed to the endpoint than its rate_limit lets through ({endpoint.rate_limit:g} a second); it is sent "
        "when its turn comes.",
        "Nothing has to be done. If it takes long: a larger rate_limit.",
        None,
    )


def _in_order(state: Waiting, endpoint: EndpointFacts) -> tuple[str, str | None, float | None]:
    if endpoint.moving:
        return (
            "The endpoint has moved to another shard; what was queued for it before the move is delivered first.",
            "Nothing has to be done.",
            None,
        )
    if state.behind is None:
        return (
            "The endpoint is ordered: one delivery at a time, in the order of acceptance. Its turn comes next.",
            None,
            None,
        )
    before = show_id("evt", state.behind)
    if state.behind_dead:
        return (
            f"The endpoint is ordered, and event {before} before it was given up: it blocks those behind it.",
            f"Replay that event, cancel it (`hookpost cancel {before}`), or set on_dead to skip.",
            None,
        )
    return (
        f"The endpoint is ordered, and event {before} goes first.",
        f"Nothing has to be done. `hookpost events why {before}` tells what that one waits for.",
        None,
    )


# ---- over -----------------------------------------------------------------------------------------------------------

_REPLAY: Final = "Replay it: `hookpost replay EVENT_ID`, or `POST /v1/events/EVENT_ID/replay`."


def _dead(state: Died, event: EventFacts, endpoint: EndpointFacts) -> Explanation:
    at, attempts, words = (
        show_moment(state.at),
        _count(state.attempts, "attempt", "attempts"),
        failure_words(state.failure),
    )
    match state.reason:
        case DeadReason.HTTP_4XX:
            why = f"{words}, which another try would not change"
            step = f"Mend the receiver, or the event. {_REPLAY}"
        case DeadReason.ATTEMPTS_EXHAUSTED:
            failed = f"all {attempts} that the endpoint allows failed, the last one"
            if state.attempts == 1:
                failed = "the only attempt that the endpoint allows failed,"
            why = f"{failed} because {words}"
            step = f"Mend the receiver. {_REPLAY}"
        case DeadReason.DEADLINE:
            last = (
                f" after {attempts}, the last of which failed because {words}"
                if state.attempts
                else " before it was tried"
            )
            why = f"its deadline passed{last}"
            step = f"Mend or enable the endpoint. {_REPLAY}"
        case DeadReason.RETRY_AFTER_BEYOND_DEADLINE:
            why = "the receiver asked to be left alone (Retry-After) until after its deadline"
            step = f"Wait until the receiver takes events again. {_REPLAY}"
        case DeadReason.PAYLOAD_MISSING:
            why = "its payload is gone from the payload store"
            step = f"The operator restores the object (`payload_missing` in the log). {_REPLAY}"
        case DeadReason.INTERNAL_ERROR:
            why = "of a fault in Hookpost"
            step = f"The operator looks for `internal_error` in the log. {_REPLAY}"
        case _:
            assert_never(state.reason)
    if event.payload_removed:
        step = "Its payload was removed on request: it cannot be replayed. Post it anew."
    elif endpoint.deleted_at is not None:
        step = "The endpoint is deleted: it cannot be replayed to it."
    return Explanation("dead", state.reason, f"Given up at {at}: {why}.", step)


def _delivered(state: Arrived, event: EventFacts, delivery: Delivery) -> Explanation:
    attempts = "the first attempt" if state.attempts == 1 else f"attempt {state.attempts}"
    answered = "" if state.http_status is None else f", answered with {state.http_status}"
    since, begun = (event.accepted_at, "accepted") if delivery.asked_at is None else (delivery.asked_at, "asked for")
    took = show_span(max(0.0, state.at - since))
    summary = f"Delivered at {show_moment(state.at)} by {attempts}{answered}, {took} after it was {begun}."
    if state.arrivals > 1 or state.doubtful:
        summary += (
            " The receiver may have got it more than once, as a worker died before it could record a request: it "
            "deduplicates on webhook-id."
        )
    return Explanation("delivered", None, summary)


def _cancelled(state: Cancelled, event: EventFacts, endpoint: EndpointFacts) -> Explanation:
    if event.payload_removed:
        summary = "Its payload was removed on request before it was delivered, which cancels what is still owed."
        return Explanation("cancelled", "payload_removed", summary, "It cannot be replayed. Post it anew.")
    if state.asked_at is not None:
        summary = f"Cancelled on request, asked for at {show_moment(state.asked_at)}, before it was delivered."
        return Explanation("cancelled", "requested", summary, f"Is it wanted after all? {_REPLAY}")
    when = "" if endpoint.deleted_at is None else f" at {show_moment(endpoint.deleted_at)}"
    summary = f"The endpoint was deleted{when} before it was delivered, which cancels what is owed to it."
    return Explanation("cancelled", "endpoint_deleted", summary)


# ---- words ----------------------------------------------------------------------------------------------------------

FAILURE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        ErrorCode.DNS_FAILURE: "the host name of the endpoint could not be resolved",
        ErrorCode.CONNECT_REFUSED: "the connection was refused: nothing listens there",
        ErrorCode.CONNECT_TIMEOUT: "no connection was made in time",
        ErrorCode.NETWORK_UNREACHABLE: "there is no route to the receiver",
        ErrorCode.FIRST_BYTE_TIMEOUT: "the receiver took the request and did not begin to answer in time",
        ErrorCode.TOTAL_TIMEOUT: "the request was not over in time",
        ErrorCode.TLS_FAILURE: "no encrypted connection could be agreed on (TLS)",
        ErrorCode.TLS_UNTRUSTED: "the receiver's certificate is not trusted: expired, for another name, or self-signed",
        ErrorCode.CONNECTION_RESET: "the connection was cut before an answer came",
        ErrorCode.ADDRESS_FORBIDDEN: "the endpoint's address may not be reached (private, or denied by the operator)",
        ErrorCode.INVALID_URL: "the endpoint's URL cannot be used",
        ErrorCode.PROTOCOL_ERROR: "the receiver's answer is not HTTP",
        ErrorCode.EGRESS_PROXY_ERROR: "the egress proxy failed",
        ErrorCode.HTTP_3XX: "the receiver answered with a redirect, and redirects are not followed",
        ErrorCode.HTTP_4XX: "the receiver refused it",
        ErrorCode.HTTP_410: "the receiver says that it is gone",
        ErrorCode.HTTP_429: "the receiver had too many requests",
        ErrorCode.HTTP_5XX: "the receiver had an error",
        ErrorCode.BAD_ACK: "the 2xx did not carry the signed acknowledgement that the endpoint asks for",
        ErrorCode.INTERNAL_ERROR: "of a fault in Hookpost",
    }
)
"""What an attempt failed of, behind "because"."""


def failure_words(failure: Failure | None) -> str:
    """Why an attempt failed, as the rest of a sentence behind "because"."""
    if failure is None or failure.error_code is None:
        return "of a reason that is not on record"
    words = FAILURE_WORDS.get(failure.error_code, failure.error_code)
    return words if failure.http_status is None else f"{words} (HTTP {failure.http_status})"


def show_moment(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def show_span(seconds: float) -> str:
    """How long that is, roughly, for people."""
    if seconds < 1:
        return f"{round(max(0.0, seconds) * 1000)} ms"
    for least, unit in ((2 * _DAY_S, "days"), (2 * _HOUR_S, "hours"), (2 * _MINUTE_S, "minutes")):
        if seconds >= least:
            return f"{round(seconds / (least / 2))} {unit}"
    return f"{round(seconds)} s"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
