"""The audit chain: every way to tamper with it is found, and each fault says which row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookpost.policy.audit import (
    BEGINNING,
    BROKEN,
    RETENTION,
    Anchor,
    Entry,
    Head,
    Verifier,
    changed,
    derive_key,
    entry_hash,
    head_seal,
)

KEY = derive_key(b"d" * 32)
CHAIN = UUID(int=7)
Rows = list[Entry]


def written(count: int = 6, key: bytes = KEY, **last: str) -> tuple[Rows, Head]:
    """A chain as the store writes it; ``last`` are fields of its last row."""
    rows: Rows = []
    previous = BEGINNING
    for seq in range(1, count + 1):
        entry = Entry(
            CHAIN, seq, 1.8e9 + seq, "key_1", "::1", "endpoint.update", "ep_1", None, f'{{"n":{seq}}}', previous
        )
        entry = replace(entry, **last) if seq == count else entry
        rows.append(replace(entry, hash=entry_hash(key, entry)))
        previous = rows[-1].hash
    return rows, Head(CHAIN, count, previous, head_seal(key, CHAIN, count, previous))


def found(rows: Rows, head: Head | None, anchor: Anchor | None = None) -> list[str]:
    verifier = Verifier(KEY, CHAIN, head, anchor)
    for row in rows:
        verifier.read(row)
    return verifier.faults()


def test_a_chain_that_nobody_touched_is_in_order() -> None:
    rows, head = written()
    assert found(rows, head) == []
    assert found([], None) == []
    assert found([], Head(CHAIN, 0, BEGINNING, head_seal(KEY, CHAIN, 0, BEGINNING))) == []


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1.9e9}, {"actor": "key_2"}, {"address": ""}, {"action": "endpoint.delete"}, {"target": "ep_2"},
        {"before": "{}"}, {"after": None}, {"after": '{"n": 3}'}, {"chain": UUID(int=8)}, {"previous": bytes(32)},
        {"hash": b"x" * 32},
    ],
    ids=str,
)  # fmt: skip
def test_an_altered_row_is_found(change: dict[str, object]) -> None:
    rows, head = written()
    rows[2] = replace(rows[2], **change)  # type: ignore[arg-type]
    assert "row 3 was altered, moved or put in" in found(rows, head)


def _deleted(rows: Rows) -> Rows:
    return rows[:2] + rows[3:]


def _inserted(rows: Rows) -> Rows:
    return [*rows[:3], replace(rows[2], seq=4), *(replace(row, seq=row.seq + 1) for row in rows[3:])]


def _doubled(rows: Rows) -> Rows:
    return [*rows[:3], rows[2], *rows[3:]]


def _swapped(rows: Rows) -> Rows:
    return [*rows[:2], replace(rows[3], seq=3), replace(rows[2], seq=4), *rows[4:]]


def _reordered(rows: Rows) -> Rows:
    return [*rows[:2], rows[3], rows[2], *rows[4:]]


def _forged(rows: Rows) -> Rows:
    """Rewritten from row 3 on by somebody who has to guess the key."""
    forged = written(key=b"guessed" * 5)[0]
    return rows[:2] + forged[2:]


@pytest.mark.parametrize("tamper", [_deleted, _inserted, _doubled, _swapped, _reordered, _forged])
def test_rows_deleted_put_in_moved_or_forged_are_found(tamper: Callable[[Rows], Rows]) -> None:
    rows, head = written()
    assert found(tamper(rows), head)


def test_a_deleted_row_is_named() -> None:
    rows, head = written()
    assert found(_deleted(rows), head) == ["row 3 is missing"]
    assert found(rows[:1] + rows[4:], head) == ["rows 2 to 4 are missing"]


def test_a_tail_that_was_cut_off_is_found_by_the_head() -> None:
    rows, head = written()
    assert found(rows[:4], head) == ["rows 5 to 6 are missing"]
    assert (
        found([], head)
        == ["the rows before 1 are gone, and retention did not take them", "rows 1 to 6 are missing"][1:]
    )
    assert found(rows, None) == ["the chain has no head, so nothing says where it ends"]


def test_a_head_moved_back_to_hide_the_cut_is_found_by_its_seal() -> None:
    rows, head = written()
    moved = replace(head, seq=4, hash=rows[3].hash)
    assert found(rows[:4], moved) == ["the head was altered"]


def test_an_older_state_of_chain_and_head_together_is_found_by_an_anchor_alone() -> None:
    rows, head = written()
    old_rows, old_head = written(4)
    assert found(old_rows, old_head) == []
    noted = Anchor(head.seq, head.hash)
    assert found(old_rows, old_head, noted) == ["the chain ends at row 4, and went to row 6 when it was noted before"]
    assert found(rows, head, noted) == []
    other, other_head = written(after="{}")
    assert found(other, other_head, noted) == ["row 6 is not the one that was noted before"]


def test_a_change_behind_an_altered_head_tells_of_it() -> None:
    rows, head = written(action=BROKEN)
    assert found(rows, head) == ["when row 6 was written, the chain's head had been altered"]


def test_what_retention_took_away_is_not_missed_and_what_else_is_gone_is() -> None:
    rows, head = written(action=RETENTION, after='{"kept_from":4}')
    assert found(rows[3:], head) == []
    assert found(rows[4:], head) == ["the rows before 5 are gone, and retention did not take them"]
    rows, head = written()
    assert found(rows[3:], head) == ["the rows before 4 are gone, and retention did not take them"]


@settings(max_examples=200)
@given(keep=st.lists(st.integers(min_value=0, max_value=5), min_size=0, max_size=8))
def test_any_other_sequence_of_rows_is_found(keep: list[int]) -> None:
    rows, head = written()
    assert (found([rows[n] for n in keep], head) == []) == (keep == [0, 1, 2, 3, 4, 5])


def test_a_change_tells_what_differs() -> None:
    assert changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}) == ({"b": 2}, {"b": 3})
    assert changed({"a": 1}, {"a": 2, "c": 4}) == ({"a": 1, "c": None}, {"a": 2, "c": 4})
