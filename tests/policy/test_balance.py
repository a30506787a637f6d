"""Parts of shards: they add up, nobody goes without, and a change moves as little as it can."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookpost.policy.balance import fair_part

SHARDS, NODES = range(40), range(1, 12)


def parts(shards: int, living: list[UUID]) -> list[int]:
    return [fair_part(shards, living, node) for node in living]


@pytest.mark.parametrize("nodes", NODES)
def test_parts_add_up_and_differ_by_one_at_most(nodes: int) -> None:
    living = [UUID(int=n) for n in range(nodes)]
    for shards in SHARDS:
        found = parts(shards, living)
        assert sum(found) == shards
        assert max(found) - min(found) <= 1


def test_a_fifth_worker_of_eight_shards_gets_one_though_the_others_have_but_two() -> None:
    assert parts(8, [UUID(int=n) for n in range(5)]) == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("nodes", NODES)
def test_whoever_leaves_makes_nobody_give_anything_back_and_whoever_joins_nobody_take(nodes: int) -> None:
    """Leaving, and joining with whatever id, read from one side or the other."""
    living = [UUID(int=n) for n in range(nodes + 1)]
    for shards in SHARDS:
        for gone in living:
            left = [node for node in living if node != gone]
            for node in left:
                assert fair_part(shards, left, node) >= fair_part(shards, living, node)


def test_the_order_of_the_list_does_not_matter() -> None:
    living = [UUID(int=n) for n in (3, 1, 2)]
    assert [fair_part(7, living, UUID(int=n)) for n in (1, 2, 3)] == [3, 2, 2]
