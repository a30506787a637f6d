"""The database comes back from a base backup and its archived WAL: what it has recorded as delivered is not sent again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from hookpost.storage.postgres.embedded import EmbeddedPostgres, find_running
from tests.e2e.harness import Hookpost, Load, command, fresh_folder, receiver
from tests.e2e.test_restore import run
from tests.storage.driver import until

pytestmark = pytest.mark.process

SETTINGS = {"lease_s": "3", "renew_s": "0.9"}
SOME = 150
# A restored worker waits for the lease of the one that the archive tells of; its own may be longer.
RESTORED = {"lease_s": "30", "renew_s": "4"}
RECORDED = """
select array_agg(distinct 'evt_' || replace(event_id::text, '-', '')) from attempts where outcome = 'delivered'
"""


def own_as(folder: Path, data: Path) -> None:
    """Give a folder to the user the database runs as."""
    owner = data.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def configure(data: Path, **settings: str) -> None:
    """Settings of one's own go below the include line; the last one counts."""
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


async def ask(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def archiving(folder: Path, archive: Path) -> None:
    """A fresh database that archives its WAL."""
    embedded = EmbeddedPostgres(folder)
    await asyncio.to_thread(embedded.start)
    await asyncio.to_thread(embedded.stop)
    data = folder / "postgres"
    archive.mkdir()
    own_as(archive, data)
    configure(data, archive_mode="on", archive_command=f"cp %p {archive}/%f")


async def archived(dsn: str) -> None:
    """All that is committed by now lies in the archive."""
    name = await ask(dsn, "select pg_walfile_name(pg_switch_wal())")

    async def there() -> bool:
        return bool(await ask(dsn, f"select last_archived_wal >= '{name}' from pg_stat_archiver"))

    await until(there)


async def recorded_enough(dsn: str) -> None:
    """However busy the machine is, the archive will know of deliveries."""

    async def there() -> bool:
        return len(await ask(dsn, RECORDED) or ()) >= SOME

    await until(there)


async def crash(server: Hookpost, data: Path) -> None:
    """Server, workers and database are gone at once, and nothing was written out."""
    postmaster = server.postmaster()
    for child in server.children.values():
        os.kill(child, signal.SIGKILL)
    await server.kill()
    os.kill(postmaster, signal.SIGQUIT)

    async def ended() -> bool:
        return not (data / "postmaster.pid").exists()

    await until(ended)


async def test_what_the_archive_holds_as_delivered_is_not_sent_again_and_what_was_owed_is() -> None:
    place = fresh_folder()
    archive, lost, restored = place / "archive", place / "data", place / "restored"
    try:
        await archiving(lost, archive)
        async with receiver() as found:
            server = await Hookpost(lost, **SETTINGS).start()
            await server.endpoint(found.url(), events=["load.*"])
            paused = await server.endpoint(found.url("/paused"), events=["paused"])
            path = f"/v1/webhook_endpoints/{paused['endpoint_id']}"
            await server.call("POST", f"{path}/pause", {}, expect=200)
            dsn = find_running(lost)
            assert dsn is not None
            async with Load(server) as load:
                await load.until(SOME)
                await run("pg_basebackup", "--dbname", dsn, "--pgdata", str(restored / "postgres"), "--wal-method=none",
                          "--checkpoint=fast", "--no-sync")  # fmt: skip
                await load.until(SOME)
                owed = await server.post("paused")
                await recorded_enough(dsn)
                await archived(dsn)
                await load.until(SOME)
                await load.stop()
            await crash(server, lost / "postgres")

            data = restored / "postgres"
            own_as(restored, lost / "postgres")
            shutil.copy(lost / "encryption.keys", restored / "encryption.keys")
            configure(data, archive_mode="off", restore_command=f"cp {archive}/%f %p")
            (data / "recovery.signal").touch()
            embedded = EmbeddedPostgres(restored)
            dsn = await asyncio.to_thread(embedded.start)
            recorded = set(await ask(dsn, RECORDED))
            known = await ask(dsn, "select count(*) from events where type = 'load.test'")
            await asyncio.to_thread(embedded.stop)
            assert SOME <= len(recorded) <= known <= len(load.accepted), "the archive holds more than the base backup"

            before = dict(found.counts)
            again = Hookpost(restored, "--paused", **RESTORED)
            await again.start()
            try:
                again.key = server.key
                shown = await command("sending", data_dir=str(restored))
                assert f"{known - len(recorded) + 1}  deliveries in all" in shown.out
                await command("sending", "--go", data_dir=str(restored))
                await again.call("POST", f"{path}/resume", {}, expect=200)
                await again.settled(owed)
                # Behind whatever was left open in its shards: all of that has been sent when these have arrived.
                for _ in range(8):
                    await again.settled(await again.post("load.last"))
                twice = {
                    event_id for (_, event_id), count in found.counts.items() if count > before.get((_, event_id), 0)
                }
                assert not twice & recorded
            finally:
                assert await again.stop() == 0
    finally:
        shutil.rmtree(place, ignore_errors=True)
