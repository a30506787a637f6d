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
from hookpost.policy.routing import Matcher, cap_share, homes_after, is_pinned, shard_for, shards_to_wait_for

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


ids = st.integers(0, 5).map(lambda number: UUID(int=number))
edits = st.lists(st.tuples(ids, st.one_of(st.none(), st.lists(patterns, max_size=3).map(tuple))), max_size=20)


@given(edits, st.lists(types, min_size=1, max_size=4))
def test_a_matcher_that_was_changed_is_one_that_was_made_anew(
    changes: list[tuple[UUID, tuple[str, ...] | None]], event_types: list[str]
) -> None:
    """Whatever was put, put again, removed and asked in between; a removed one that comes back is the last."""
    matcher = Matcher()
    filters: dict[UUID, tuple[str, ...]] = {}
    for endpoint, wanted in changes:
        if wanted is None:
            matcher.remove(endpoint)
            filters.pop(endpoint, None)
        else:
            matcher.put(endpoint, wanted)
            filters[endpoint] = wanted
        for event_type in event_types:
            assert matcher.match(event_type) == naive(list(filters.items()), event_type)
    for endpoint in list(filters):
        matcher.remove(endpoint)
    assert not matcher._exact
    assert not matcher._prefix
    assert not matcher._everything


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


# ---- moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "pool", "spread", "after"),
    [
        ((), (5, 2, 9), 1, (5,)),
        ((), (5, 2, 9), 2, (5, 2)),
        ((2,), (5, 2, 9), 3, (2, 5, 9)),
        ((2, 9), (5, 2, 9), 2, (2, 9)),
        ((2, 9, 5), (5, 2, 9), 1, (2,)),
        ((2, 9), (7, 8), 2, (7, 8)),
        ((2, 9), (7,), 2, (7,)),
        ((2,), (5, 2), 9, (2, 5)),
    ],
)
def test_home_shards_grow_by_the_least_used_and_shrink_from_the_end(
    before: tuple[int, ...], pool: tuple[int, ...], spread: int, after: tuple[int, ...]
) -> None:
    assert homes_after(before, pool, spread) == after


@given(
    homes=st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True),
    pool=st.permutations(range(21)),
    spreads=st.lists(st.integers(1, 21), max_size=6),
)
def test_the_first_home_shard_stays_whatever_the_spread(homes: list[int], pool: list[int], spreads: list[int]) -> None:
    found = tuple(homes)
    for spread in spreads:
        found = homes_after(found, pool, spread)
        assert found[0] == homes[0]
        assert len(found) == len(set(found)) == spread


@pytest.mark.parametrize(
    ("pinned", "homes", "departed", "waits_for"),
    [
        # spread before and after, and pinned for the first time: wherever its events may have gone
        ((False, False), ((0, 1), (0, 1)), (7,), set()),
        ((False, True), ((0, 1, 2), (0, 1, 2)), (), {1, 2}),
        ((False, True), ((0,), (0,)), (7, 8), {7, 8}),
        ((False, True), ((0, 1), (5,)), (7,), {0, 1, 7}),
        # pinned before: only the first home shard ever held it
        ((True, True), ((0, 1), (0,)), (), set()),
        ((True, True), ((0, 1), (5, 6)), (7,), {0}),
        ((True, False), ((0, 1), (5, 6)), (7,), set()),
    ],
)
def test_what_a_pinned_endpoint_waits_for(
    pinned: tuple[bool, bool],
    homes: tuple[tuple[int, ...], tuple[int, ...]],
    departed: tuple[int, ...],
    waits_for: set[int],
) -> None:
    found = shards_to_wait_for(
        pinned_before=pinned[0],
        pinned_after=pinned[1],
        homes_before=homes[0],
        homes_after=homes[1],
        departed=departed,
    )
    assert found == waits_for


def test_the_owner_of_the_first_home_shard_holds_the_whole_cap_of_what_is_pinned() -> None:
    assert cap_share(64, (1, 2), {1}, pinned=True) == 64
    assert cap_share(64, (1, 2), {2}, pinned=True) == 1
    assert cap_share(64, (1, 2), {2}) == 32
