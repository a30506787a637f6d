"""F31: workers of the release before go on while the schema of this one is put under them, and nothing is lost.

The release before is the newest tag that is older than this commit. As long as there is none, it is the code that knew
the first schema alone: the commit before the second migration was added.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import asyncpg
import pytest

from hookpost.storage.postgres import migrate
from hookpost.storage.postgres.embedded import find_running
from tests.e2e.harness import Arrival, Hookpost, Load, answer, command, fresh_folder, receiver
from tests.e2e.ports import free_port

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SECOND_MIGRATION = "src/hookpost/storage/postgres/migrations/versions/0002_policies.py"
SOME = 300


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def release_before() -> str:
    """A tag or a commit; skips where the history is not there."""
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^").decode().strip()
    if tag:
        return tag
    added = git("log", "--diff-filter=A", "--format=%H", "--", SECOND_MIGRATION).decode().split()
    before = f"{added[-1]}^" if added else ""
    if not git("rev-parse", "--verify", before):
        # No want of the machine, so no failure in CI either: whoever hands over one commit has no release before it.
        pytest.skip("the release before is in the history, and this checkout has none: git fetch --unshallow --tags")
    return before


def checkout(release: str, folder: Path) -> Path:
    """The package as it was; what to put into PYTHONPATH."""
    archive = folder / "release.tar"
    git("archive", f"--output={archive}", release, "src/hookpost")
    shutil.unpack_archive(archive, folder)
    return folder / "src"


async def test_f31_old_processes_deliver_on_the_new_schema_and_new_ones_take_over_what_they_left() -> None:
    folder = fresh_folder()
    port = str(free_port())
    old = Hookpost(
        folder / "data", "--port", port, source=checkout(release_before(), folder), retry_base_s="0.5", retry_cap_s="1"
    )
    broken = True

    async def later(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(503 if broken else 200))

    async def never(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(404))

    try:
        async with receiver() as ledger:
            ledger.handlers |= {"/later": later, "/never": never}
            await old.start()
            for path in ("/hook", "/later", "/never", "/paused"):
                events = ["load.*"] if path == "/hook" else [path[1:] + ".*"]
                made = await old.endpoint(ledger.url(path), events=events)
                ledger.secrets[path] = made["secret"]
            await old.call("POST", f"/v1/webhook_endpoints/{made['endpoint_id']}/pause", {}, expect=200)
            # Rows of every kind: delivered, waiting for a retry, dead, waiting for an endpoint that is paused.
            waiting, dead, paused = [await old.post(type_) for type_ in ("later.a", "never.a", "paused.a")]
            await old.settled(dead, "dead")
            await old.settled(waiting, "waiting")

            async with Load(old) as load:
                await load.until(SOME)
                migrated = await command("migrate", data_dir=str(old.folder))
                assert migrated.code == 0, migrated.err
                assert migrated.out.endswith(f"the schema is at revision {migrate.head()}\n")
                on_new_schema = set(load.accepted)
                await load.until(SOME)
                await ledger.until_all(on_new_schema | set(load.accepted))
                await ledger.until(lambda: ledger.counts.get(("/later", waiting), 0) >= 3, what="retries")
                # A process that dies is replaced by one of its own release.
                old.kill_child("worker-1")
                await old.until_line("shards_acquired", count=2)
                await load.until(SOME)
                # The server of the new release adopts the database; what the old one left open is done by it.
                await old.kill()
                new = Hookpost(folder / "data", "--port", port, retry_base_s="0.5", retry_cap_s="1")
                new.key = old.key
                await new.start()
                try:
                    await load.until(SOME)
                    await load.stop()
                    await ledger.until_all(load.accepted)
                    broken = False
                    await new.call("POST", f"/v1/webhook_endpoints/{made['endpoint_id']}/resume", {}, expect=200)
                    for event_id in (waiting, paused):
                        await new.settled(event_id)
                    await new.settled(dead, "dead")
                    assert ledger.ids() == load.accepted
                    assert not ledger.forged
                    await check_recorded(new, load)
                finally:
                    assert await new.stop() == 0
    finally:
        await old.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def check_recorded(server: Hookpost, load: Load) -> None:
    """Every event is stored once and recorded as delivered once."""
    connection = await asyncpg.connect(find_running(server.folder))
    try:
        stored, delivered, twice = await connection.fetchrow(
            "select (select count(*) from events where type = 'load.test'), count(*), count(*) filter (where times > 1)"
            " from (select count(*) as times from attempts join events using (event_id)"
            " where type = 'load.test' and outcome = 'delivered' group by event_id) a"
        )
    finally:
        await connection.close()
    assert stored == len(load.accepted)
    assert delivered <= stored
    assert twice == 0
