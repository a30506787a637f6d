"""Looks for changes by the time of a clock that may be set (F29)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.looks import OVERLAP_S, Looks, Since

# What happens until the next look: whether the database's clock is set then, by how much; and how long it all takes.
steps = st.tuples(
    st.floats(0.0, 100.0),
    st.lists(st.floats(0.0, 1.0), max_size=4),
    st.floats(0.0, 1.0),
    st.floats(-1e5, 1e5),
    st.booleans(),
)


@given(st.lists(steps, min_size=1, max_size=8))
def test_f29_whatever_was_changed_is_found_by_the_next_look_though_the_clock_was_set(
    happened: list[tuple[float, list[float], float, float, bool]],
) -> None:
    own, set_by = 0.0, 1e6
    looks = Looks(own, own + set_by)
    for took_s, changes, set_when, by, is_set in happened:
        found_from = own
        written: list[float] = []
        if is_set:
            before, after = [c for c in changes if c <= set_when], [c for c in changes if c > set_when]
        else:
            before, after, by = changes, [], 0.0
        written += [found_from + c * took_s + set_by for c in before]
        set_by += by
        written += [found_from + c * took_s + set_by for c in after]
        own += took_s
        since = looks.since(own).by(own + set_by)
        assert all(at > since for at in written)
        looks.looked(own, own + set_by)


def test_what_was_slow_to_commit_is_found_and_no_more_is_looked_at_than_need_be() -> None:
    looks = Looks(100.0, 5000.0)
    assert looks.since(101.0).by(5001.0) == 5000.0 - OVERLAP_S
    assert Since(None, 3.0).by(5001.0) == 4998.0


def test_a_look_that_is_answered_late_is_not_taken_for_the_last() -> None:
    looks = Looks(100.0)
    assert looks.since(101.0) == Since(None, 1.0 + OVERLAP_S)
    looks.looked(102.0, 5002.0)
    looks.looked(101.0, 5001.0)
    assert looks.began == 102.0
    assert looks.since(103.0) == Since(5002.0 - OVERLAP_S, 1.0 + OVERLAP_S)
