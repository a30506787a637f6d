"""Everything that may die dies in the middle of a load; by the receiver's ledger, every accepted event arrives."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from hookpost.storage.postgres.embedded import bin_dir, find_running
from hookpost.worker import UNSETTLED_MAX
from tests.e2e.harness import ADMIN_KEY, WAIT_S, Hookpost, Load, Receiver, database, fresh_folder, receiver, running
from tests.e2e.ports import free_port
from tests.patience import until_tomorrow_s

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

SOME = 300


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def survivor() -> AsyncIterator[Hookpost]:
    """One server for the tests that kill a part of it, or dump it, and see it go on."""
    async with running() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def server(survivor: Hookpost) -> AsyncIterator[Hookpost]:
    """It, with a tenant of the test's own in all shards; its lines are those of the test."""
    tenant = await survivor.call("POST", "/v1/tenants", {"name": "a", "spread": 8}, key=ADMIN_KEY, expect=201)
    path = f"/v1/tenants/{tenant['tenant_id']}"
    made = await survivor.call("POST", f"{path}/api_keys", {"name": "all"}, key=ADMIN_KEY, expect=201)
    survivor.key = made["key"]
    survivor.lines.clear()
    yield survivor
    # What a kill left to be repeated goes to no receiver of the next test that happens to have the same port.
    for endpoint in (await survivor.call("GET", "/v1/webhook_endpoints", expect=200))["data"]:
        await survivor.call("DELETE", f"/v1/webhook_endpoints/{endpoint['endpoint_id']}", expect=204)


async def subscribe(server: Hookpost, ledger: Receiver) -> None:
    endpoint = await server.endpoint(ledger.url())
    ledger.secrets["/hook"] = endpoint["secret"]


def check(load: Load, ledger: Receiver) -> None:
    """Nothing accepted is missing, nothing is forged."""
    assert load.accepted <= ledger.ids()
    assert not ledger.forged


def duplicates(ledger: Receiver) -> int:
    return sum(count - 1 for count in ledger.counts.values())


async def delivered_attempts(server: Hookpost, events: set[str]) -> dict[str, tuple[int, bool]]:
    """Of each event how often it is recorded as delivered, and whether each time as a possible duplicate; once all are."""
    async with database(server) as operator, asyncio.timeout(WAIT_S):
        while True:
            rows = await operator.fetch(
                "select 'evt_' || replace(event_id::text, '-', '') as event, count(*)::int as count,"
                " bool_and(possible_duplicate) as repeat from attempts where outcome = 'delivered' group by 1"
            )
            found = {row["event"]: (row["count"], row["repeat"]) for row in rows if row["event"] in events}
            if found.keys() == events:
                return found
            await asyncio.sleep(0.05)  # the last ones have arrived and may not be settled yet


def alive(pid: int) -> bool:
    """A dead process that nobody has collected yet counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def replace(server: Hookpost, name: str, said: str) -> None:
    """kill -9 of a process, and wait until the one in its place has said so, too."""
    before = sum(said in line for line in server.lines)
    await server.replace_child(name)
    await server.until_line(said, count=before + 1)


async def test_f2_a_worker_killed_in_the_middle_loses_nothing_and_only_requests_in_flight_repeat(
    server: Hookpost,
) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        async with Load(server) as load:
            for _ in range(3):
                await load.until(SOME)
                await replace(server, "worker-1", "shards_acquired")
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)
        # What repeats is what was sent and not yet settled: each event is recorded as delivered once, and where it arrived
        # more than once the attempt that is recorded says that it may be a repeat. Beyond UNSETTLED_MAX nothing is sent.
        recorded = await delivered_attempts(server, load.accepted)
        assert {count for count, _ in recorded.values()} == {1}
        repeated = {event_id for (_, event_id), count in ledger.counts.items() if count > 1}
        assert all(recorded[event_id][1] for event_id in repeated)
        assert duplicates(ledger) <= 3 * (64 + UNSETTLED_MAX)
        marked = await server.call("GET", "/v1/deliveries?limit=500", expect=200)
        assert {attempt["outcome"] for attempt in marked["data"]} == {"delivered"}


async def test_f1_the_api_killed_in_the_middle_acknowledges_nothing_that_is_not_stored(server: Hookpost) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        async with Load(server) as load:
            for _ in range(3):
                await load.until(SOME)
                await replace(server, "api-1", "api_ready")
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)
        assert load.retried > 0
        # An idempotency key posted again after the crash is the same event: nothing arrives that was not acknowledged.
        assert ledger.ids() == load.accepted
        assert duplicates(ledger) == 0


async def test_f5_postgresql_killed_in_the_middle_is_started_again_and_nothing_is_lost(server: Hookpost) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        async with Load(server) as load:
            await load.until(SOME)
            os.kill(server.postmaster(), signal.SIGKILL)
            await server.until_line("postgres_started")
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)
        assert ledger.ids() == load.accepted


async def test_f14_a_database_that_cannot_be_started_is_tried_again_until_it_can(server: Hookpost) -> None:
    """As on a full disk: the server used to end with its first try."""
    async with receiver() as ledger:
        await subscribe(server, ledger)
        settings = server.folder / "postgres" / "postgresql.conf"
        good = settings.read_text()
        settings.write_text(good + "\nshared_buffers = 'no number'\n")
        os.kill(server.postmaster(), signal.SIGKILL)
        await server.until_line("postgres_not_started", count=2)
        status, _, headers = await server.call("POST", "/v1/events", {"type": "a", "payload": 1})
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        settings.write_text(good)
        await server.until_line("postgres_started")
        async with Load(server) as load:
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)


async def test_postgresql_restarted_in_order_in_the_middle_loses_nothing(server: Hookpost) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        async with Load(server) as load:
            await load.until(SOME)
            os.kill(server.postmaster(), signal.SIGINT)
            await server.until_line("postgres_started")
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)


async def test_f10_a_dump_held_open_under_load_slows_nothing_down_to_a_stop(server: Hookpost) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        async with database(server) as dump:
            transaction = dump.transaction(isolation="repeatable_read", readonly=True)
            await transaction.start()
            seen = await dump.fetchval("select count(*) from events")
            async with Load(server) as load:
                await load.until(5 * SOME)
            await ledger.until_all(load.accepted)
            check(load, ledger)
            assert await dump.fetchval("select count(*) from events") == seen
            await transaction.rollback()
            updated = await dump.fetch(
                "select relname, n_tup_upd from pg_stat_user_tables where relname ~ '^(events|attempts|progress)_'"
            )
            assert updated and all(row["n_tup_upd"] == 0 for row in updated)


async def test_a_real_dump_runs_beside_the_load(server: Hookpost) -> None:
    async with receiver() as ledger:
        await subscribe(server, ledger)
        dsn = find_running(server.folder)
        assert dsn is not None
        async with Load(server) as load:
            await load.until(SOME)
            dump = await asyncio.create_subprocess_exec(
                bin_dir() / "pg_dump", "--dbname", dsn, "--file", os.devnull, stderr=subprocess.PIPE
            )
            _, errors = await dump.communicate()
            assert dump.returncode == 0, errors
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        check(load, ledger)


async def test_f33_a_dump_restored_elsewhere_goes_on_from_where_it_was_taken(server: Hookpost) -> None:
    async with receiver() as ledger:
        endpoint = await server.endpoint(ledger.url())
        done = await server.post()
        await server.settled(done)
        path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
        await server.call("POST", f"{path}/pause", {}, expect=200)
        waiting = await server.post()
        dsn = find_running(server.folder)
        assert dsn is not None
        elsewhere = dsn.replace("/hookpost?", "/elsewhere?", 1)
        operator = await asyncpg.connect(dsn)
        await operator.execute("create database elsewhere")
        await operator.close()
        dumped = server.folder.parent / "dump.sql"
        for program, *arguments in (
            ("pg_dump", "--dbname", dsn, "--file", str(dumped)),
            ("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", elsewhere, "--file", str(dumped)),
        ):
            process = await asyncio.create_subprocess_exec(
                bin_dir() / program, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            _, errors = await process.communicate()
            assert process.returncode == 0, errors
        keys = str(server.folder / "encryption.keys")
        async with running(database_url=elsewhere, encryption_key_file=keys) as restored:
            restored.key = server.key
            await restored.call("POST", f"{path}/resume", {}, expect=200)
            posted = await restored.post()
            for event_id in (done, waiting, posted):
                await restored.settled(event_id)
        assert {event_id: ledger.counts["/hook", event_id] for event_id in (done, waiting, posted)} == {
            done: 1, waiting: 1, posted: 1,
        }  # fmt: skip


async def test_f29_midnight_passes_under_load() -> None:
    await asyncio.sleep(until_tomorrow_s())
    async with running() as server, receiver() as ledger:
        await subscribe(server, ledger)
        async with database(server) as operator:
            async with Load(server) as load:
                await load.until(SOME)
                await operator.execute(
                    "create or replace function hookpost_now() returns timestamptz language sql volatile as"
                    " $$ select clock_timestamp() + interval '1 day' $$"
                )
                await load.until(SOME)
            await ledger.until_all(load.accepted)
            check(load, ledger)
            days = await operator.fetch("select distinct day from events order by day")
            assert len(days) == 2
            assert (days[1]["day"] - days[0]["day"]).days == 1
            ordered = await operator.fetchval(
                "select bool_and(day >= before) from"
                " (select day, lag(day, 1, day) over (partition by shard order by seq) as before from events) e"
            )
            assert ordered
            # The last ones have arrived and may not be settled yet.
            async with asyncio.timeout(WAIT_S):
                while await operator.fetchval("select count(distinct event_id) from attempts") < len(load.accepted):
                    await asyncio.sleep(0.02)


async def test_kill_9_of_the_whole_server_then_the_next_start_adopts_the_database_and_goes_on() -> None:
    folder = fresh_folder()
    try:
        async with receiver() as ledger:
            port = str(free_port())
            server = Hookpost(folder / "data", "--port", port)
            await server.start()
            await subscribe(server, ledger)
            load = Load(server)
            async with load:
                await load.until(SOME)
                postmaster, key = server.postmaster(), server.key
                await server.kill()
                again = Hookpost(folder / "data", "--port", port)
                again.key = key
                await again.start()
                try:
                    assert again.postmaster() == postmaster
                    assert any("postgres_adopted" in line for line in again.lines)
                    await load.until(SOME)
                    await load.stop()
                    await ledger.until_all(load.accepted)
                    check(load, ledger)
                finally:
                    assert await again.stop() == 0
        assert not alive(postmaster), "the adopted PostgreSQL still runs after an orderly stop"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


OWNS = """
select exists (select from shards s join nodes n on n.node_id = s.owner where n.name = 'worker-1' and ($1 or n.expires_at > now()))
"""


async def stop_an_owner(server: Hookpost, operator: asyncpg.Connection) -> None:
    """SIGSTOP of worker-1 while it has shards. A machine that stood still may have cost it all of them a moment ago."""
    async with asyncio.timeout(WAIT_S):
        while True:
            server.kill_child("worker-1", signal.SIGSTOP)
            if await operator.fetchval(OWNS, False):
                return
            server.kill_child("worker-1", signal.SIGCONT)
            await asyncio.sleep(0.1)


async def until_taken_over(operator: asyncpg.Connection) -> None:
    """Nothing is worker-1's any more, whether its lease is over or not."""
    async with asyncio.timeout(WAIT_S):
        while await operator.fetchval(OWNS, True):
            await asyncio.sleep(0.05)


async def test_f3_f30_a_worker_stopped_for_longer_than_its_lease_writes_nothing_and_another_takes_over() -> None:
    async with running("--workers", "2", lease_s="3", renew_s="0.9") as server, receiver() as ledger:
        await subscribe(server, ledger)
        for name in ("worker-1", "worker-2"):
            await server.until_line(rf"{name}\s+shards_acquired")
        async with database(server) as operator:
            async with Load(server) as load:
                await load.until(SOME)
                await stop_an_owner(server, operator)
                lost = sum(bool(re.search(r"worker-1\s+lease_lost", line)) for line in server.lines)
                await until_taken_over(operator)
                await load.until(SOME)
                server.kill_child("worker-1", signal.SIGCONT)
                await server.until_line(r"worker-1\s+lease_lost", count=lost + 1)
                await load.until(SOME)
            await ledger.until_all(load.accepted)
            check(load, ledger)
            twice = await operator.fetchval(
                "select count(*) from (select from attempts group by event_id, endpoint_id, generation, retry_count"
                " having count(*) > 1) a"
            )
            assert twice == 0


async def test_i23_sigterm_finishes_what_is_in_flight_and_leaves_nothing_that_could_repeat() -> None:
    folder = fresh_folder()
    release = asyncio.Event()

    async def slow(arrival, writer):  # type: ignore[no-untyped-def]
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    try:
        async with receiver() as ledger:
            ledger.handlers["/hook"] = slow
            server = await Hookpost(folder / "data", stop_s="300").start()
            await subscribe(server, ledger)
            posted = {await server.post() for _ in range(10)}
            await ledger.until_all(posted)
            stopping = asyncio.create_task(server.stop())
            await server.until_line("server_stopping")
            release.set()
            assert await stopping == 0
            again = await Hookpost(folder / "data").start()
            again.key = server.key
            try:
                for event_id in posted:
                    event = await again.settled(event_id)
                    assert event["deliveries"][0]["attempt_count"] == 1
                assert duplicates(ledger) == 0
            finally:
                assert await again.stop() == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
