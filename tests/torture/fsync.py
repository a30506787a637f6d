"""F15: fsync fails, as on a dying disk: python -m tests.torture.fsync (root, loop devices, mkfs.ext4; half a minute).

The embedded PostgreSQL lies on a file system of its own whose disk is a sparse file on a small tmpfs. Once that is full,
writing to the disk fails behind the file system's back: it has room by its own account, so nothing is refused, and fsync
answers EIO. PostgreSQL must end itself then (what fsync has failed for may be gone), nothing may be acknowledged that is
not on the disk, and a start on the disk as it is, with no page of it cached, must find everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from hookpost.storage.contract import Appended, NewEvent, StoreUnavailable
from hookpost.storage.postgres import store as postgres
from hookpost.storage.postgres.embedded import EmbeddedPostgres

# PostgreSQL's files take some 80 MB when they are fresh.
BACKING, DISK = "220m", "1G"
BATCH, PAYLOAD = 50, b'{"x":"' + b"y" * 2000 + b'"}'
FIRST_BATCHES = 100
ROUNDS_MAX = 20_000


def _run(*command: str | Path) -> None:
    subprocess.run([str(each) for each in command], check=True)


class Disk:
    """A disk that fails when its backing is full."""

    def __init__(self, folder: Path) -> None:
        self._backing, self.place = folder / "backing", folder / "disk"
        self._image, self._hog = self._backing / "image", self._backing / "hog"
        for each in (self._backing, self.place):
            each.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={BACKING}", "tmpfs", self._backing)
        _run("truncate", "-s", DISK, self._image)
        _run("mkfs.ext4", "-q", self._image)
        self.insert()

    def insert(self) -> None:
        """Mount it; from then on nothing is known of it but what is on it."""
        _run("mount", "-o", "loop,errors=continue", self._image, self.place)
        self.place.chmod(0o755)

    def remove(self) -> None:
        """Unmount it, and mend what a crash leaves of a file system."""
        _run("umount", self.place)
        subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, check=False)

    def fail(self) -> None:
        """From now on what is written to new places of it fails."""
        with self._hog.open("wb", buffering=0) as hog:
            try:
                while hog.write(bytes(1 << 20)):
                    pass
            except OSError:
                return

    def heal(self) -> None:
        """Writing works again; what failed is lost."""
        self._hog.unlink()

    def throw_away(self) -> None:
        """Whatever state it is in."""
        for place in (self.place, self._backing):
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


async def load(dsn: str, tenant_id: UUID, accepted: list[UUID], *, batches: int) -> bool:
    """Append so many batches, or until the store fails; did it never?"""
    store = postgres.PostgresStore(dsn, application="fsync")
    await store.open()
    try:
        routes = await store.load_routes(tenant_id)
        assert routes is not None
        for _ in range(batches):
            events = [NewEvent(uuid7(), tenant_id, "a.b", PAYLOAD, ()) for _ in range(BATCH)]
            answer = await store.append(0, events, {tenant_id: routes.config_version})
            assert isinstance(answer, list)
            accepted += [each.event_id for each in answer if isinstance(each, Appended)]
    except StoreUnavailable:
        return False
    else:
        return True
    finally:
        await store.close()


async def stored(dsn: str) -> set[UUID]:
    """All events."""
    connection = await asyncpg.connect(dsn)
    try:
        return {row["event_id"] for row in await connection.fetch("select event_id from events")}
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Found:
    """``panics``: lines of PostgreSQL's log that say why it ended itself. ``behind`` were acknowledged after the disk had
    begun to fail, out of what it still had room for; ``lost`` of all are not there any more."""

    panics: list[str]
    accepted: int
    behind: int
    lost: int


def torture(folder: Path) -> Found:
    """Fail its disk, and start on what is left of it. Raises AssertionError when the disk did not fail."""
    disk, accepted, tenant_id = Disk(folder), list[UUID](), uuid7()
    server = EmbeddedPostgres(disk.place / "data")
    try:
        dsn = server.start()
        asyncio.run(postgres.migrate_database(dsn))
        asyncio.run(postgres.bootstrap(dsn, shards=1, tenant_id=tenant_id, pool="default"))
        asyncio.run(load(dsn, tenant_id, accepted, batches=FIRST_BATCHES))
        before = len(accepted)
        disk.fail()
        assert not asyncio.run(load(dsn, tenant_id, accepted, batches=ROUNDS_MAX)), "the disk never failed"
        log = "\n".join(path.read_text(errors="replace") for path in disk.place.rglob("*.log"))
        panics = [line for line in log.splitlines() if "PANIC" in line]
        server.stop()
        disk.heal()
        disk.remove()
        disk.insert()
        server = EmbeddedPostgres(disk.place / "data")
        lost = set(accepted) - asyncio.run(stored(server.start()))
        return Found(panics, len(accepted), len(accepted) - before, len(lost))
    finally:
        server.stop()
        disk.throw_away()


def main() -> int:
    """The exit code."""
    folder = Path(tempfile.mkdtemp(prefix="hookpost-fsync-"))
    folder.chmod(0o755)
    try:
        found = torture(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(found)
    return 1 if found.lost or not found.panics else 0


if __name__ == "__main__":
    sys.exit(main())
