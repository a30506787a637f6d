"""A server with its journal in Kafka, while brokers, its processes and the database die: by the receiver's ledger."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import ADMIN_KEY, Hookpost, Load, Receiver, receiver, running
from tests.e2e.processes import stopped
from tests.kafka.cluster import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.kills_brokers, pytest.mark.process]

SOME = 100
# HOOKPOST_INGEST_TIMEOUT_S is 0.9, and a slow machine needs a moment for the rest.
IN_TIME_S = 2.5


async def until_accepted(server: Hookpost) -> None:
    """Brokers that have just started elect their leaders first."""
    async with asyncio.timeout(60):
        while (await server.call("POST", "/v1/events", {"type": "hello", "payload": 1}))[0] != 202:
            await asyncio.sleep(0.1)


async def look_while_no_worker_runs(server: Hookpost, ledger: Receiver) -> None:
    """An event is there all the same, and its key is taken."""
    event = {"type": "invoice.paid", "payload": {"n": 1}, "idempotency_key": "k"}
    with stopped(server.children["worker-1"]):
        waiting = (await server.call("POST", "/v1/events", event, expect=202))["event_id"]
        found = await server.call("GET", f"/v1/events/{waiting}", expect=200)
        assert (found["status"], found["payload"]) == ("pending", {"n": 1})
        assert [delivery["status"] for delivery in found["deliveries"]] == ["queued"]
        again = await server.call("POST", "/v1/events", event, expect=202)
        assert (again["event_id"], again["duplicate"]) == (waiting, True)
        page = (await server.raw("GET", "/metrics", None, key=ADMIN_KEY))[2].decode()
        lags = [line for line in page.splitlines() if line.startswith("hookpost_kafka_lag_records{")]
        assert sum(float(line.rpartition(" ")[2]) for line in lags) >= 1
    await ledger.until_all({waiting})
    assert ledger.counts["/hook", waiting] == 1


async def look_while_no_broker_runs(server: Hookpost) -> None:
    """Refused in time, and the readiness says why."""
    began = asyncio.get_running_loop().time()
    status, _, headers = await server.call("POST", "/v1/events", {"type": "a", "payload": 1})
    assert (status, int(headers["retry-after"]) >= 1) == (503, True)
    assert asyncio.get_running_loop().time() - began < IN_TIME_S
    status, ready, _ = await server.call("GET", "/readyz")
    assert (status, ready["store"], ready["journal"]) == (503, "reachable", "unreachable")


async def test_whoever_dies_nothing_acknowledged_is_lost_and_answers_are_true_and_in_time(cluster: Cluster) -> None:
    async with running(journal_url=f"kafka://{cluster.servers}/whoever") as server, receiver() as ledger:
        await until_accepted(server)
        endpoint = await server.endpoint(ledger.url(), events=["load.test", "invoice.paid"])
        ledger.secrets["/hook"] = endpoint["secret"]
        await look_while_no_worker_runs(server, ledger)
        # Without the database: what needs no idempotency key of it is accepted.
        with stopped(server.postmaster()):
            accepted = await server.post()
        await ledger.until_all({accepted})
        before = ledger.ids()
        async with Load(server) as load:
            await load.until(SOME)
            cluster.kill(1)
            await load.until(SOME)
            server.kill_child("worker-1")
            server.kill_child("api-1")
            await load.until(SOME)
            cluster.kill()
            await server.until_line("kafka_lost")
            await look_while_no_broker_runs(server)
            await asyncio.to_thread(cluster.start)
            await load.until(SOME)
        await ledger.until_all(load.accepted)
        assert ledger.ids() == load.accepted | before
        assert not ledger.forged
        assert (await server.call("GET", "/readyz", expect=200))["journal"] == "reachable"
        listed = await server.call("GET", "/v1/events?type=load.test&limit=500", expect=200)
        ids = [event["event_id"] for event in listed["data"]]
        assert len(ids) == len(set(ids))
        assert set(ids) <= load.accepted
