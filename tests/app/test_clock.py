"""The clock that follows the database's."""

from __future__ import annotations

import time

from hookpost.app.clock import ROUND_TRIP_S_MAX, DatabaseClock


def test_it_takes_over_the_databases_time() -> None:
    clock = DatabaseClock()
    sent = clock.monotonic()
    skew_s = clock.correct(time.time() + 100, sent=sent, received=sent + 0.01)
    assert -101 < skew_s < -99
    assert 99 < clock.now() - time.time() < 101


def test_an_answer_that_took_long_changes_nothing_and_raises_no_alarm() -> None:
    clock = DatabaseClock()
    sent = clock.monotonic()
    assert clock.correct(time.time() + 100, sent=sent, received=sent + ROUND_TRIP_S_MAX + 0.1) == 0.0
    assert abs(clock.now() - time.time()) < 1
