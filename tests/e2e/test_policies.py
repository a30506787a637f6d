"""Traffic policies on a real server, judged by the receiver's ledger: rate limits, breakers, order, and order over kills."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from hookpost.model import parse_id
from hookpost.worker import SETTLE_ROWS
from tests.e2e.harness import ADMIN_KEY, Arrival, Hookpost, Load, Receiver, answer, database, receiver, running

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

FAILURES = 3
# What goes sooner than its retry, or than its breaker reopens, was brought forward: no test waits so long.
RETRY_BASE_S = 3600.0
PAUSE_S = 600.0
# Attempt ids hold whole milliseconds. A worker corrects its clock by the database's now and then, whose answer takes its
# time on a busy machine: it may jump by as much, and a second's answer is the longest that is believed.
ID_GRAIN_S = 0.001
CLOCK_SLACK_S = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Hookpost]:
    async with running(
        retry_base_s=str(RETRY_BASE_S),
        retry_cap_s=str(2 * RETRY_BASE_S),
        breaker_failures=str(FAILURES),
        breaker_pause_s=str(PAUSE_S),
    ) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def ledger() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


async def refuse(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(500))


def path_of(endpoint: dict[str, Any]) -> str:
    return f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"


async def post_to(server: Hookpost, endpoint: dict[str, Any], count: int, **fields: Any) -> list[str]:
    """So many events to this endpoint alone, in their order; the payload tells the number."""
    targets = [endpoint["endpoint_id"]]
    return [await server.post(payload=number, target_endpoints=targets, **fields) for number in range(count)]


async def states(server: Hookpost, event_ids: Sequence[str], **fields: Any) -> list[tuple[str, str | None, int]]:
    """(status, reason, attempts) of the one delivery of each event."""
    events = [await server.call("GET", f"/v1/events/{event_id}", expect=200, **fields) for event_id in event_ids]
    deliveries = [delivery for event in events for delivery in event["deliveries"]]
    assert len(deliveries) == len(event_ids)
    return [(each["status"], each["reason"], each["attempt_count"]) for each in deliveries]


async def waiting(server: Hookpost, endpoint: dict[str, Any], count: int, **fields: Any) -> list[dict[str, Any]]:
    """What waits for the endpoint, once it is so many."""
    path = f"{path_of(endpoint)}/deliveries?status=waiting&limit=500"
    listed = await server.polled(path, lambda found: len(found["data"]) == count, **fields)
    return list(listed["data"])


async def health(server: Hookpost, endpoint: dict[str, Any], *wanted: str) -> dict[str, Any]:
    """The endpoint's health once its breaker is in one of these states."""
    found = await server.polled(path_of(endpoint), lambda shown: shown["health"]["state"] in wanted)
    return dict(found["health"])


# ---- rate limits ----------------------------------------------------------------------------------------------------


def in_any_window(moments: Sequence[float], rate: float, *, slack_s: float) -> bool:
    """Never more than the rate allows, whatever window one looks at (a window begins and ends with one of them)."""
    ordered = sorted(moments)
    return all(
        last - first + 1 <= rate * (ordered[last] - ordered[first] + slack_s) + max(1.0, rate)
        for first in range(len(ordered))
        for last in range(first, len(ordered))
    )


async def test_a_rate_limit_holds_in_every_window_and_costs_no_attempt(server: Hookpost, ledger: Receiver) -> None:
    rate, count = 5.0, 20
    lasts_s = (count - rate) / rate
    arrived: list[float] = []
    clock = asyncio.get_running_loop().time

    async def note(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        arrived.append(clock())
        writer.write(answer())

    ledger.handlers["/hook"] = note
    endpoint = await server.endpoint(ledger.url(), rate_limit=rate)
    posted_at = clock()
    event_ids = await post_to(server, endpoint, count)
    seen = await states(server, event_ids)
    seen_at = clock()
    await ledger.until_all(set(event_ids))
    # What waited was queued or said why.
    waited = {state[:2] for state in seen} - {("delivered", None)}
    assert waited <= {("queued", None), ("waiting", "rate_limited")}
    assert waited or seen_at - posted_at > lasts_s, "all may be over when a busy machine has looked"
    # By the receiver's clock: whatever delays an arrival, none comes before its token does.
    for number, moment in enumerate(arrived, 1):
        assert number <= rate * (moment - posted_at + CLOCK_SLACK_S) + max(1.0, rate)
    # By the moments at which they started: every window.
    attempts = [attempt for event_id in event_ids for attempt in await server.attempts(event_id)]
    started = [parse_id("att", attempt["attempt_id"]).time / 1000 for attempt in attempts]
    assert len(started) == count
    assert in_any_window(started, rate, slack_s=ID_GRAIN_S)
    # Those of the first moment go side by side: their order is nobody's promise.
    assert sorted(arrival.event_id for arrival in ledger.arrivals) == sorted(event_ids)
    assert await states(server, event_ids) == [("delivered", None, 1)] * count


async def test_without_its_limit_what_waited_for_it_goes_at_once(server: Hookpost, ledger: Receiver) -> None:
    # One in a thousand seconds: what arrives did not wait for its token.
    endpoint = await server.endpoint(ledger.url(), rate_limit=0.001)
    event_ids = await post_to(server, endpoint, 20)
    rows = await waiting(server, endpoint, len(event_ids))
    assert {(row["status"], row["reason"], row["attempt_count"]) for row in rows} == {("waiting", "rate_limited", 0)}
    await server.call("PATCH", path_of(endpoint), {"rate_limit": None}, expect=200)
    await ledger.until_all(set(event_ids))
    for event_id in event_ids:
        await server.settled(event_id)
    assert await states(server, event_ids) == [("delivered", None, 1)] * len(event_ids)


# ---- breakers -------------------------------------------------------------------------------------------------------


async def test_a_receiver_that_refuses_is_left_alone_until_an_operator_resumes(server: Hookpost) -> None:
    """The port is ours and nobody listens. Nothing is tried again before its breaker reopens, ten minutes on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ledger = Receiver(port=closed.getsockname()[1])
        endpoint = await server.endpoint(ledger.url())
        first = await post_to(server, endpoint, FAILURES)
        for event_id in first:
            [attempt] = await server.attempts(event_id)
            assert (attempt["error_code"], attempt["outcome"]) == ("connect_refused", "retry")
        shown = await health(server, endpoint, "open")
        assert shown["reopen_at"] > shown["since"]
        second = await post_to(server, endpoint, 10)
        rows = await waiting(server, endpoint, FAILURES + 10)
        # What has failed is due long after the breaker reopens: it is its schedule that holds it.
        assert {(row["reason"], row["attempt_count"]) for row in rows} == {("retry", 1), ("breaker_open", 0)}
        listening = await asyncio.start_server(ledger.serve, sock=closed)
        async with listening:
            resumed = await server.call("POST", f"{path_of(endpoint)}/resume", expect=200)
            assert (resumed["health"]["state"], resumed["health"]["reopen_at"]) == ("closed", None)
            await ledger.until_all({*first, *second})
            for event_id in (*first, *second):
                await server.settled(event_id)
    assert await states(server, first) == [("delivered", None, 2)] * FAILURES
    assert await states(server, second) == [("delivered", None, 1)] * 10
    assert set(ledger.counts.values()) == {1}


async def test_a_breaker_holds_all_of_its_tenant_at_that_receiver_and_nobody_else(
    server: Hookpost, ledger: Receiver
) -> None:
    ledger.handlers["/sick"] = refuse
    sick = await server.endpoint(ledger.url("/sick"))
    beside = await server.endpoint(ledger.url("/beside"))
    await post_to(server, sick, FAILURES)
    await health(server, beside, "open")
    held = await post_to(server, beside, 5)
    rows = await waiting(server, beside, 5)
    assert {(row["reason"], row["attempt_count"]) for row in rows} == {("breaker_open", 0)}
    key = await server.tenant("another")
    other = await server.endpoint(ledger.url("/other"), key=key)
    theirs = [await server.post(key=key) for _ in range(5)]
    await ledger.until_all(set(theirs), "/other")
    assert (await server.call("GET", path_of(other), key=key, expect=200))["health"]["state"] == "closed"
    assert not ledger.ids("/beside") & set(held)


async def test_one_probe_goes_first_when_a_receiver_is_back_and_then_everything_ahead_of_its_schedule() -> None:
    well, release = asyncio.Event(), asyncio.Event()
    sick_arrivals = 0

    async def recover(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        nonlocal sick_arrivals
        if well.is_set():
            await release.wait()
            writer.write(answer())
        else:
            sick_arrivals += 1
            writer.write(answer(500))

    settings = {"retry_base_s": "3600", "retry_cap_s": "7200", "breaker_failures": str(FAILURES)}
    async with receiver() as ledger, running(breaker_pause_s="1", breaker_pause_max_s="1", **settings) as server:
        ledger.handlers["/hook"] = recover
        endpoint = await server.endpoint(ledger.url())
        first = await post_to(server, endpoint, FAILURES)
        for event_id in first:
            await server.settled(event_id, "waiting")
        await health(server, endpoint, "open", "half_open")
        second = await post_to(server, endpoint, 20)
        # Some probes fail before the receiver is back.
        await ledger.until(lambda: sick_arrivals >= FAILURES + 2)
        well.set()
        refused = sick_arrivals
        await ledger.until(lambda: len(ledger.arrivals) > refused)
        await health(server, endpoint, "half_open")
        assert len(ledger.arrivals) == refused + 1
        release.set()
        await ledger.until_all({*first, *second})
        for event_id in (*first, *second):
            await server.settled(event_id)
        await health(server, endpoint, "closed")
        async with database(server) as operator:
            # Each opening but the first was a probe that failed: nothing else was sent to it meanwhile.
            assert refused == FAILURES - 1 + await operator.fetchval("select openings from breakers")
        attempts = [state[2] for state in await states(server, [*first, *second])]
        assert sum(attempts) == len(ledger.arrivals) == refused + len(attempts)


# ---- order ----------------------------------------------------------------------------------------------------------


def numbers(ledger: Receiver, path: str = "/hook") -> list[int]:
    """The running numbers in the order of their arrival."""
    return [json.loads(arrival.body) for arrival in ledger.arrivals if arrival.path == path]


def firsts(arrived: Sequence[int]) -> list[int]:
    """The first arrivals of each number."""
    return list(dict.fromkeys(arrived))


def failing(times: Callable[[int], int], status: int) -> Callable[[Arrival, asyncio.StreamWriter], Any]:
    """Answers with this status the first times a number comes, and well from then on."""

    async def handle(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        well = arrival.attempt > times(json.loads(arrival.body))
        writer.write(answer() if well else answer(status))

    return handle


async def test_an_ordered_endpoint_gets_each_only_when_the_one_before_is_delivered(
    server: Hookpost, ledger: Receiver
) -> None:
    # Every third one fails twice, which is not enough to open the breaker.
    ledger.handlers["/hook"] = failing(lambda number: 2 if number % 3 == 1 else 0, 503)
    endpoint = await server.endpoint(ledger.url(), ordered=True, retry={"base_s": 0.1, "cap_s": 0.2})
    event_ids = await post_to(server, endpoint, 12)
    await ledger.until_all(set(event_ids))
    assert numbers(ledger) == [number for number in range(12) for _ in range(3 if number % 3 == 1 else 1)]


async def test_a_dead_head_blocks_those_behind_it_and_its_replay_goes_first(server: Hookpost, ledger: Receiver) -> None:
    ledger.handlers["/hook"] = failing(lambda number: 1 if number == 1 else 0, 400)
    endpoint = await server.endpoint(ledger.url(), ordered=True)
    before, dead, *behind = await post_to(server, endpoint, 6)
    await server.settled(before)
    await server.settled(dead, "dead")
    rows = await waiting(server, endpoint, len(behind))
    assert {(row["event_id"], row["reason"], row["attempt_count"]) for row in rows} == {
        (event_id, "ordered", 0) for event_id in behind
    }
    assert numbers(ledger) == [0, 1]
    assert await server.call("POST", f"/v1/events/{dead}/replay", expect=202) == {"delivery_count": 1}
    await ledger.until_all(set(behind))
    assert numbers(ledger) == [0, 1, 1, 2, 3, 4, 5]


async def test_an_ordered_endpoint_that_skips_goes_on_behind_a_dead_one(server: Hookpost, ledger: Receiver) -> None:
    ledger.handlers["/hook"] = failing(lambda number: 1 if number == 1 else 0, 400)
    endpoint = await server.endpoint(ledger.url(), ordered=True, on_dead="skip")
    event_ids = await post_to(server, endpoint, 6)
    await ledger.until_all(set(event_ids))
    assert numbers(ledger) == [0, 1, 2, 3, 4, 5]
    await server.settled(event_ids[1], "dead")


# ---- order over kills -----------------------------------------------------------------------------------------------

KILLS = 20
ARRIVALS_BETWEEN_KILLS = 20
# Another worker takes over within a second; a process that was killed takes longer to come back, and the supervisor waits
# twice as long each time before it starts it again. Of so many workers each is killed two or three times.
KILLED_WORKERS = 8
# An ordered lane rests so long behind a kill; and a request may take so long, that of a busy machine, too.
REST_S = 1.0


async def owner(operator: Any) -> str:
    """The worker that owns the first home shard of the tenant: the one of ordered endpoints."""
    while True:
        name = await operator.fetchval(
            "select n.name from tenants t join shards s on s.shard = t.home_shards[1] join nodes n on n.node_id = s.owner"
        )
        if name is not None:
            return str(name)
        await asyncio.sleep(0.02)


async def kill_owner(server: Hookpost, operator: Any) -> None:
    """Whoever it is now. One that was started a moment ago may own it before its supervisor's line was read."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            return server.kill_child(await owner(operator))
        await asyncio.sleep(0.02)


def in_time(arrivals: Sequence[Arrival]) -> list[int]:
    """The running numbers without those that a worker had given up, or died over, before a busy receiver came to read
    them: repetitions, the last of their connection, that do not follow what came before."""
    last = {arrival.connection: arrival for arrival in arrivals}
    found: list[int] = []
    for arrival in arrivals:
        number = json.loads(arrival.body)["n"]
        late = last[arrival.connection] is arrival and number <= max(found, default=0)
        if not late or number == found[-1] + 1:
            found.append(number)
    return found


def check_runs(arrived: Sequence[int], turns: int) -> None:
    """The numbers come one by one. They go back at most so often, and then go on from there one by one."""
    steps = list(pairwise(arrived))
    assert all(later <= earlier + 1 for earlier, later in steps)
    assert sum(later <= earlier for earlier, later in steps) <= turns


async def test_an_ordered_endpoint_keeps_its_order_over_twenty_kills() -> None:
    async with running(
        "--workers", str(KILLED_WORKERS), total_timeout_max_s=str(REST_S), total_timeout_s=str(REST_S),
        first_byte_timeout_s=str(REST_S), connect_timeout_s="0.3", retry_base_s="0.1",
    ) as server, receiver() as ledger:  # fmt: skip
        await server.endpoint(ledger.url(), ordered=True)
        async with database(server) as operator:
            async with Load(server, connections=1, marked=True) as load:
                for _ in range(KILLS):
                    goal = len(ledger.counts) + ARRIVALS_BETWEEN_KILLS
                    await ledger.until(lambda: len(ledger.counts) >= goal)  # noqa: B023 - awaited in this turn
                    await kill_owner(server, operator)
            await ledger.until_all(load.accepted)
        # What took the receiver longer than a request may take is tried again, and its failure written down if there is
        # time for it before the next kill.
        failed = sum(arrival.headers["x-webhook-attempt"] != "1" for arrival in ledger.arrivals)
        arrived = [json.loads(arrival.body)["n"] for arrival in ledger.arrivals]
        assert firsts(arrived) == list(range(1, len(load.accepted) + 1))
        check_runs(in_time(ledger.arrivals), KILLS + failed)
        # What repeats was in flight at a kill, or answered since the last settle was begun.
        assert len(arrived) - len(load.accepted) <= KILLS * (1 + SETTLE_ROWS) + failed


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("rate_limit", {"rate_limit": 0}),
        ("rate_limit", {"rate_limit": -1}),
        ("rate_limit", {"rate_limit": 1e300}),
        ("rate_limit", {"rate_limit": math.nan}),
        ("rate_limit", {"rate_limit": math.inf}),
        ("ordered", {"ordered": True, "spread": True}),
        ("retry.deadline_s", {"retry": {"base_s": 1, "cap_s": 1, "deadline_s": 5}}),
    ],
)
async def test_a_policy_that_cannot_be_is_refused_by_the_name_of_its_field(
    server: Hookpost, field: str, fields: dict[str, Any]
) -> None:
    body = {"url": "https://example.com/hook", **fields}
    problem = await server.call("POST", "/v1/webhook_endpoints", body, expect=422)
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_an_unknown_pool_is_refused_by_name(server: Hookpost) -> None:
    body = {"name": "lost", "pool": "nowhere"}
    problem = await server.call("POST", "/v1/tenants", body, key=ADMIN_KEY, expect=422)
    assert [error["field"] for error in problem["errors"]] == ["pool"]
