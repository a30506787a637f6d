"""The judge convicts: a book that is right but for one thing is told from one that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.torture.books import ALL, Accepted, Arrival, Books, Fault, Recorded, Window
from tests.torture.judge import Timing, Verdict, judge

TIMING = Timing(lease_s=4.0, renew_s=1.0, first_byte_s=2.0, total_timeout_s=3.0)
WORKER, PID = "worker-1", 77


def event(number: int) -> str:
    return f"evt_{number}"


def right() -> Books:
    """Ten events, each accepted, stored, arrived and recorded once, a second apart."""
    books = Books({"a": ("/hook",)}, ordered=frozenset({"/hook"}))
    for n in range(10):
        books.accepted.append(Accepted(event(n), f"0-{n}", "a.b", b"p%d" % n))
        books.stored.add(event(n))
        books.arrivals.append(came(n))
        books.recorded.append(row(n))
    return books


def came(n: int, *, at: float | None = None, span: str | None = None, status: int | None = 200) -> Arrival:
    moment = float(100 + n) if at is None else at
    return Arrival(moment, moment, "/hook", event(n), span or f"s{n}", b"p%d" % n, status, WORKER, PID)


def row(n: int, *, at: float | None = None, span: str | None = None, **fields: object) -> Recorded:
    moment = float(100 + n) if at is None else at
    recorded = Recorded(event(n), "/hook", span or f"s{n}", "delivered", None, False, moment, moment, WORKER)
    return replace(recorded, **fields)  # type: ignore[arg-type]


def verdict(books: Books) -> Verdict:
    return judge(books, TIMING)


def found(books: Books) -> set[str]:
    return {kind for kind, texts in verdict(books).violations.items() if texts}


def test_a_run_without_fault_is_acquitted() -> None:
    assert not verdict(right()).guilty


def lose_an_arrival(books: Books) -> None:
    del books.arrivals[5]
    del books.recorded[5]


def lose_the_event(books: Books) -> None:
    lose_an_arrival(books)
    books.stored.discard(event(5))


def forget_an_acceptance(books: Books) -> None:
    del books.accepted[5]


def arrive_elsewhere(books: Books) -> None:
    books.arrivals.append(replace(came(5, span="x"), path="/other"))
    books.recorded.append(replace(row(5, span="x"), path="/other", outcome="retry"))


def alter(books: Books) -> None:
    books.arrivals[5] = replace(books.arrivals[5], digest=b"other")


def forget_the_row(books: Books) -> None:
    del books.recorded[5]


def record_twice(books: Books) -> None:
    books.arrivals.append(came(5, at=106, span="x"))
    books.recorded.append(row(5, at=106, span="x"))


def record_a_refusal_as_success(books: Books) -> None:
    books.arrivals[5] = replace(books.arrivals[5], status=503)


def repeat_for_nothing(books: Books) -> None:
    """Two arrivals, one row, and the worker lives on."""
    books.arrivals.append(came(5, at=107, span="x"))


def repeat_as_unheard(books: Books) -> None:
    books.arrivals.append(came(5, at=104.9, span="x"))
    books.recorded.append(row(5, at=104.9, span="x", outcome="retry", error="timeout"))


def swap_two(books: Books) -> None:
    books.arrivals[5], books.arrivals[6] = came(5, at=106), came(6, at=105)


def leave_one_waiting(books: Books) -> None:
    books.waiting = 1


def forge(books: Books) -> None:
    books.forged = 1


@pytest.mark.parametrize(
    ("wrong", "kinds"),
    [
        (lose_an_arrival, {"lost"}),
        (lose_the_event, {"lost"}),
        (forget_an_acceptance, {"invented"}),
        (arrive_elsewhere, {"invented"}),
        (alter, {"altered"}),
        (forget_the_row, {"not recorded", "delivered and not recorded"}),
        (record_twice, {"recorded twice"}),
        (record_a_refusal_as_success, {"lost", "invented"}),
        (repeat_for_nothing, {"not recorded", "unexplained duplicate"}),
        (repeat_as_unheard, {"yes not heard", "unexplained duplicate"}),
        (swap_two, {"reordered"}),
        (leave_one_waiting, {"not drained"}),
        (forge, {"forged"}),
    ],
)
def test_one_wrong_thing_is_convicted_by_its_name(wrong: Callable[[Books], None], kinds: set[str]) -> None:
    books = right()
    wrong(books)
    assert found(books) == kinds


# ---- duplicates -----------------------------------------------------------------------------------------------------


def repeated(*faults: Window, marked: bool = True) -> Books:
    """Event 5 arrived at 105 from our worker, which wrote nothing down, and again at 110."""
    books = right()
    books.recorded[5] = row(5, at=110, span="again", possible_duplicate=marked)
    books.arrivals.append(came(5, at=110, span="again"))
    books.ordered = frozenset()
    books.faults += faults
    return books


def kill(at: float, *, target: str = WORKER, pid: int = PID) -> Window:
    return Window(Fault.KILL, target, at, at, (pid,))


def window(fault: Fault, began: float, ended: float, *, target: str = WORKER) -> Window:
    return Window(fault, target, began, ended)


@pytest.mark.parametrize(
    "fault",
    [
        [kill(105.1)],
        [window(Fault.STOP, 105.1, 110)],
        [window(Fault.CUT_DATABASE, 104, 110)],
        # It could not write while the database was away, and was killed before it could.
        [window(Fault.POSTGRES, 105.1, 109, target=ALL), kill(109.5)],
    ],
)
def test_a_repetition_behind_the_end_of_its_worker_is_explained(fault: list[Window]) -> None:
    judged = verdict(repeated(*fault))
    assert not judged.guilty, list(judged.lines())
    assert judged.duplicates == 1
    assert judged.explained == {str(fault[-1].fault): 1}


@pytest.mark.parametrize(
    "fault",
    [
        [kill(103, pid=78)],  # its namesake, before it arrived
        [kill(109)],  # long after it should have been written down
        [kill(105.1, target="worker-2")],
        [kill(105.1, pid=78)],  # its namesake, started later
        [window(Fault.STOP, 105.1, 106)],  # shorter than a lease
        [window(Fault.POSTGRES, 105.1, 109, target=ALL)],  # the worker lives, and writes when the database is back
        [window(Fault.CUT_RECEIVER, 104, 110)],  # its answer was lost: then it has a row that says so
    ],
)
def test_a_fault_that_did_not_hit_explains_nothing(fault: list[Window]) -> None:
    assert found(repeated(*fault)) == {"not recorded", "unexplained duplicate"}


def test_a_lease_that_a_worker_of_a_crowded_machine_has_lost_by_its_own_account_explains_a_repetition() -> None:
    books = repeated()
    books.starved.append(window(Fault.STOP, 100, 108))
    assert verdict(books).explained == {"stop": 1}
    assert not verdict(books).guilty


def test_with_patience_an_answer_may_be_written_down_later_and_no_later() -> None:
    for killed_at, guilty in ((109.0, False), (114.0, True)):
        assert judge(repeated(kill(killed_at)), replace(TIMING, patience=4.0)).guilty == guilty


def test_a_repetition_that_does_not_say_so_is_convicted() -> None:
    assert found(repeated(kill(105.1), marked=False)) == {"repetition not marked"}


def test_a_yes_that_was_cut_off_is_explained_by_the_cut() -> None:
    books = right()
    repeat_as_unheard(books)
    books.faults.append(window(Fault.CUT_RECEIVER, 104, 108))
    judged = verdict(books)
    assert not judged.guilty
    assert judged.explained == {"cut_receiver": 1}


def test_what_a_dead_process_had_sent_is_read_a_little_later_and_out_of_a_cut_much_later() -> None:
    cut = window(Fault.CUT_RECEIVER, 95, 104)
    for killed_at, faults, guilty in ((104.0, [], False), (101.0, [], True), (101.0, [cut], False)):
        books = repeated(kill(killed_at), *faults)
        books.arrivals[5] = replace(books.arrivals[5], pid=None)
        assert verdict(books).guilty == guilty, (killed_at, faults)


def test_what_is_known_to_be_of_a_dead_process_was_sent_before_it_died_however_late_it_is_read() -> None:
    """Its connection was looked up while it lived."""
    judged = verdict(repeated(kill(100.0)))
    assert not judged.guilty, list(judged.lines())
    assert judged.unrecorded == judged.explained == {"kill": 1}


def test_an_answer_behind_the_deadline_explains_a_repetition() -> None:
    books = right()
    books.arrivals.append(came(5, at=104.9, span="x"))
    books.recorded.append(row(5, at=103, span="x", outcome="retry", error="first_byte_timeout"))
    judged = verdict(books)
    assert not judged.guilty
    assert judged.explained == {"late answer": 1}
