"""A tenant changes its place under load: by the receiver's ledger nothing is lost, repeated or overtaken."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.harness import ADMIN_KEY, Hookpost, Load, Receiver, command, database, receiver, running

pytestmark = pytest.mark.process

SOME = 200


class Place:
    """A tenant of its own, with what an operator does to it."""

    def __init__(self, server: Hookpost, tenant_id: str, key: str) -> None:
        self.server = server
        self.path = f"/v1/tenants/{tenant_id}"
        self.key = key

    async def change(self, **changes: Any) -> None:
        await self.server.call("PATCH", self.path, changes, key=ADMIN_KEY, expect=200)

    async def homes(self) -> list[int]:
        """The shards where the tenant is at home, the one of its ordered endpoints first."""
        async with database(self.server) as operator:
            homes: list[int] = await operator.fetchval("select home_shards from tenants where name = 'hot'")
        return homes

    async def until_moved(self) -> None:
        await self.server.polled(self.path, lambda tenant: not tenant["moving"], key=ADMIN_KEY)


@contextlib.asynccontextmanager
async def tenant_on(*arguments: str) -> AsyncIterator[tuple[Hookpost, Place]]:
    """A server whose load comes from one tenant, at home in one shard."""
    # A move waits for whoever is still accepting by what was known before it: not long.
    async with running(*arguments, ingest_timeout_s="0.9") as server:
        tenant = await server.call("POST", "/v1/tenants", {"name": "hot", "spread": 1}, key=ADMIN_KEY, expect=201)
        path = f"/v1/tenants/{tenant['tenant_id']}/api_keys"
        server.key = (await server.call("POST", path, {"name": "all"}, key=ADMIN_KEY, expect=201))["key"]
        yield server, Place(server, tenant["tenant_id"], server.key)


@contextlib.asynccontextmanager
async def worker_of(server: Hookpost, pool: str) -> AsyncIterator[Hookpost]:
    """A worker of another pool on the server's database."""
    worker = Hookpost(server.folder, "--pool", pool, command="worker")
    await worker.start(ready="worker_ready")
    try:
        yield worker
    finally:
        assert await worker.stop() == 0


def check(load: Load, ledger: Receiver, *paths: str) -> None:
    """Everything accepted arrived at every path, once."""
    for path in paths:
        assert ledger.ids(path) == load.accepted
    assert set(ledger.counts.values()) == {1}


def check_order(ledger: Receiver, path: str) -> None:
    """What one producer posted one after the other arrived one after the other."""
    last: dict[str, int] = {}
    for arrival in ledger.arrivals:
        if arrival.path == path:
            payload = json.loads(arrival.body)
            assert payload["n"] == last.get(payload["filler"], 0) + 1
            last[payload["filler"]] = payload["n"]


async def test_a_tenant_spread_over_four_shards_and_back_loses_and_repeats_nothing() -> None:
    async with tenant_on("--workers", "2") as (server, place), receiver() as ledger:
        await server.endpoint(ledger.url("/free"))
        await server.endpoint(ledger.url("/pinned"), spread=False)
        async with Load(server) as load:
            for spread in (4, 1, 3, 2, 1):
                await load.until(SOME)
                await place.change(spread=spread)
            await load.until(SOME)
        for path in ("/free", "/pinned"):
            await ledger.until_all(load.accepted, path)
        await place.until_moved()
        check(load, ledger, "/free", "/pinned")


async def test_a_tenant_moved_to_a_pool_of_its_own_and_back_loses_and_repeats_nothing() -> None:
    async with tenant_on() as (server, place), receiver() as ledger:
        await server.endpoint(ledger.url("/free"))
        await server.endpoint(ledger.url("/pinned"), spread=False)
        async with worker_of(server, "acme") as worker:
            await server.call("POST", "/v1/pools", {"name": "acme", "shards": 2}, key=ADMIN_KEY, expect=200)
            await worker.until_line("shards_acquired")
            async with Load(server) as load:
                for changes in ({"pool": "acme", "spread": 2}, {"pool": "default", "spread": 1}):
                    await load.until(SOME)
                    await place.change(**changes)
                    await place.until_moved()
                    await load.until(SOME)
            for path in ("/free", "/pinned"):
                await ledger.until_all(load.accepted, path)
            check(load, ledger, "/free", "/pinned")


async def test_what_waits_in_the_old_pool_when_its_workers_are_gone_is_delivered_when_they_are_back() -> None:
    """The new pool's worker goes on meanwhile with what is new, and `moving` tells that not all is over."""
    async with tenant_on() as (server, place), receiver() as ledger:
        await server.endpoint(ledger.url())
        async with worker_of(server, "acme") as worker:
            await server.call("POST", "/v1/pools", {"name": "acme", "shards": 1}, key=ADMIN_KEY, expect=200)
            await worker.until_line("shards_acquired")
            server.kill_child("worker-1", signal.SIGSTOP)
            old = {await server.post() for _ in range(5)}
            await place.change(pool="acme")
            new = {await server.post() for _ in range(5)}
            await ledger.until_all(new)
            assert not old & ledger.ids()
            tenant = await server.call("GET", place.path, key=ADMIN_KEY, expect=200)
            assert tenant["moving"]
            server.kill_child("worker-1", signal.SIGCONT)
            await ledger.until_all(old)
            await place.until_moved()
            assert set(ledger.counts.values()) == {1}


# ---- ordered endpoints ----------------------------------------------------------------------------------------------


async def test_an_ordered_endpoint_keeps_its_order_over_spreads_pools_and_a_drained_shard() -> None:
    async with tenant_on("--workers", "2") as (server, place), receiver() as ledger:
        await server.endpoint(ledger.url("/ordered"), ordered=True)
        async with worker_of(server, "acme") as worker:
            await server.call("POST", "/v1/pools", {"name": "acme", "shards": 2}, key=ADMIN_KEY, expect=200)
            await worker.until_line("shards_acquired")
            # One at a time is delivered: what producers do not wait for would wait here, for minutes at each step.
            async with Load(server, connections=2, marked=True, ahead_of=(ledger, "/ordered")) as load:
                for changes in ({"spread": 4}, {"spread": 1}, {"pool": "acme"}, {"pool": "default", "spread": 2}):
                    await load.until(SOME)
                    await place.until_moved()
                    await place.change(**changes)
                await load.until(SOME)
                await place.until_moved()
                first, second = await place.homes()
                drained = await command("shards", "drain", str(first), data_dir=str(server.folder))
                assert "2 moved away" in drained.out, drained.err
                after = await place.homes()
                # It goes on in the other home, which the same worker may own.
                assert after[0] == second and first not in after
                await load.until(SOME)
            await ledger.until_all(load.accepted, "/ordered")
            drained = await command("shards", "drain", str(first), "--wait", data_dir=str(server.folder))
            assert "nothing is left there" in drained.out, drained.err
            check(load, ledger, "/ordered")
            check_order(ledger, "/ordered")


async def test_an_endpoint_switched_to_ordered_overtakes_nothing_that_was_queued_before() -> None:
    async with tenant_on("--workers", "2") as (server, place), receiver() as ledger:
        await place.change(spread=4)
        endpoint = await server.endpoint(ledger.url("/hook"))
        path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
        await server.call("POST", f"{path}/pause", expect=200)
        before = {await server.post() for _ in range(20)}
        await server.call("PATCH", path, {"ordered": True}, expect=200)
        after = [await server.post() for _ in range(20)]
        await server.call("POST", f"{path}/resume", expect=200)
        await ledger.until_all(before | set(after), "/hook")
        arrived = [arrival.event_id for arrival in ledger.arrivals]
        assert set(arrived[:20]) == before
        assert arrived[20:] == after
