"""Certificates that end are told of two weeks and a day ahead, once each."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import pytest
import trustme

from hookpost.policy.expiry import CertificateState, Review, review, standing

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START.timestamp()
DAY_S = 86_400.0
CA = trustme.CA()


@lru_cache
def ending_in(days: float) -> str:
    """A certificate that ends so many days after NOW."""
    end = START + timedelta(days=days)
    leaf = CA.issue_cert("client.example", not_before=START - timedelta(days=400), not_after=end)
    return leaf.cert_chain_pems[0].bytes().decode()


def told_days(found: Review) -> list[int]:
    return [ending.days for ending in found.endings]


@pytest.mark.parametrize(
    ("days", "told", "again_in_days"),
    [(30, [], 16), (14.5, [], 0.5), (14, [14], 13), (2, [14], 1), (1, [1], None), (0.2, [1], None), (-3, [1], None)],
)
def test_the_nearest_distance_that_was_passed_is_told(
    days: float, told: list[int], again_in_days: float | None
) -> None:
    found = review(None, ending_in(days), (), now=NOW)
    assert told_days(found) == told
    assert found.look_at == (float("inf") if again_in_days is None else pytest.approx(NOW + again_in_days * DAY_S))


def test_over_a_year_of_looks_each_certificate_is_told_of_twice_whenever_one_looks() -> None:
    for every_days in (0.1, 0.7, 1.0, 5.0):
        told: Collection[str] = ()
        heard: list[tuple[int, int]] = []
        look_at = NOW
        for n in range(int(120 / every_days)):
            now = NOW + n * every_days * DAY_S
            if now >= look_at:
                found = review(ending_in(60), ending_in(90), told, now=now)
                told, look_at = found.told, found.look_at
                heard += [(ending.days, round(now - NOW) // 86_400) for ending in found.endings]
        if every_days <= 1.0:
            assert [(days, day) for days, day in heard] == [(14, 46), (1, 59), (14, 76), (1, 89)]
        assert [days for days, _ in heard].count(14) == 2


def test_a_new_certificate_begins_anew_and_the_old_one_is_forgotten() -> None:
    first = review(None, ending_in(10), (), now=NOW)
    second = review(None, ending_in(12), first.told, now=NOW)
    assert told_days(second) == [14]
    assert not set(first.told) & set(second.told)
    assert told_days(review(None, ending_in(12), second.told, now=NOW)) == []


def test_what_is_told_names_the_certificate_and_its_use() -> None:
    [own] = review(None, ending_in(10), (), now=NOW).endings
    [trusted] = review(ending_in(10), None, (), now=NOW).endings
    assert str(own).startswith("the client certificate ") and own.certificate.sha256 in str(own)
    assert str(trusted).startswith("the trusted certificate ")
    assert told_days(review(ending_in(10), ending_in(10), (), now=NOW)) == [14], "one and the same is told once"


@pytest.mark.parametrize(
    ("days", "state"), [(60, "valid"), (14, "ending"), (0.1, "ending"), (0, "ended"), (-1, "ended")]
)
def test_the_one_that_ends_first_says_how_they_stand(days: float, state: str) -> None:
    found = standing(ending_in(90), ending_in(days), now=NOW)
    assert found == (CertificateState(state), NOW + days * DAY_S)
    assert standing(None, None, now=NOW) is None
