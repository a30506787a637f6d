"""F32: a dump in an empty database is started paused, says what it would send, and sends it at the operator's word."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from hookpost.storage.postgres.embedded import EmbeddedPostgres, bin_dir, find_running
from tests.e2e.harness import Hookpost, answer, command, fresh_folder, journal_of, receiver, running, why

pytestmark = pytest.mark.process


# A restored worker waits for the lease of the one that the dump tells of.
SETTINGS = {"payload_inline_max": "100", "lease_s": "6", "renew_s": "0.9"}


async def run(program: str, *arguments: str) -> bytes:
    """One of PostgreSQL's own programs, to its end."""
    process = await asyncio.create_subprocess_exec(
        bin_dir() / program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


async def restore(dump: Path, folder: Path) -> None:
    """Into the empty database of a fresh data directory."""
    embedded = EmbeddedPostgres(folder)
    dsn = await asyncio.to_thread(embedded.start)
    try:
        await run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", str(dump), dsn)
    finally:
        await asyncio.to_thread(embedded.stop)


def told(out: str) -> dict[str, int]:
    """How many deliveries for each endpoint."""
    return {found[2]: int(found[1]) for found in re.finditer(r"(\d+)  (ep_\w+)", out)}


async def test_a_restored_dump_sends_at_the_operators_word_what_it_has_no_record_of() -> None:
    place = fresh_folder()
    try:
        async with receiver() as found:
            down = True

            async def flaky(arrival: object, writer: asyncio.StreamWriter) -> None:
                writer.write(answer(503 if down else 200))

            found.handlers["/flaky"] = flaky
            async with running(retry_base_s="0.2", breaker_failures="1000", **SETTINGS) as server:
                healthy = await server.endpoint(found.url(), events=["early"])
                flaky_one = await server.endpoint(found.url("/flaky"), events=["late"])
                early = {await server.post("early", "x" * size) for size in (1, 1000)}
                for event_id in early:
                    await server.settled(event_id)
                late = {await server.post("late", "x" * size) for size in (1, 1000)}
                for event_id in late:
                    await server.attempts(event_id)
                dsn = find_running(server.folder)
                assert dsn is not None
                dump = place / "dump.sql"
                dump.write_bytes(await run("pg_dump", "--no-owner", dsn))
                # After the dump: what waited is delivered, and one more event comes, of which the dump knows nothing.
                down = False
                for event_id in late:
                    await server.settled(event_id)
                lost = await server.post("early", "lost")
                await server.settled(lost)
                await server.stop()
                journal = journal_of({"data_dir": str(server.folder)})
                shutil.copytree(server.folder / "payloads", place / "data" / "payloads")
                shutil.copy(server.folder / "encryption.keys", place / "data" / "encryption.keys")
                key = server.key
            await restore(dump, place / "data")
            before = dict(found.counts)
            restored = Hookpost(place / "data", "--paused", **SETTINGS | {"lease_s": "30", "renew_s": "4"}, **journal)
            await restored.start()
            try:
                restored.key = key
                meanwhile = await restored.post("early", "meanwhile")
                accepted = {meanwhile}
                if journal:
                    # Brokers are no part of a dump: what came after it is taken over from them once more.
                    accepted.add(lost)
                    await restored.polled("/v1/events?type=early", lambda listed: len(listed["data"]) == 4)
                shown = await command("sending", data_dir=str(place / "data"))
                assert told(shown.out) == {flaky_one["endpoint_id"]: 2, healthy["endpoint_id"]: len(accepted)}
                assert f"{2 + len(accepted)}  deliveries in all" in shown.out
                await restored.until_line("sending_paused")
                assert found.counts == before
                told_why, said = await why(restored, meanwhile, healthy["endpoint_id"])
                assert told_why["status"] == "queued"
                assert "Nothing is sent on the whole platform: the operator has paused it" in said
                assert "-> The operator says `hookpost sending --go`" in said
                went = await command("sending", "--go", data_dir=str(place / "data"))
                assert went.out == "sending goes on\n"
                for event_id in late | accepted:
                    await restored.settled(event_id)
                again = {key: count - before.get(key, 0) for key, count in found.counts.items()}
                assert {key: count for key, count in again.items() if count} == {
                    ("/flaky", event_id): 1 for event_id in late
                } | {("/hook", event_id): 1 for event_id in accepted}
                for event_id in late:
                    attempts = await restored.attempts(event_id, 2)
                    assert attempts[-1]["possible_duplicate"]
            finally:
                await restored.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
