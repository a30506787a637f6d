"""Open entries kept as ranges say the same as a set of them would."""

from __future__ import annotations

from random import Random
from uuid import UUID

import pytest

from hookpost.engine.progress import ShardProgress
from hookpost.engine.work import Entry

E1, E2 = UUID(int=1), UUID(int=2)


def entry(seq: int, *, owed: int = 1) -> Entry:
    return Entry(0, seq, 0, UUID(int=seq), UUID(int=0), "t", b"", 0, 0.0, owed)


def expected(open_seqs: set[int], read_to: int) -> tuple[int, list[int]]:
    return (min(open_seqs) - 1 if open_seqs else read_to), sorted(open_seqs)


@pytest.mark.parametrize("seed", range(20))
def test_ranges_follow_a_set_of_open_entries(seed: int) -> None:
    rng = Random(seed)
    progress, open_entries = ShardProgress(0, 0), dict[int, Entry]()
    for _ in range(400):
        if rng.random() < 0.5:
            seq = progress.read_to + 1
            progress.advance(seq, 0)
            if rng.random() < 0.8:
                open_entries[seq] = entry(seq, owed=rng.choice((1, 2)))
                progress.begin(open_entries[seq])
        elif open_entries:
            chosen = open_entries[rng.choice(list(open_entries))]
            progress.finish(chosen, E2 if chosen.done else E1)
            if not chosen.remaining:
                del open_entries[chosen.seq]
        shown = progress.snapshot()
        seqs = [seq for start, end in shown.open for seq in range(start, end)]
        assert (shown.cursor, seqs) == expected(set(open_entries), progress.read_to)
        assert all(before[1] < after[0] for before, after in zip(shown.open, shown.open[1:], strict=False))
        assert dict(shown.partial) == {seq: (E1,) for seq, each in open_entries.items() if each.done}
        assert progress.fragments == len(shown.open) + len(shown.partial)


def test_an_entry_that_is_finished_twice_is_a_mistake() -> None:
    progress = ShardProgress(0, 0)
    progress.advance(1, 0)
    progress.begin(entry(1))
    progress.finish(entry(1), E1)
    with pytest.raises(AssertionError):
        progress.finish(entry(1), E1)
