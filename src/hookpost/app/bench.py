"""`hookpost bench`: how fast is this machine? Real processes, PostgreSQL with fsync on, everything on the same cores.

A run is void unless published = delivered + waiting + dead. Load comes from a closed loop of kept-alive connections in
this process, which also receives: its own cost is part of the figures.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable

from hookpost.app.client import Client
from hookpost.app.demo import Ledger, Producer, Receiver, Server, fresh_folder, percentile, until_all_arrived
from hookpost.policy.signing import parse_secret

# Events posted before the clock runs: connections open, caches fill, the database's plans are made.
WARM_UP = 500


class VoidRun(Exception):
    """The figures mean nothing: something was lost."""


async def bench(scenarios: list[str], *, seconds: float) -> int:
    """Run the scenarios, each on a fresh server; prints a JSON line for each. Returns the exit code."""
    for name in scenarios:
        folder = fresh_folder("hookpost-bench-")
        server = Server(folder)
        try:
            await server.start()
            print(json.dumps({"scenario": name, **await SCENARIOS[name](server, seconds)}), flush=True)
        finally:
            await server.stop()
            shutil.rmtree(folder, ignore_errors=True)
    return 0


async def _ingest(server: Server, seconds: float) -> dict[str, float | int]:
    """One event a request, owed to nobody: the cost of accepting."""
    ledger = Ledger()
    await Producer(server.url, server.key, ledger).run(WARM_UP)
    ledger.posted.clear()
    producer = Producer(server.url, server.key, ledger)
    took_s = await _post_for(producer, seconds)
    return {"per_second": round(producer.posted / took_s), "published": producer.posted, "refused": producer.refused}


async def _e2e(server: Server, seconds: float) -> dict[str, float | int]:
    """Posted one by one, delivered to one endpoint, signed and settled; the rate counts to the last arrival."""
    ledger, keys = Ledger(), list[bytes]()
    receiver = await asyncio.get_running_loop().create_server(lambda: Receiver(ledger, keys), "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    client = Client(server.url, server.key)
    endpoint = await asyncio.to_thread(
        client.call, "POST", "/v1/webhook_endpoints", {"url": f"http://127.0.0.1:{port}/webhooks"}
    )
    keys.append(parse_secret(endpoint["secret"]))
    await Producer(server.url, server.key, ledger).run(WARM_UP)
    await until_all_arrived(ledger)
    ledger.posted.clear()
    ledger.arrived.clear()
    producer = Producer(server.url, server.key, ledger)
    started = time.monotonic()
    await _post_for(producer, seconds)
    await until_all_arrived(ledger)
    took_s = time.monotonic() - started
    receiver.close()
    if ledger.lost or ledger.forged:
        raise VoidRun(f"{ledger.lost} of {len(ledger.posted)} events did not arrive, {ledger.forged} were forged")
    latencies = ledger.latencies_ms()
    return {
        "per_second": round(len(ledger.posted) / took_s),
        "p50_ms": round(percentile(latencies, 0.5), 1),
        "p99_ms": round(percentile(latencies, 0.99), 1),
        "published": len(ledger.posted),
        "delivered": len(ledger.posted) - ledger.lost,
        "waiting": 0,
        "dead": 0,
        "duplicates": ledger.duplicates,
    }


async def _post_for(producer: Producer, seconds: float) -> float:
    """Post for so long; returns the seconds it took, the last answers included."""
    started = time.monotonic()
    await producer.run(None, until=started + seconds)
    return time.monotonic() - started


SCENARIOS: dict[str, Callable[[Server, float], Awaitable[dict[str, float | int]]]] = {"ingest": _ingest, "e2e": _e2e}
