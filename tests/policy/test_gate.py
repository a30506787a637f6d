"""The endpoint's own gate: who waits, why, until when, and whether it is worth a row in the backlog."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.model import Endpoint, EndpointStatus, WaitReason
from hookpost.policy.gate import PARK_AFTER_S, Wait, endpoint_gate, is_shut, parks

NOW = 1_800_000_000.0


def endpoint(status: EndpointStatus) -> Endpoint:
    return Endpoint(UUID(int=1), UUID(int=2), "https://receiver.example/", status)


@pytest.mark.parametrize(
    ("status", "held_s", "reason", "until_s", "parked"),
    [
        ("enabled", -1, None, None, None),
        ("enabled", 0, None, None, None),
        ("enabled", 0.001, "rate_limited", 0.001, False),
        ("enabled", PARK_AFTER_S, "rate_limited", PARK_AFTER_S, False),
        ("enabled", PARK_AFTER_S + 1, "rate_limited", PARK_AFTER_S + 1, True),
        ("paused", -1, "paused", None, True),
        ("paused", 60, "paused", None, True),
        ("disabled", -1, "disabled", None, True),
        ("disabled", 60, "disabled", None, True),
    ],
)
def test_the_gate_says_why_and_until_when(
    status: str, held_s: float, reason: str | None, until_s: float | None, parked: bool | None
) -> None:
    wait = endpoint_gate(endpoint(EndpointStatus(status)), hold_until=NOW + held_s, now=NOW)
    if reason is None:
        assert wait is None
        return
    assert wait == Wait(WaitReason(reason), None if until_s is None else NOW + until_s)
    assert parks(wait, now=NOW) is parked


def test_f34_what_cannot_be_signed_waits_unless_its_endpoint_is_shut_anyway() -> None:
    locked = replace(endpoint(EndpointStatus.ENABLED), locked=True)
    wait = endpoint_gate(locked, hold_until=NOW + 60, now=NOW)
    assert wait == Wait(WaitReason.SECRET_LOCKED) and parks(wait, now=NOW)
    paused = endpoint_gate(replace(locked, status=EndpointStatus.PAUSED), hold_until=NOW, now=NOW)
    assert paused == Wait(WaitReason.PAUSED)
    assert [is_shut(each) for each in (locked, endpoint(EndpointStatus.ENABLED))] == [True, False]


def test_what_waits_for_a_place_stays_in_memory() -> None:
    assert not parks(Wait(WaitReason.IN_FLIGHT_CAP), now=NOW)


@given(st.sampled_from([r for r in WaitReason if r is not WaitReason.IN_FLIGHT_CAP]), st.floats(0, 1e6))
def test_a_wait_is_parked_when_it_is_long_or_has_no_end(reason: WaitReason, wait_s: float) -> None:
    assert parks(Wait(reason), now=0.0)
    assert parks(Wait(reason, wait_s), now=0.0) is (wait_s > PARK_AFTER_S)
