"""To whom an event is owed, where it goes, and which part of a cap a worker holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy import routing
from hookpost.policy.routing import Matcher, cap_share, is_pinned, shard_for

A, B, C, D = (UUID(int=n) for n in (9, 3, 7, 1))


@pytest.mark.parametrize(
    ("pattern", "event_type", "owed"),
    [
        ("order.paid", "order.paid", True),
        ("order.paid", "order.paid.late", False),
        ("order.paid", "order", False),
        ("order.paid", "Order.paid", False),
        ("order.*", "order.paid", True),
        ("order.*", "order.paid.late", True),
        ("order.*", "order", False),
        ("order.*", "orders.paid", False),
        ("order.paid.*", "order.paid.late", True),
        ("order.paid.*", "order.paid", False),
        ("*", "order.paid", True),
        ("*", "order", True),
        ("*", "hookpost.endpoint.disabled", False),
        ("*", "hookpost", True),
        ("*", "hookposts.sent", True),
        ("hookpost.*", "hookpost.endpoint.disabled", True),
        ("hookpost.endpoint.disabled", "hookpost.endpoint.disabled", True),
    ],
)
def test_what_a_filter_lets_through(pattern: str, event_type: str, owed: bool) -> None:
    assert Matcher([(A, [pattern])]).match(event_type) == ((A,) if owed else ())


def test_endpoints_come_in_the_order_they_were_created_and_once() -> None:
    matcher = Matcher([(A, ["*", "order.*", "order.paid"]), (B, ["other"]), (C, ["order.*"]), (D, ["order.paid"])])
    assert matcher.match("order.paid") == (A, C, D)
    assert matcher.match("order.paid") == (A, C, D)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MATCHES_REMEMBERED", 10)
    matcher = Matcher([(A, ["*"])])
    for number in range(1000):
        assert matcher.match(f"type.{number}") == (A,)
        assert len(matcher._remembered) <= 10


words = st.sampled_from(["a", "b", "hookpost", "ab"])
types = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(types, types.map(lambda text: text + ".*"), st.just("*"))


def naive(filters: Sequence[tuple[UUID, Sequence[str]]], event_type: str) -> tuple[UUID, ...]:
    def lets_through(pattern: str) -> bool:
        if pattern == "*":
            return not event_type.startswith("hookpost.")
        if pattern.endswith(".*"):
            return event_type.split(".")[: pattern.count(".")] == pattern.split(".")[:-1] and (
                event_type.count(".") >= pattern.count(".")
            )
        return event_type == pattern

    return tuple(endpoint for endpoint, patterns in filters if any(map(lets_through, patterns)))


@given(st.lists(st.lists(patterns, max_size=4), max_size=6), st.lists(types, max_size=8))
def test_the_matcher_agrees_with_a_naive_one(all_patterns: list[list[str]], event_types: list[str]) -> None:
    filters = [(UUID(int=1000 - number), patterns) for number, patterns in enumerate(all_patterns)]
    matcher = Matcher(filters)
    for event_type in event_types:
        assert matcher.match(event_type) == naive(filters, event_type)


# ---- shards -------------------------------------------------------------------------------------------------------


def test_a_pinned_event_goes_to_the_first_home_shard() -> None:
    rng = Random(1)
    assert {shard_for(UUID(int=rng.getrandbits(128)), (5, 2, 9), pinned=True) for _ in range(100)} == {5}


def test_others_are_spread_evenly_and_always_alike() -> None:
    rng = Random(1)
    ids = [UUID(int=(1 << 120) | rng.getrandbits(62)) for _ in range(9000)]
    counts = Counter(shard_for(event_id, (5, 2, 9), pinned=False) for event_id in ids)
    assert set(counts) == {5, 2, 9}
    assert all(2700 < count < 3300 for count in counts.values())
    assert [shard_for(i, (5, 2, 9), pinned=False) for i in ids] == [shard_for(i, (5, 2, 9), pinned=False) for i in ids]


@given(
    homes=st.lists(st.integers(0, 63), min_size=1, max_size=16, unique=True),
    cap=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 8),
)
def test_the_shares_of_all_workers_are_the_cap(homes: list[int], cap: int, seed: int, workers: int) -> None:
    rng = Random(seed)
    owned: list[set[int]] = [set() for _ in range(workers)]
    for shard in range(64):
        owned[rng.randrange(workers)].add(shard)
    of_home = [shards for shards in owned if shards & set(homes)]
    shares = [cap_share(cap, homes, shards) for shards in of_home]
    if is_pinned(cap, homes):
        first = next(shards for shards in owned if homes[0] in shards)
        assert cap_share(cap, homes, first) == cap
        assert all(cap_share(cap, homes, shards) == 1 for shards in owned if shards is not first)
    else:
        assert sum(shares) == cap
    assert all(share >= 1 for share in shares)


def test_a_worker_without_a_home_shard_has_one_place_to_drain_with() -> None:
    assert cap_share(64, (1, 2), {7}) == 1
    assert cap_share(1, (1, 2), {2}) == 1
    assert cap_share(64, (1, 2), ()) == 1


@pytest.mark.parametrize(
    ("cap", "homes", "pinned"), [(1, (0,), False), (1, (0, 1), True), (2, (0, 1), False), (3, (0, 1, 2, 3), True)]
)
def test_a_cap_smaller_than_the_spread_is_pinned(cap: int, homes: tuple[int, ...], pinned: bool) -> None:
    assert is_pinned(cap, homes) is pinned
