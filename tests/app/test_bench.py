"""The benchmark's own promises: nothing is counted wrong, and a run that lost something is void."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from hookpost.app.bench import SCENARIOS
from hookpost.app.bench.curl import FRAME, Pipe, frame
from hookpost.app.bench.ledger import Accounts, Ledger, VoidRun, percentile
from hookpost.app.bench.limits import BARE_COST_MAX
from hookpost.app.bench.load import NUMBER_DIGITS, PAYLOAD, PAYLOAD_BYTES, Load, Schedule, _form, message_end, number_of
from hookpost.app.bench.machine import Process, busy_s, cpu_s, parse_stat, tree
from hookpost.app.bench.report import TARGETS, Target
from hookpost.app.bench.run import WARM_UP_S, Run, Window
from hookpost.app.bench.slices import LEAD_S, SLICE_S, Contender, Rounds, alternate

# ---- the ledger -----------------------------------------------------------------------------------------------------


def test_losses_and_duplicates_are_exact() -> None:
    ledger = Ledger(slots=2)
    assert ledger.open(3, due=10.0) == 0
    ledger.accept(0)
    ledger.accept(1)
    ledger.refuse(2)
    assert ledger.arrive(0, 0, 10.5)
    assert ledger.arrive(0, 1, 10.7)
    assert ledger.arrive(1, 1, 11.0)
    assert not ledger.arrive(1, 1, 11.5)
    assert not ledger.arrive(3, 0, 11.5), "a number that nobody posted"
    assert (ledger.posted, ledger.accepted, ledger.refused) == (3, 2, 1)
    assert (ledger.delivered, ledger.delivered_to, ledger.duplicates, ledger.unknown) == (3, [1, 2], 1, 1)
    assert ledger.accepted_and_arrived() == 3
    assert ledger.latencies_ms(10.0, 10.1) == pytest.approx([500, 700, 1000])
    assert ledger.latencies_ms(10.0, 10.1, slots=[0]) == pytest.approx([500])
    assert ledger.latencies_ms(10.1, 20.0) == []
    assert ledger.arrivals(10.6, 12.0, slots=[0, 1]) == 2


def test_what_arrives_of_a_refused_event_is_not_counted_as_an_acknowledged_one() -> None:
    ledger = Ledger()
    ledger.open(2, due=1.0)
    ledger.accept(0)
    ledger.refuse(1)
    ledger.arrive(0, 0, 2.0)
    ledger.arrive(1, 0, 2.0)
    assert (ledger.delivered, ledger.accepted_and_arrived()) == (2, 1)


def test_a_ledger_grows_beyond_its_first_room() -> None:
    ledger = Ledger(slots=10)
    last = ledger.open(200_000, due=1.0) + 199_999
    assert ledger.arrive(last, 9, 2.0)


BALANCED = {"owed": 10, "delivered": 7, "stored_owed": 10, "stored_delivered": 7, "waiting": 2, "dead": 1}


@pytest.mark.parametrize(
    ("changed", "void"),
    [
        ({}, False),
        ({"delivered": 8}, False),  # arrived, and its result not recorded yet: it counts as waiting still
        ({"stored_owed": 11, "waiting": 3}, False),  # stored, though its answer was lost
        ({"stored_owed": 9}, True),  # acknowledged and not stored
        ({"waiting": 1}, True),  # lost between journal and receiver
        ({"stored_delivered": 8, "waiting": 1}, True),  # recorded as delivered, and never arrived
        ({"delivered": 6, "stored_delivered": 6}, True),
        ({"dead": 0}, True),
        ({"forged": 1}, True),
        ({"unknown": 1}, True),
    ],
)
def test_a_run_is_void_unless_the_books_balance_on_both_sides(changed: dict[str, int], void: bool) -> None:
    assert bool(Accounts(**{**BALANCED, **changed}).faults()) is void


@pytest.mark.parametrize(("part", "value"), [(0.0, 1.0), (0.5, 51.0), (0.99, 100.0), (1.0, 100.0)])
def test_percentile_of_a_hundred(part: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], part) == value


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.99) == 0.0


# ---- HTTP -----------------------------------------------------------------------------------------------------------

REQUEST = (
    b"POST /webhooks HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX-Last: 1\r\n\r\n" % PAYLOAD_BYTES + PAYLOAD % 4711
)


@pytest.mark.parametrize("spelling", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_a_message_ends_where_its_length_says_however_it_is_split(spelling: bytes) -> None:
    request = REQUEST.replace(b"Content-Length", spelling)
    assert [message_end(request[:size]) for size in range(len(request))] == [-1] * len(request)
    assert message_end(request) == message_end(request + REQUEST) == len(request)


def test_a_message_without_a_length_ends_with_its_head() -> None:
    assert message_end(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1") == 27


def test_the_number_is_found_in_the_payload() -> None:
    assert len(PAYLOAD % 4711) == PAYLOAD_BYTES
    assert json.loads(PAYLOAD % 4711)["number"] == "0000004711"
    assert number_of(REQUEST) == 4711
    assert number_of(b"POST / HTTP/1.1\r\n\r\n{}") == -1


@pytest.mark.parametrize("batch", [1, 100])
def test_a_prepared_request_is_complete(batch: int) -> None:
    form = _form("127.0.0.1", "hpk_1", batch, "ep_1" if batch == 1 else "")
    request = form % tuple(range(7, 7 + batch))
    assert message_end(request) == len(request)
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    events = [body] if batch == 1 else body["events"]
    assert [int(event["payload"]["number"]) for event in events] == list(range(7, 7 + batch))
    assert b"%" not in request
    assert len(events[0]["payload"]["number"]) == NUMBER_DIGITS


@pytest.mark.parametrize("batch", [1, 3])
def test_each_event_has_a_key_of_its_own_where_keys_are_asked_for(batch: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Load(connections=1) as load:
        load.target(f"http://127.0.0.1:{server.getsockname()[1]}", "hpk_1", batch=batch, keyed=True)
        request = load.request(7)
    assert message_end(request) == len(request)
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    events = [body] if batch == 1 else body["events"]
    numbers = [f"{number:010d}" for number in range(7, 7 + batch)]
    assert [event["idempotency_key"] for event in events] == [f"key-{number}" for number in numbers]
    assert [event["payload"]["number"] for event in events] == numbers


def test_frames_are_cut_out_of_whatever_pieces_come() -> None:
    ours, theirs = socket.socketpair()
    events = [(bytes([n]) * 16, b"invoice.paid", PAYLOAD % n) for n in range(3)]
    stream = b"".join(frame(*event) for event in events)
    with ours:
        pipe = Pipe(theirs.detach(), b"k" * 24)
        (fd,) = pipe.fds
        for at in range(0, len(stream), FRAME.size + 5):
            ours.send(stream[at : at + FRAME.size + 5])
            assert not pipe.read(fd)
    assert pipe.waiting == 3
    bodies = []
    while (request := pipe.next()) is not None:
        bodies.append(request[0])
    assert bodies == [payload for _, _, payload in events]
    assert pipe.read(fd)
    assert pipe.ended
    pipe.close()


# ---- the loop -------------------------------------------------------------------------------------------------------


def test_a_schedule_does_not_wait_for_who_sends() -> None:
    schedule = Schedule(100.0, rate=4.0, count=3)
    assert schedule.next_due == 100.0
    assert [schedule.take() for _ in range(3)] == [100.0, 100.25, 100.5]
    assert schedule.finished
    assert schedule.next_due == float("inf")


def test_an_event_is_due_when_the_schedule_says_however_slow_the_answers_are() -> None:
    at = 1000.0

    def clock() -> float:
        """Virtual: every look takes 5 ms."""
        nonlocal at
        at += 0.005
        return at

    with Load(connections=1, clock=clock) as load:
        slow = load.listen(delay_s=0.1)[0]
        load.target(f"http://{slow.host}:{slow.port}", "key")
        load.open_loop(0.2, rate=30.0)
        load.answered()
    due = load.ledger.due[: load.ledger.posted]
    assert [later - due[0] for later in due] == pytest.approx([number / 30 for number in range(6)])
    assert load.answers == {"200": 6}


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (b"HTTP/1.1 503 Unavailable\r\ncontent-length: 2\r\n\r\n{}", {"503": 1}),
        (b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", {"429": 1}),
        (b"", {"lost": 1}),
    ],
)
def test_what_is_not_a_202_is_counted_with_its_reason(answer: bytes, counted: dict[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Load(connections=1) as load:
        load.target(f"http://127.0.0.1:{server.getsockname()[1]}", "key")
        connection, _ = server.accept()
        load.idle_posters.pop().post(load.ledger.open(1, load.now()))
        with connection:
            if answer:
                connection.send(answer)
        load.receive(lambda: load.ledger.refused > 0)
        assert load.answers == counted
        assert (load.ledger.accepted, load.ledger.refused) == (0, 1)


def test_a_receiver_counts_by_number_and_slot_over_split_and_joined_requests() -> None:
    with Load(slots=2) as load:
        load.listen(2, own_slots=True)
        load.ledger.open(5000, due=load.now())
        with socket.create_connection((load.listeners[1].host, load.listeners[1].port)) as sender:
            sender.send(REQUEST[:300])
            load.receive(lambda: bool(load._receivers))
            sender.send(REQUEST[300:] + REQUEST.replace(b"0000004711", b"0000000001"))
            assert load.receive(lambda: load.ledger.delivered == 2)
            assert sender.recv(1000).count(b"HTTP/1.1 200 OK") == 2
    assert load.ledger.delivered_to == [0, 2]
    assert load.ledger.copies[4711 * 2 + 1] == 1


def test_a_wrong_signature_is_noticed() -> None:
    with Load() as load:
        listener = load.listen()[0]
        listener.key = b"k" * 24
        load.ledger.open(5000, due=load.now())
        load.ledger.delivered = 49  # the next one is looked at
        with socket.create_connection((listener.host, listener.port)) as sender:
            sender.send(REQUEST)
            load.receive(lambda: load.ledger.verified == 1)
        assert load.ledger.forged == 1


# ---- slices ---------------------------------------------------------------------------------------------------------


class Nobody:
    """A subject that costs nothing."""

    def cpu(self) -> dict[str, float]:
        """No role has used any."""
        return {"worker": 0.0}


def window(load: Load, *, seconds: float, delivered: int, worker_s: float) -> Window:
    """What a measurement found."""
    found = Window(load)
    found.began, found.ended, found.delivered = 0.0, seconds, delivered
    found.cpu, found.load_cpu_s, found.busy_s = {"worker": worker_s}, 0.0, worker_s
    return found


def test_a_ratio_holds_on_a_machine_whose_speed_changes_from_round_to_round() -> None:
    with Load() as load:
        contender = Contender(subject=Nobody(), load=load, work=load.sustained)
        rounds = Rounds({"all": contender, "limit": contender})
        for speed in (1, 5, 2):
            rounds.add("all", window(load, seconds=1.0, delivered=100 * speed, worker_s=0.6))
            rounds.add("limit", window(load, seconds=1.0, delivered=200 * speed, worker_s=0.3))
    assert rounds.ratio("all", "limit") == 0.5
    assert rounds.ratio("all", "limit", "worker_us") == 4.0
    assert rounds.figures("all")["per_second"] == 200, "the median, not the mean"


def test_slices_alternate_and_only_what_lies_between_two_rests_is_done() -> None:
    done: list[str] = []

    def contender(name: str, load: Load) -> Contender:
        return Contender(
            subject=Nobody(), load=load, ready=lambda: done.append(f"{name} ready"),
            work=lambda seconds: done.append(f"{name} {seconds:g}"), rest=lambda: done.append(f"{name} rests"),
        )  # fmt: skip

    with Load() as load:
        alternate(Run(2.0), {name: contender(name, load) for name in "ab"})

    def a_slice(name: str, *seconds: float) -> list[str]:
        return [f"{name} ready", *(f"{name} {each:g}" for each in seconds), f"{name} rests"]

    lead, measured = (WARM_UP_S, 0), (LEAD_S, SLICE_S)
    assert done == [
        *a_slice("a", *lead), *a_slice("b", *lead),
        *a_slice("a", *measured), *a_slice("b", *measured), *a_slice("b", *measured), *a_slice("a", *measured),
    ]  # fmt: skip


def test_a_run_that_had_nothing_left_to_measure_says_so() -> None:
    with Load() as load, pytest.raises(VoidRun, match="more --seconds"):
        alternate(Run(1.0), {"a": Contender(subject=Nobody(), load=load, work=lambda _: None)}, more=lambda: False)


# ---- /proc ----------------------------------------------------------------------------------------------------------


def test_cpu_of_a_process_is_read_behind_any_name() -> None:
    line = "42 (post) gres: (x) S 7 42 42 0 -1 4194304 9 0 0 0 150 50 20 10 20 0 1 0 99 1000 25 184 rest"
    process = parse_stat(line)
    assert (process.pid, process.parent, process.own_s) == (42, 7, 2.0)
    assert process.ended_children_s == pytest.approx(0.3)
    assert process.rss_bytes == 25 * 4096


def test_a_tree_counts_children_that_live_and_children_that_ended() -> None:
    table = {
        1: Process(1, 0, 1.0, 5.0, 0),
        2: Process(2, 1, 10.0, 0.5, 0),
        3: Process(3, 2, 100.0, 0.0, 0),
        4: Process(4, 0, 1000.0, 0.0, 0),
    }
    found = tree(1, table)
    assert [process.pid for process in found] == [1, 2, 3]
    assert cpu_s(table[1], found) == 116.0
    assert tree(99, table) == []


def test_busy_time_leaves_out_idling() -> None:
    assert busy_s("cpu  100 10 200 99999 88888 3 4 5 0 0\ncpu0 1 2 3") == pytest.approx(3.22)


# ---- the report -----------------------------------------------------------------------------------------------------


def test_targets_hold_or_do_not() -> None:
    assert Target("a", lambda _: 0.0, 0.5).met(0.5)
    assert not Target("a", lambda _: 0.0, 0.5).met(0.49)
    assert Target("a", lambda _: 0.0, 25, at_most=True).met(25)


def test_a_target_whose_scenario_did_not_run_is_left_out() -> None:
    for target in TARGETS:
        with pytest.raises(KeyError):
            target.value({})


# ---- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_short_run_is_not_void() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hookpost.app.cli", "bench", "e2e", "--seconds", "1"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert set(lines[0]["machine"]) >= {"cpu", "cores", "commit"}
    [e2e] = lines[1:]
    assert e2e["scenario"] == "e2e"
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(e2e["beside"]) == {"curl", "server", "bare", "plain_curl", "plain"} < set(SCENARIOS)
    assert all(each["per_second"] > 0 for each in e2e["beside"].values())
    assert e2e["published"] == e2e["delivered"] + e2e["waiting"] + e2e["dead"] > 0
    assert e2e["waiting"] == e2e["dead"] == 0
    assert e2e["signatures_checked"] > 0
    expected = {"per_second", "p50_ms", "p99_ms", "api_us", "worker_us", "postgres_us", "load_us", "attempt_row_bytes"}
    expected |= {"row_writes_per_delivery", "transactions_per_delivery", "wal_bytes_per_delivery"}
    assert expected <= set(e2e)
    assert "row writes a delivery" in ran.stderr
    # No ratio to a pipe that was not at its best.
    assert ("e2e / bare" in ran.stderr) is (e2e["bare_of_its_parts"] <= BARE_COST_MAX)
