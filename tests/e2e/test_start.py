"""Starting, refusing to start, stopping, and the commands of an operator, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from standardwebhooks import Webhook

from hookpost.app import cores
from hookpost.storage.postgres.embedded import find_running
from tests.conftest import in_database
from tests.e2e.harness import (
    ADMIN_KEY,
    PATIENT,
    WAIT_S,
    Arrival,
    Ended,
    Hookpost,
    answer,
    command,
    fresh_folder,
    receiver,
    running,
)
from tests.e2e.processes import alive, descendants

pytestmark = pytest.mark.process

SERVERS = ("serve", "api", "worker", "migrate")


@pytest.fixture
def place() -> Iterator[Path]:
    folder = fresh_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def empty(server: str) -> AsyncIterator[str]:
    """The DSN of an empty database on a PostgreSQL of its own."""
    name = f"e_{uuid4().hex}"
    admin = await asyncpg.connect(server)
    try:
        await admin.execute(f"create database {name}")
        yield in_database(server, name)
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


async def every(*names: str, **settings: str) -> list[Ended]:
    """Several commands with the same settings, at once."""
    return list(await asyncio.gather(*(command(name, port="0", **settings) for name in names)))


def assert_refused(ended: Ended, *words: str) -> None:
    """Exit code 1 and one line on standard error that says why; no traceback."""
    assert ended.code == 1, ended
    faults = [line for line in ended.err.splitlines() if line.startswith("hookpost: ")]
    assert faults == [ended.said], ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.said, ended.said


async def until_dead(pids: set[int], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while living := {pid for pid in pids if alive(pid)}:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in living]
        await asyncio.sleep(0.05)


# ---- the data directory ---------------------------------------------------------------------------------------------


async def test_f13_a_second_server_on_one_directory_is_refused_and_the_first_goes_on() -> None:
    async with running(first_start=True) as first, receiver() as ledger:
        assert first.process is not None
        second = await command("serve", data_dir=str(first.folder), port="0")
        assert_refused(second, f"pid {first.process.pid}", str(first.folder), "--data-dir")
        await first.endpoint(ledger.url())
        await ledger.until_all({await first.post()})


async def test_a_data_directory_may_lie_deeper_than_a_socket_path_can() -> None:
    place = fresh_folder()
    deep = place / ("d" * 100) / ("e" * 100) / "f f"
    try:
        async with running(folder=deep) as server, receiver() as ledger:
            assert len(str(server.folder)) > 200
            await server.endpoint(ledger.url())
            await ledger.until_all({await server.post()})
            assert await server.stop() == 0
    finally:
        shutil.rmtree(place, ignore_errors=True)


# ---- the database ---------------------------------------------------------------------------------------------------


async def test_an_unreachable_database_is_named_without_its_password(place: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"postgresql://hookpost:canary-password@127.0.0.1:{bound.getsockname()[1]}/hookpost"
        for ended in await every(*SERVERS, database_url=url, data_dir=str(place)):
            assert_refused(ended, "the database cannot be reached", "HOOKPOST_DATABASE_URL")
            assert "canary-password" not in ended.err + ended.out


async def set_in_database(dsn: str, setting: str) -> None:
    """For all connections to come."""
    admin = await asyncpg.connect(dsn)
    name = await admin.fetchval("select current_database()")
    await admin.execute(f"alter database {name} set {setting}")
    await admin.close()


async def test_a_database_that_may_lose_commits_is_refused_unless_a_setting_says_so(empty: str) -> None:
    await set_in_database(empty, "synchronous_commit = off")
    for ended in await every(*SERVERS, database_url=empty):
        assert_refused(ended, "synchronous_commit=off", "HOOKPOST_DATABASE_UNSAFE_OK=true")
    async with running(database_url=empty, database_unsafe_ok="true") as server, receiver() as ledger:
        assert any("synchronous_commit=off" in line for line in server.lines)
        # Others may have servers on this database: whose process it is must be told.
        assert server.children.keys() == {f"{socket.gethostname()}-{name}" for name in ("api-1", "worker-1")}
        await server.endpoint(ledger.url())
        await ledger.until_all({await server.post()})


async def test_the_doctor_tells_what_makes_all_commits_wait(empty: str) -> None:
    await set_in_database(empty, "wal_init_zero = on")
    doctor = await command("doctor", database_url=empty)
    assert re.search(
        r"^ok +write-ahead log: wal_init_zero is on: a pause of .*; set it to off", doctor.out, re.MULTILINE
    )


async def test_a_schema_newer_than_the_code_is_refused_and_left_alone(database: str, sql: Any) -> None:
    await sql.execute("update alembic_version set version_num = '9999'")
    for ended in await every(*SERVERS, database_url=database):
        assert_refused(ended, "9999", "newer Hookpost")
    assert await sql.fetchval("select version_num from alembic_version") == "9999"


async def test_processes_refuse_a_database_that_was_not_migrated(empty: str) -> None:
    for ended in await every("api", "worker", database_url=empty):
        assert_refused(ended, "revision empty", "hookpost migrate")


async def test_without_a_database_and_a_server_the_processes_say_what_to_do(place: Path) -> None:
    for ended in await every("api", "worker", "migrate", data_dir=str(place / "data")):
        assert_refused(ended, "HOOKPOST_DATABASE_URL", "hookpost serve")


@asynccontextmanager
async def part(name: str, ready: str, *arguments: str, **settings: str) -> AsyncIterator[Hookpost]:
    """One process of a server on a database that is not ours; it ends in order."""
    process = Hookpost(Path("/nonexistent"), *arguments, command=name, **settings)
    await process.start(ready=ready)
    try:
        yield process
    finally:
        code = await process.stop()
    assert code == 0, process.lines


async def test_migrate_api_and_workers_as_processes_of_their_own_deliver(empty: str) -> None:
    migrated = await command("migrate", database_url=empty, admin_key=ADMIN_KEY)
    assert migrated.code == 0, migrated.err
    key = re.search(r"its API key\s+(\S+)", migrated.out)
    assert key is not None
    again = await command("migrate", database_url=empty, admin_key=ADMIN_KEY)
    assert (again.code, "API key" in again.out) == (0, False)
    async with (
        receiver() as ledger,
        part("api", "api_ready", database_url=empty) as api,
        part("worker", "shards_acquired", "--name", "one", database_url=empty) as one,
    ):
        api.key = key[1]
        endpoint = await api.endpoint(ledger.url())
        ledger.secrets["/hook"] = endpoint["secret"]
        posted = {await api.post() for _ in range(20)}
        async with part("worker", "shards_acquired", "--name", "two", database_url=empty):
            await one.until_line("shards_released")
            posted |= {await api.post() for _ in range(20)}
            await ledger.until_all(posted)
        posted |= {await api.post() for _ in range(20)}
        await ledger.until_all(posted)
        for event_id in posted:
            await api.settled(event_id)
        assert not ledger.forged
        assert all(count == 1 for count in ledger.counts.values())


# ---- settings -------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_named_and_the_database_does_not_stay_behind(place: Path) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        ended = await command("serve", "--port", str(port), data_dir=str(place / "data"))
    assert_refused(ended, f"127.0.0.1:{port}", "in use", "--port")
    assert find_running(place / "data") is None
    assert not (place / "data" / "postgres" / "postmaster.pid").exists()


async def test_a_setting_that_cannot_be_used_is_named(place: Path) -> None:
    wrong, contradictory, secret = await asyncio.gather(
        command("serve", data_dir=str(place), workers="many"),
        command("serve", data_dir=str(place), connect_timeout_s="9", first_byte_timeout_s="8"),
        command("serve", data_dir=str(place), admin_key="canary"),
    )
    assert "HOOKPOST_WORKERS=many" in wrong.err
    assert "HOOKPOST_CONNECT_TIMEOUT_S (9) < HOOKPOST_FIRST_BYTE_TIMEOUT_S (8)" in contradictory.err
    assert "HOOKPOST_ADMIN_KEY" in secret.err
    assert "canary" not in secret.err
    assert {(ended.code, "Traceback" in ended.err) for ended in (wrong, contradictory, secret)} == {(1, False)}
    assert list(place.iterdir()) == []


async def test_a_variable_that_is_no_setting_is_pointed_out() -> None:
    async with running(worker="2") as server:
        assert any("HOOKPOST_WORKER" in line and "did you mean HOOKPOST_WORKERS" in line for line in server.lines)


# ---- ends -----------------------------------------------------------------------------------------------------------


async def test_sigterm_ends_with_code_0_and_nothing_is_left() -> None:
    async with running("--api-processes", "2", "--workers", "2") as server:
        assert server.process is not None
        family = descendants(server.process.pid) | {server.postmaster()} | descendants(server.postmaster())
        assert len(family) > 5
        assert await server.stop() == 0
        assert {pid for pid in family if alive(pid)} == set()
        assert not (server.folder / "postgres" / "postmaster.pid").exists()
        assert "server_stopped" in server.lines[-1]


async def test_a_server_that_is_not_told_how_many_starts_as_many_processes_as_config_shows() -> None:
    async with running(workers="", api_processes="") as server:
        shown = await command("config", data_dir=str(server.folder))
        numbers = {kind: int(n) for kind, n in re.findall(r"^HOOKPOST_(WORKERS|API_PROCESSES)=(\d+)", shown.out, re.M)}
        expected = {f"worker-{n}" for n in range(1, numbers["WORKERS"] + 1)}
        expected |= {f"api-{n}" for n in range(1, numbers["API_PROCESSES"] + 1)}
        assert server.children.keys() == expected


async def test_sigterm_before_the_server_is_ready_ends_it_in_order() -> None:
    async with running() as server:
        await server.stop()
        again = Hookpost(server.folder)
        await again.start(wait=False)
        await again.until_line("postgres_started")
        assert await again.stop() == 0
        assert find_running(server.folder) is None


async def test_after_a_kill_9_of_the_supervisor_its_processes_end_and_the_database_waits_for_the_next() -> None:
    async with running("--api-processes", "2", "--workers", "2") as server:
        postmaster = server.postmaster()
        children = set(server.children.values())
        assert len(children) == 4
        assert server.process is not None
        server.process.kill()
        await server.process.wait()
        await until_dead(children)
        assert alive(postmaster)
        again = Hookpost(server.folder)
        again.key = server.key
        await again.start()
        assert again.postmaster() == postmaster
        await again.call("GET", "/readyz", expect=200)
        assert await again.stop() == 0
        assert not alive(postmaster)


async def test_a_stop_in_the_middle_of_a_settle_does_not_lose_what_is_to_be_retried() -> None:
    release = asyncio.Event()

    async def refuse_late(_: Arrival, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(500, b"no"))

    async with running(retry_base_s="3600", stop_s="300") as server, receiver() as ledger:
        ledger.handlers["/hook"] = refuse_late
        endpoint = await server.endpoint(ledger.url())
        event_id = await server.post()
        await ledger.until_all({event_id})
        operator = await asyncpg.connect(find_running(server.folder))
        settles = "select sum(settle_no) from (select max(settle_no) as settle_no from progress group by shard) p"
        blocked = "select exists (select from pg_locks where relation = 'attempts'::regclass and not granted)"

        async def until(query: str, condition: Callable[[Any], bool]) -> None:
            deadline = time.monotonic() + WAIT_S
            while not condition(await operator.fetchval(query)):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

        try:
            before = await operator.fetchval(settles)
            server.kill_child("worker-1", signal.SIGTERM)
            await until(settles, lambda found: found > before)
            async with operator.transaction():
                # The settle of the answer to come stands still; meanwhile the worker is woken for another reason.
                await operator.execute("lock table attempts in access exclusive mode")
                release.set()
                await until(blocked, bool)
                path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
                await server.call("PATCH", path, {"description": "changed"}, expect=200)
                # It has to wait for the lock; one that does not is gone before this.
                deadline = time.monotonic() + 3
                while alive(server.children["worker-1"]) and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
        finally:
            await operator.close()
        await server.until_line("shards_acquired", count=2)
        [attempt] = await server.attempts(event_id)
        assert (attempt["outcome"], attempt["http_status"]) == ("retry", 500)
        event = await server.call("GET", f"/v1/events/{event_id}", expect=200)
        [delivery] = event["deliveries"]
        assert (delivery["status"], delivery["reason"], delivery["attempt_count"]) == ("waiting", "retry", 1)
        assert ledger.counts["/hook", event_id] == 1


# ---- secrets --------------------------------------------------------------------------------------------------------


async def test_keys_are_printed_once_and_no_log_line_holds_a_secret() -> None:
    place = fresh_folder()
    try:
        async with receiver() as ledger:
            ledger.handlers["/sick"] = lambda _, writer: _refuse(writer)
            server = Hookpost(place / "data", log_level="debug", admin_key="", retry_base_s="0.1")
            await server.start()
            assert [line for line in server.lines if "hpk_" in line] == []
            printed = "\n".join(server.output)
            admin = re.search(r"admin key\s+(\S+)", printed)
            assert admin is not None
            assert printed.count(server.key) == printed.count(admin[1]) == 1
            given = "whsec_" + "Y2FuYXJ5" * 5
            made = [
                await server.endpoint(ledger.url("/well")),
                await server.endpoint(ledger.url("/sick"), secret=given),
            ]
            rotated = await server.call(
                "POST", f"/v1/webhook_endpoints/{made[0]['endpoint_id']}/secret/rotate", {}, expect=200
            )
            tenant = await server.call("POST", "/v1/tenants", {"name": "x"}, key=admin[1], expect=201)
            other = await server.call(
                "POST", f"/v1/tenants/{tenant['tenant_id']}/api_keys", {"name": "x"}, key=admin[1], expect=201
            )
            await server.call("GET", "/v1/events", key=other["key"], expect=200)
            await server.call("GET", "/v1/events", key="hpk_canary_key", expect=401)
            event_id = await server.post(payload="canary-payload")
            await server.attempts(event_id, 4)
            os.kill(server.children["worker-1"], signal.SIGKILL)
            await server.until_line("shards_acquired", count=2)
            secrets = [server.key, admin[1], other["key"], "hpk_canary_key", "canary-payload", rotated["secret"]]
            secrets += [endpoint["secret"] for endpoint in made]
            command_lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in server.children.values()]
            assert await server.stop() == 0
            first = list(server.lines)

            again = Hookpost(place / "data", log_level="debug", log_format="json", admin_key="")
            await again.start(wait=False)
            await again.until_line('"server_ready"')
            assert await again.stop() == 0
            assert all(json.loads(line)["event"] for line in again.lines)
            assert [line for line in again.output if "key" in line] == []
            for text in (*first, *again.lines, *again.output, *command_lines):
                for secret in secrets:
                    assert secret.removeprefix("whsec_") not in text
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def _refuse(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(500, b"canary"))


# ---- commands -------------------------------------------------------------------------------------------------------


async def test_config_shows_every_setting_and_masks_secrets(place: Path) -> None:
    ended = await command(
        "config",
        data_dir=str(place),
        admin_key="canary-" + "k" * 24,
        database_url="postgresql://user:canary-password@db.example:5432/hookpost",
        workers="3",
    )
    assert ended.code == 0, ended.err
    assert "canary" not in ended.out + ended.err
    assert f"HOOKPOST_WORKERS=3  (default {cores.workers(cores.usable(), 8)})" in ended.out
    assert re.search(r"^HOOKPOST_DATABASE_URL=postgresql://user:\*+@db.example:5432/hookpost", ended.out, re.MULTILINE)
    settings = re.findall(r"^(HOOKPOST_\w+)=", ended.out, re.MULTILINE)
    assert len(settings) == len(set(settings)) > 30


async def test_verify_judges_offline() -> None:
    secret, body, now = "whsec_" + "Y2FuYXJ5" * 4, b'{"n": 1.0E+5}', 1_700_000_000
    signature = Webhook(secret).sign("evt_1", datetime.fromtimestamp(now, UTC), body.decode())
    headers = ["webhook-id: evt_1", f"Webhook-Timestamp: {now}", f"webhook-signature: {signature}"]
    arguments = [part for header in headers for part in ("-H", header)]
    valid, tampered, late, cut = await asyncio.gather(
        command("verify", *arguments, "--now", str(now + 10), stdin=body, secret=secret),
        command("verify", *arguments, "--now", str(now + 10), stdin=body + b" ", secret=secret),
        command("verify", *arguments, "--now", str(now + 1000), stdin=body, secret=secret),
        command("verify", *arguments[2:], "--now", str(now), stdin=body, secret=secret),
    )
    assert (valid.code, valid.out) == (0, "valid\n")
    assert (tampered.code, late.code, cut.code) == (1, 1, 1)
    assert tampered.out.startswith("invalid: Body altered: white space was added around it.")
    assert late.out.startswith("invalid: Timestamp too old")
    assert "webhook-id" in cut.out


async def test_a_client_command_without_a_server_or_a_key_says_what_to_do() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        no_key, no_server = await asyncio.gather(
            command("events", url=url), command("events", url=url, api_key="hpk_canary")
        )
    assert_refused(no_key, "HOOKPOST_API_KEY")
    assert_refused(no_server, url, "HOOKPOST_URL")
    assert "hpk_canary" not in no_server.err


async def test_the_commands_work_on_a_running_server(place: Path) -> None:
    async with running() as server, receiver() as ledger:
        tenant, admin = {"url": server.url, "api_key": server.key}, {"url": server.url, "api_key": ADMIN_KEY}

        async def done(*arguments: str, stdin: bytes = b"", **settings: str) -> Any:
            ended = await command(*arguments, stdin=stdin, **settings)
            assert ended.code == 0, ended
            return json.loads(ended.out)

        made = await done("endpoints", "create", ledger.url(), "--event", "invoice.*", **tenant)
        ledger.secrets["/hook"] = made["secret"]
        file = place / "payload.json"
        file.write_bytes(b'{"b" :1.0E+5, "a": "\xc3\xa9"}')
        sent = [
            await done("send", "invoice.paid", f"@{file}", "--key", "one", **tenant),
            await done("send", "invoice.paid", f"@{file}", "--key", "one", **tenant),
            await done("send", "other", "-", "--to", made["endpoint_id"], stdin=b"[1, 2]", **tenant),
        ]
        assert [answered["duplicate"] for answered in sent] == [False, True, False]
        first, last = sent[0]["event_id"], sent[2]["event_id"]
        tried = await done(
            "endpoints", "test", made["endpoint_id"], "--type", "a.b", "--payload", '{"n": 1.50}', **tenant
        )
        await ledger.until_all({first, last, tried["event_id"]})
        assert {arrival.event_id: arrival.body for arrival in ledger.arrivals} == {
            first: file.read_bytes(),
            last: b"[1, 2]",
            tried["event_id"]: b'{"n":1.5}',
        }
        await server.settled(first)
        assert await done("replay", first, "--endpoint", made["endpoint_id"], **tenant) == {"delivery_count": 1}
        await ledger.until(lambda: ledger.counts["/hook", first] == 2)
        await server.attempts(first, 2)
        shown, listed, endpoints, tenants, headers, doctor = await asyncio.gather(
            done("events", first, **tenant),
            done("events", "--type", "other", **tenant),
            done("endpoints", "list", **tenant),
            done("tenants", "list", **admin),
            done("endpoints", "headers", made["endpoint_id"], "--set", "x-team: payments", **tenant),
            command("doctor", data_dir=str(server.folder)),
        )
        assert [attempt["outcome"] for attempt in shown["attempts"]] == ["delivered", "delivered"]
        assert [event["event_id"] for event in listed] == [last]
        assert [endpoint["endpoint_id"] for endpoint in endpoints] == [made["endpoint_id"]]
        assert [found["name"] for found in tenants] == ["default"]
        assert headers == {"x-team": "payments"}
        assert await done("endpoints", "tls", made["endpoint_id"], **tenant) is None
        assert "reachable, durable" in doctor.out
        # What pg_dump needs.
        assert re.search(
            r"^ok +embedded PostgreSQL: running, at postgresql://\S+; its programs are in /", doctor.out, re.MULTILINE
        )
        assert re.search(r"^ok +schema: revision \d+", doctor.out, re.MULTILINE), doctor.out
        assert re.search(
            r"^ok +write-ahead log: wal_init_zero is off: it grows without a pause$", doctor.out, re.MULTILINE
        )
        assert doctor.code == (1 if "BAD" in doctor.out else 0)

        acme = await done("tenants", "create", "acme", **admin)
        key = await done("keys", "create", acme["tenant_id"], "ci", "--scope", "read", **admin)
        theirs = {"url": server.url, "api_key": key["key"]}
        assert await done("events", **theirs) == []
        added = await command("shards", "add", "2", data_dir=str(server.folder))
        assert "the pool default has 10 shards" in added.out
        spread, listing = await asyncio.gather(
            done("tenants", "move", tenants[0]["tenant_id"], "--spread", "10", **admin),
            command("shards", "list", data_dir=str(server.folder)),
        )
        assert (spread["spread"], len(listing.out.splitlines())) == (10, 11)
        refused, foreign, nobody = await asyncio.gather(
            command("send", "invoice.paid", **theirs),
            command("events", first, **theirs),
            command("tenants", "list", **theirs),
        )
        assert_refused(refused, "403", "events:write")
        assert_refused(foreign, "404")
        assert nobody.code == 1
        keys = await done("keys", "list", acme["tenant_id"], **admin)
        assert [(found["name"], found["scopes"]) for found in keys] == [("ci", ["read"])]
        revoked = await command("keys", "revoke", acme["tenant_id"], key["api_key_id"], **admin)
        assert (revoked.code, revoked.out) == (0, "revoked\n")
        deleted = await command("endpoints", "delete", made["endpoint_id"], **tenant)
        assert (deleted.code, deleted.out) == (0, "deleted\n")
        assert await done("endpoints", "list", **tenant) == []
        wrong = await command("send", "not a type", **tenant)
        assert wrong.code == 1
        assert "type" in wrong.err
        assert not ledger.forged


async def test_doctor_finds_what_is_wrong(place: Path, empty: str) -> None:
    fresh, unmigrated, mistyped = await asyncio.gather(
        command("doctor", data_dir=str(place / "data")),
        command("doctor", data_dir=str(place / "data"), database_url=empty),
        command("doctor", data_dir=str(place / "data"), worker="2"),
    )
    assert re.search(r"^ok +embedded PostgreSQL: .*not running", fresh.out, re.MULTILINE), fresh
    assert unmigrated.code == 1
    assert re.search(r"^BAD +schema: revision empty", unmigrated.out, re.MULTILINE)
    assert mistyped.code == 1
    assert re.search(r"^BAD +HOOKPOST_WORKER: .*HOOKPOST_WORKERS", mistyped.out, re.MULTILINE)
    assert not (place / "data").exists()


async def test_the_demo_delivers_everything_and_says_so_in_its_last_line() -> None:
    ended = await command("demo", "--events", "200", "--exit", **PATIENT)
    assert ended.code == 0, ended
    report = json.loads(ended.out.rstrip().rpartition("\n")[2])
    assert (report["accepted"], report["delivered"], report["lost"], report["duplicates"]) == (200, 200, 0, 0)
    assert 0 < report["p50_ms"] <= report["p99_ms"]
