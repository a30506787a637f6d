"""Brokers that are away: who waits for them holds up nobody else. Needs none."""

from __future__ import annotations

import asyncio
import socket

from uuid_utils.compat import uuid7

from hookpost.policy.journal import parse_address
from hookpost.storage.kafka.clients import Patience
from hookpost.storage.kafka.store import KafkaStore
from tests.storage.driver import SHARDS

# Longer than a slow machine needs to say that nobody answers, and not so long that the end of the tests has to wait.
LOOKING_S = 20.0


async def test_readiness_and_figures_are_told_while_somebody_waits_for_an_event_that_may_lie_there(
    database: str,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = parse_address(f"kafka://127.0.0.1:{closed.getsockname()[1]}")
        store = KafkaStore(database, address=address, patience=Patience(answer_s=LOOKING_S, figures_s=0.1))
        await store.open()
        looking = asyncio.create_task(store.tail.find(uuid7(), {0: 0}))
        await asyncio.sleep(0)
        try:
            assert await store.journal_fault(0.1) is not None
            figures = await store.platform_figures(backlog_max=1, tenants_max=1)
            assert (len(figures.shards), figures.journal_up) == (SHARDS, False)
            assert not looking.done()
        finally:
            await store.close()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
