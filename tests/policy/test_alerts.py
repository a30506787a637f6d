"""What becomes of notices: one alert however many saw it, at most one of deaths a minute, and its words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from hookpost.model import OperationalType
from hookpost.policy.alerts import (
    AGAIN_S,
    AGAIN_S_MAX,
    EVENTS_NAMED_MAX,
    EVERY_S,
    TRIES_MAX,
    Notice,
    Standing,
    again_s,
    check_mail_address,
    gather,
    mail_text,
)

NOW = 1_800_000_000.0
TENANT, E1, E2 = UUID(int=1), UUID(int=0x11), UUID(int=0x12)
FRESH = Standing(TENANT, "https://receiver.example/hook?token=s3cret")
TOLD = replace(FRESH, failing_told=True, failing_told_at=NOW - 1000)


def failing(at: float = NOW, failures: int = 50) -> Notice:
    return Notice(OperationalType.ENDPOINT_FAILING, TENANT, E1, at, failures, at - 60)


def recovered(at: float = NOW) -> Notice:
    return Notice(OperationalType.ENDPOINT_RECOVERED, TENANT, E1, at, 70, at - 90)


def disabled(at: float = NOW) -> Notice:
    return Notice(OperationalType.ENDPOINT_DISABLED, TENANT, E1, at, reason="it answered 410 Gone")


def deaths(count: int, *event_ids: int, at: float = NOW) -> Notice:
    ids = tuple(UUID(int=event_id) for event_id in event_ids)
    return Notice(OperationalType.DELIVERY_DEAD, TENANT, E1, at, deaths=count, event_ids=ids)


@pytest.mark.parametrize(
    ("standing", "notices", "told", "failing_told"),
    [
        (FRESH, [failing()], ["failing"], True),
        # Several workers saw it, or it was said again: it is told once.
        (FRESH, [failing(), failing(), failing(NOW + 30, 100)], ["failing"], True),
        (TOLD, [failing()], [], True),
        # A recovery is told if the failing was, and once.
        (TOLD, [recovered()], ["recovered"], False),
        (TOLD, [recovered(), recovered()], ["recovered"], False),
        (FRESH, [recovered()], [], False),
        (FRESH, [failing(), recovered()], ["failing", "recovered"], False),
        # Up and down: failing once a minute, and no recovery of what was not told.
        (FRESH, [failing(), recovered(), failing(NOW + 5), recovered(NOW + 6)], ["failing", "recovered"], False),
        (FRESH, [failing(), recovered(), failing(NOW + EVERY_S)], ["failing", "recovered", "failing"], True),
        # Disabled: told each time (the store says it once); what is disabled neither fails nor recovers any more.
        (FRESH, [disabled()], ["disabled"], False),
        (TOLD, [disabled(), recovered()], ["disabled"], False),
        (replace(FRESH, disabled=True), [failing()], [], False),
    ],
)
def test_what_notices_make(standing: Standing, notices: list[Notice], told: list[str], failing_told: bool) -> None:
    alerts, after = gather(notices, {E1: standing}, now=NOW)
    assert [alert.type.rpartition(".")[2] for alert in alerts] == told
    assert after[E1].failing_told is failing_told


def test_deaths_are_told_at_once_and_then_once_a_minute_together() -> None:
    [first], after = gather([deaths(2, 1, 2)], {E1: FRESH}, now=NOW)
    assert said(first)["count"] == 2
    assert said(first)["event_ids"] == [f"evt_{n:032x}" for n in (1, 2)]
    waiting = [deaths(400, *range(3, 13), at=NOW + 1), deaths(5, 20, at=NOW + 2)]
    alerts, after = gather(waiting, after, now=NOW + 30)
    assert alerts == []
    [second], after = gather([], after, now=NOW + EVERY_S)
    assert said(second)["count"] == 405
    assert len(said(second)["event_ids"]) == EVENTS_NAMED_MAX
    assert said(second)["since"] == "2027-01-15T08:00:01.000Z"
    assert gather([], after, now=NOW + 1000)[0] == []


def test_an_endpoint_that_is_gone_has_nothing_to_tell() -> None:
    assert gather([failing(), disabled(), deaths(1)], {}, now=NOW) == ([], {})


def test_an_alert_says_what_happened_and_keeps_the_query_of_the_url_to_itself() -> None:
    [alert], _ = gather([failing()], {E1: FRESH, E2: FRESH}, now=NOW)
    assert msgspec.json.decode(alert.payload) == {
        "type": "hookpost.endpoint.failing",
        "timestamp": "2027-01-15T08:00:00.000Z",
        "data": {
            "tenant_id": f"ten_{TENANT.hex}",
            "endpoint_id": f"ep_{E1.hex}",
            "url": "https://receiver.example/hook",
            "consecutive_failures": 50,
            "failing_since": "2027-01-15T07:59:00.000Z",
        },
    }
    assert (alert.tenant_id, alert.endpoint_id) == (TENANT, E1)


def said(alert: Any) -> dict[str, Any]:
    return dict(msgspec.json.decode(alert.payload)["data"])


@pytest.mark.parametrize("notice", [failing(), disabled(), deaths(2, 1, 2)])
def test_a_mail_says_the_same_and_its_subject_names_the_endpoint(notice: Notice) -> None:
    [alert], _ = gather([notice], {E1: FRESH}, now=NOW)
    subject, text = mail_text(alert.type, alert.payload)
    assert f"ep_{E1.hex}" in subject
    for name, value in said(alert).items():
        assert f"{name}: {', '.join(value) if isinstance(value, list) else value}\n" in text


def test_telling_is_tried_for_some_hours_and_then_given_up() -> None:
    waits = [again_s(tries) for tries in range(1, TRIES_MAX)]
    assert waits[:3] == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert None not in waits
    assert 3 * 3600 < sum(filter(None, waits)) < 4 * 3600
    assert max(filter(None, waits)) == AGAIN_S_MAX
    assert again_s(TRIES_MAX) is None


@pytest.mark.parametrize("address", ["ops@example.com", "o'brien+alerts@mail.sub.example.co", "a_b.c@x-y.example"])
def test_a_plain_mail_address_is_taken(address: str) -> None:
    assert check_mail_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "", "ops", "@example.com", "ops@", "ops@localhost", "a b@example.com", "ops@example.com, b@example.com",
        "Ops <ops@example.com>", "ops@example.com\nBcc: x@example.com", '"a b"@example.com', "ops@example..com",
        ".a@example.com", "ops@-a.example", "ops@[192.0.2.1]", "öps@example.com", "a" * 250 + "@example.com",
    ],
)  # fmt: skip
def test_anything_else_is_refused_as_a_mail_address(address: str) -> None:
    with pytest.raises(ValueError, match="one mail address"):
        check_mail_address(address)
