"""The composition root of one process: settings in, a running API or worker out. Only `app` knows the drivers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import socket
from collections.abc import Iterator
from random import Random
from uuid import UUID

import uvicorn

from hookpost import __version__, telemetry
from hookpost.app.clock import DatabaseClock
from hookpost.app.config import Settings
from hookpost.engine.engine import Limits
from hookpost.ingest import Ingest, IngestLimits, Submission
from hookpost.maintenance import Maintenance
from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy.egress import EgressPolicy
from hookpost.policy.keys import hash_secret
from hookpost.storage.contract import Appended, StoreUnavailable
from hookpost.storage.postgres.store import PostgresStore, platform_value
from hookpost.transport import Transport
from hookpost.web.app import WebSettings, make_app
from hookpost.web.auth import Authenticator
from hookpost.web.events import EventLimits, EventRoutes
from hookpost.web.wire import protocol
from hookpost.worker import Worker, WorkerSettings

# Objects made between two looks of the garbage collector: nearly all of ours die young and without cycles. A look takes
# about 0.9 µs for each, 44 ms in all; with fewer it would look at deliveries under way again and again.
GC_THRESHOLDS = (50_000, 25, 100)
# How often an API process, which holds no lease, corrects its clock by the database's.
CLOCK_EVERY_S = 10.0
# Idle connections of clients are kept so long; above the 60 s of common load balancers, which must close first.
KEEP_ALIVE_S = 75


def egress_policy(settings: Settings) -> EgressPolicy:
    """What outbound requests may reach."""
    return EgressPolicy(
        allow_networks=settings.allow_networks,
        deny_ports=frozenset(settings.deny_ports),
        https_only=settings.https_only,
    )


def retry_policy(settings: Settings) -> RetryPolicy:
    """The platform's default schedule."""
    return RetryPolicy(
        base_s=settings.retry_base_s,
        cap_s=settings.retry_cap_s,
        max_attempts=settings.retry_max_attempts,
        deadline_s=settings.retry_deadline_s,
    )


def timeouts(settings: Settings) -> Timeouts:
    """The platform's default timeouts."""
    return Timeouts(settings.connect_timeout_s, settings.first_byte_timeout_s, settings.total_timeout_s)


def make_store(settings: Settings, dsn: str, *, application: str) -> PostgresStore:
    """The store of one process."""
    quieten_libraries()
    return PostgresStore(
        dsn,
        application=application,
        size_min=settings.database_pool_min,
        size_max=settings.database_pool_max,
        idempotency_s=settings.idempotency_hours * 3600,
        append_timeout_s=settings.ingest_timeout_s,
        retry=retry_policy(settings),
        timeouts=timeouts(settings),
    )


def quieten_libraries() -> None:
    """asyncpg warns each second that it cannot fill its pool; that the database is away is said by us, once."""
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)


def tune_gc() -> None:
    """What was loaded at start stays: leave it out of every collection to come."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Server(uvicorn.Server):
    """Signals are the caller's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def run_api(
    settings: Settings, dsn: str, *, listener: socket.socket, stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Serve the API on a bound socket until ``stop`` is set."""
    clock = DatabaseClock()
    store = make_store(settings, dsn, application="hookpost api")
    await store.open()
    ingest = Ingest(
        store,
        now=clock.now,
        limits=IngestLimits(settings.ingest_queue_events, settings.ingest_queue_bytes, settings.ingest_timeout_s),
    )
    cursor_secret = await platform_value(dsn, "cursor_secret", default=secrets.token_hex(32))
    assert cursor_secret is not None
    admin_key = settings.admin_key
    authenticator = Authenticator(
        store, admin_key_hash=None if admin_key is None else hash_secret(admin_key.get_secret_value()), now=clock.now
    )

    async def submit(tenant_id: UUID, type: str, payload: bytes, target_endpoints: list[UUID]) -> UUID:
        answer = (await ingest.submit(tenant_id, [Submission(type, payload, targets=tuple(target_endpoints))]))[0]
        if not isinstance(answer, Appended):
            raise StoreUnavailable("the endpoint was deleted a moment ago")
        return answer.event_id

    events = EventRoutes(
        ingest,
        authenticator,
        limits=EventLimits(settings.body_max_bytes, settings.batch_max_events, settings.ingest_queue_bytes),
    )
    app = make_app(
        store=store,
        authenticator=authenticator,
        submit=submit,
        raw_events=events,
        settings=WebSettings(
            version=__version__,
            now=clock.now,
            egress=egress_policy(settings),
            retry=retry_policy(settings),
            timeouts=timeouts(settings),
            endpoints_max=settings.endpoints_max,
            secret_grace_s=settings.secret_grace_s,
            cursor_secret=bytes.fromhex(cursor_secret),
        ),
    )
    server = _Server(
        uvicorn.Config(
            app,
            http=protocol(events.in_place),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(settings.stop_s),
        )
    )
    tune_gc()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listener]))
        clocking = tasks.create_task(_follow_clock(store, clock))
        stopping = asyncio.create_task(stop.wait())
        address = listener.getsockname()
        telemetry.log("api_ready", url=f"http://{address[0]}:{address[1]}")
        ready.set()
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        clocking.cancel()
        stopping.cancel()
    await ingest.close()
    await store.close()


async def _follow_clock(store: PostgresStore, clock: DatabaseClock) -> None:
    while True:
        sent = clock.monotonic()
        # Without the store the clock goes on by itself; requests report the store.
        with contextlib.suppress(StoreUnavailable):
            clock.correct(await store.ping(), sent=sent, received=clock.monotonic())
        await asyncio.sleep(CLOCK_EVERY_S)


async def run_worker(
    settings: Settings, dsn: str, *, name: str, node_id: UUID, stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Deliver until ``stop`` is set; then finish or hand back."""
    clock = DatabaseClock()
    store = make_store(settings, dsn, application=f"hookpost {name}")
    await store.open()
    transport = Transport(
        egress=egress_policy(settings),
        now=clock.now,
        ca_file=None if settings.ca_file is None else str(settings.ca_file),
    )
    worker = Worker(
        store=store,
        sender=transport,
        clock=clock,
        node_id=node_id,
        name=name,
        settings=WorkerSettings(
            pool=settings.pool,
            lease_s=settings.lease_s,
            renew_s=settings.renew_s,
            stop_s=settings.stop_s,
            limits=Limits(
                in_flight=settings.worker_in_flight,
                in_flight_bytes=settings.worker_in_flight_bytes,
                buffer=settings.buffer_events,
                buffer_bytes=settings.buffer_bytes,
            ),
        ),
        rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not cryptography
    )
    maintenance = Maintenance(store, days_ahead=settings.partition_days_ahead)
    tune_gc()
    async with asyncio.TaskGroup() as tasks:
        tending = tasks.create_task(maintenance.run(stop))
        ready.set()
        await worker.run(stop)
        tending.cancel()
    await transport.close()
    await store.close()
