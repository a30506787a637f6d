"""The clock that follows the database's (I25)."""

from __future__ import annotations

from hookpost.app.clock import ROUND_TRIP_S_MAX, DatabaseClock


def test_it_takes_over_the_databases_time() -> None:
    clock = DatabaseClock(wall=lambda: 1e9, monotonic=lambda: 50.0)
    skew_s = clock.correct(1e9 + 100, sent=50.0, received=50.01)
    assert -101 < skew_s < -99
    assert 99 < clock.now() - 1e9 < 101


def test_f29_the_first_answer_counts_however_long_it_took() -> None:
    """On a machine that is an hour fast a worker would otherwise let what waits die of its deadline, then stand still."""
    clock = DatabaseClock(wall=lambda: 3600.0 + 1e9, monotonic=lambda: 50.0)
    assert clock.now() == 1e9 + 3600.0
    clock.correct(1e9, sent=44.0, received=50.0)
    assert abs(clock.now() - 1e9) <= 3.0
    clock.correct(1e9 + 99.0, sent=44.0, received=50.0)
    assert abs(clock.now() - 1e9) <= 3.0


def test_an_answer_that_took_long_changes_nothing_and_raises_no_alarm() -> None:
    clock = DatabaseClock(wall=lambda: 1e9, monotonic=lambda: 50.0)
    clock.correct(1e9, sent=50.0, received=50.0)
    assert clock.correct(1e9 + 100, sent=50.0, received=50.0 + ROUND_TRIP_S_MAX + 0.1) == 0.0
    assert abs(clock.now() - 1e9) < 1
