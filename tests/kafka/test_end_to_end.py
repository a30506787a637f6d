"""Servers with their journal in Kafka, while brokers, servers and the database die: by the receiver's ledger."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import ADMIN_KEY, Hookpost, Load, command, receiver, running
from tests.e2e.processes import stopped
from tests.kafka.cluster import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.kills_brokers, pytest.mark.process]

SOME = 100
# HOOKPOST_INGEST_TIMEOUT_S is 0.9, and a slow machine needs a moment for the rest.
IN_TIME_S = 2.5


def journal(cluster: Cluster, topic: str) -> str:
    return f"kafka://{cluster.servers}/{topic}"


async def until_accepted(server: Hookpost) -> None:
    """Brokers that have just started elect their leaders first."""
    async with asyncio.timeout(60):
        while (await server.call("POST", "/v1/events", {"type": "hello", "payload": 1}))[0] != 202:
            await asyncio.sleep(0.1)


async def test_nothing_acknowledged_is_lost_whoever_dies(cluster: Cluster) -> None:
    async with running(journal_url=journal(cluster, "whoever")) as server, receiver() as ledger:
        await until_accepted(server)
        endpoint = await server.endpoint(ledger.url())
        ledger.secrets["/hook"] = endpoint["secret"]
        async with Load(server) as load:
            await load.until(SOME)
            cluster.kill(1)
            await load.until(SOME)
            server.kill_child("worker-1")
            server.kill_child("api-1")
            await load.until(SOME)
            cluster.kill()
            await server.until_line("kafka_lost")
            await asyncio.to_thread(cluster.start)
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        assert ledger.ids() == load.accepted
        assert not ledger.forged
        # What a journal table would have held is there, each event once.
        listed = await server.call("GET", "/v1/events?type=load.test&limit=500", expect=200)
        ids = [event["event_id"] for event in listed["data"]]
        assert len(ids) == len(set(ids))
        assert set(ids) <= load.accepted


async def test_while_brokers_database_or_workers_are_away_answers_are_true_and_in_time(cluster: Cluster) -> None:
    async with running(journal_url=journal(cluster, "away")) as server, receiver() as ledger:
        await until_accepted(server)
        await server.endpoint(ledger.url())
        first = await server.post()
        await ledger.until_all({first})

        # No worker: an event is there all the same.
        with stopped(server.children["worker-1"]):
            waiting = await server.post(payload={"n": 1}, idempotency_key="k")
            event = await server.call("GET", f"/v1/events/{waiting}", expect=200)
            assert (event["status"], event["payload"]) == ("pending", {"n": 1})
            assert [delivery["status"] for delivery in event["deliveries"]] == ["queued"]
            again = await server.call(
                "POST", "/v1/events", {"type": "invoice.paid", "payload": {"n": 1}, "idempotency_key": "k"}, expect=202
            )
            assert (again["event_id"], again["duplicate"]) == (waiting, True)
            page = (await server.raw("GET", "/metrics", None, key=ADMIN_KEY))[2].decode()
            lags = [line for line in page.splitlines() if line.startswith("hookpost_kafka_lag_records{")]
            assert sum(float(line.rpartition(" ")[2]) for line in lags) >= 1
        await ledger.until_all({waiting})

        # No database: what needs no key of it is accepted.
        with stopped(server.postmaster()):
            accepted = await server.post(payload={"n": 2})
        await ledger.until_all({accepted})
        assert ledger.counts["/hook", waiting] == 1

        # No brokers.
        cluster.kill()
        began = asyncio.get_running_loop().time()
        status, _, headers = await server.call("POST", "/v1/events", {"type": "a", "payload": 1})
        assert (status, int(headers["retry-after"]) >= 1) == (503, True)
        assert asyncio.get_running_loop().time() - began < IN_TIME_S
        status, ready, _ = await server.call("GET", "/readyz")
        assert (status, ready["store"], ready["journal"]) == (503, "reachable", "unreachable")
        await asyncio.to_thread(cluster.start)
        await until_accepted(server)
        last = await server.post()
        await ledger.until_all({last})
        assert (await server.call("GET", "/readyz", expect=200))["journal"] == "reachable"


async def test_a_database_whose_journal_is_in_kafka_is_not_served_without_it(cluster: Cluster) -> None:
    async with running(journal_url=journal(cluster, "mine")) as server:
        await server.stop()
        other = await command(
            "serve", "--data-dir", str(server.folder), "--port", "0", journal_url=journal(cluster, "x")
        )
        none = await command("serve", "--data-dir", str(server.folder), "--port", "0")
        assert other.code and none.code
        assert "the journal of this database is kafka topic mine" in other.said
        assert "HOOKPOST_JOURNAL_URL says nothing" in none.said
