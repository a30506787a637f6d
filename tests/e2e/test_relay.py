"""API processes and workers of one server: what is posted goes out by what they tell each other, and a kill costs none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hookpost.relay import SUFFIX
from tests.e2e.harness import Hookpost, Load, receiver, running
from tests.e2e.test_metrics import page_when, value

pytestmark = pytest.mark.process

TOLD = "hookpost_rows_told_total"
SOME = 300


def figures_of(server: Hookpost) -> Path:
    """The folder that the supervisor made for its processes."""
    arguments = Path(f"/proc/{server.children['worker-1']}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(arguments[arguments.index(b"--figures") + 1]))


async def post_until_told(server: Hookpost, least: float) -> set[str]:
    """Events posted one by one, until so many rows were told in all."""
    posted: set[str] = set()
    page = ""
    while value(page, TOLD) < least:
        posted |= {await server.post() for _ in range(10)}
        page = await page_when(server, TOLD, 0)
    return posted


async def test_events_go_out_by_told_rows_and_a_killed_process_loses_none() -> None:
    async with running(workers="2", api_processes="2") as server, receiver() as ledger:
        secret = (await server.endpoint(ledger.url()))["secret"]
        ledger.secrets["/hook"] = secret
        posted = await post_until_told(server, 100)
        await ledger.until_all(posted)

        folder = figures_of(server)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "whoever can write to a socket has things sent"
        assert {path.name for path in folder.glob(f"*{SUFFIX}")} == {f"worker-{n}{SUFFIX}" for n in (1, 2)}

        async with Load(server) as load:
            for name in ("worker-1", "api-1", "worker-2"):
                await load.until(SOME)
                await server.replace_child(name)
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        assert not ledger.forged

        page = await page_when(server, TOLD, 100)
        posted = await post_until_told(server, value(page, TOLD) + 50)
        await ledger.until_all(posted)
        assert not any("journal_gap" in line or "internal_error" in line for line in server.lines)
