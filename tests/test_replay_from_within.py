"""R18: a receiver that asks for a replay of what it is just being sent, each time: a loop of its own making.

The real ingest, worker, PostgreSQL and transport. The call is answered at once, nothing recurses in us, and the loop goes
round as slowly as its endpoint's rate limit says, while others get theirs.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.intake import Submission
from hookpost.storage.contract import Appended
from hookpost.storage.postgres.store import PostgresStore
from tests.storage.driver import until
from tests.test_slow_store import OK, running
from tests.transport.receivers import Receiver, answering, listening

# A bucket holds what comes in a second.
ROUNDS, RATE = 30, 20.0


async def test_r18_a_receiver_that_replays_from_within_its_handler_goes_round_at_its_rate_and_holds_up_nobody(
    database: str, store: PostgresStore, sql: Any
) -> None:
    tenants: list[UUID] = []
    owed: list[int] = []

    async def handler(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await receiver.read_request(reader):
            found = re.search(rb"webhook-id: evt_(\w+)", request)
            if b"x-webhook-event-type: loop.x" in request and found is not None and len(owed) < ROUNDS:
                owed.append(await store.append_replay(tenants[0], UUID(found[1].decode()), None))
            writer.write(OK)

    async with running(database, store, handler, rate_limit=RATE) as system, listening(answering(OK)) as beside:
        tenants.append(system.tenant_id)
        values = {"endpoint_id": uuid7(), "tenant_id": system.tenant_id, "url": beside.url(), "events": ["a.b"]}
        await store.create_endpoint(values, b"k" * 24, endpoints_max=9)
        [answer] = await system.ingest.submit(system.tenant_id, [Submission("loop.x", b"{}")])
        assert isinstance(answer, Appended)
        before = len(system.accepted)
        await system.post_until_accepted(5)
        loop = "select count(*) from attempts where event_id = $1"
        await until(lambda: sql.fetchval(f"{loop} having count(*) > $2", answer.event_id, ROUNDS))
        assert owed == [1] * ROUNDS, "each call was answered, and asked for one delivery"
        assert await sql.fetchval(loop, answer.event_id) == ROUNDS + 1
        await system.until_delivered()
        posted = len(system.accepted) - before

        async def others_got_theirs() -> bool:
            return len(beside.requests) >= posted >= 5

        await until(others_got_theirs)
        took_s = await sql.fetchval(
            "select extract(epoch from max(started_at) - min(started_at))::float8 from attempts where event_id = $1",
            answer.event_id,
        )
        assert took_s >= 0.9 * (ROUNDS + 1 - RATE) / RATE
