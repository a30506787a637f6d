"""The container's promise, without a container: a read-only root file system, an ordinary user, no rights at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import require
from tests.deploy.confined import confined, lacking, rights, writable_mounts
from tests.e2e.harness import PROGRAM, Hookpost, fresh_folder, receiver

pytestmark = pytest.mark.process

LARGE = "x" * 100_000


async def test_api_and_worker_accept_and_deliver_where_two_folders_can_be_written(server: str, database: str) -> None:
    require(not lacking(), lacking())
    place = fresh_folder()
    # Whoever the database lets in through its socket: an ordinary user, as nobody else runs PostgreSQL.
    owner = Path(parse_qs(urlsplit(server).query)["host"][0]).stat()
    assert owner.st_uid != 0
    data, scratch = place / "data", place / "scratch"
    for folder in (data, scratch):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner.st_uid, owner.st_gid)
    program = (*confined(owner.st_uid, owner.st_gid, data, scratch), "env", f"TMPDIR={scratch}", *PROGRAM)
    api, worker = (
        Hookpost(data, command=command, program=program, database_url=database) for command in ("api", "worker")
    )
    try:
        for process, ready in ((api, "api_ready"), (worker, "worker_ready")):
            await process.start(ready=ready)
            assert process.process is not None
            pid = process.process.pid
            assert writable_mounts(pid) == {str(data), str(scratch)}
            status = rights(pid)
            assert set(status["Uid"].split()) == {str(owner.st_uid)} and status["Groups"] == ""
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
        api.key = await api.tenant("confined")
        async with receiver() as ledger:
            await api.endpoint(ledger.url())
            posted = {await api.post(payload=payload) for payload in ({"n": 1}, {"n": LARGE})}
            await ledger.until_all(posted)
        # The large one went by way of the data folder.
        assert any(path.is_file() and path.stat().st_size > len(LARGE) for path in (data / "payloads").rglob("*"))
        assert await worker.stop() == 0
        assert await api.stop() == 0
    finally:
        for process in (api, worker):
            if process.process is not None and process.process.returncode is None:
                await process.kill()
        shutil.rmtree(place, ignore_errors=True)
