"""The composition root of one process: settings in, a running API or worker out. Only `app` knows the drivers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from random import Random
from uuid import UUID

import certifi
import uvicorn

from hookpost import __version__, telemetry
from hookpost.alerts import Alerts, OperatorUrl, Tell, Untold, alert_key
from hookpost.app.clock import DatabaseClock
from hookpost.app.config import DAY_S, Settings
from hookpost.engine.limits import Limits, Policies
from hookpost.ingest import Ingest, IngestLimits, Overloaded, Refused, Submission, UnknownTenant
from hookpost.mail import MailError, MailServer, send_mail
from hookpost.maintenance import Maintenance, Replays, Rollups, Spreading
from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy.alerts import mail_text
from hookpost.policy.breaker import BreakerPolicy
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.cost import Prices
from hookpost.policy.egress import EgressPolicy
from hookpost.policy.egress_health import OutagePolicy
from hookpost.policy.health import HealthPolicy
from hookpost.policy.keys import hash_secret
from hookpost.policy.signing import parse_secret
from hookpost.policy.spread import Bounds
from hookpost.storage.contract import Appended, Channel, DueAlert, StoreUnavailable, Verdict
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


def _ca_file(settings: Settings) -> str | None:
    return None if settings.ca_file is None else str(settings.ca_file)


def prices(settings: Settings) -> Prices:
    """What the operator pays, unless a request for the cost says otherwise."""
    return Prices(
        worker_cost_per_hour=settings.cost_worker_hour,
        requests_per_worker=settings.cost_requests_per_worker,
        storage_cost_per_gb_month=settings.cost_storage_gb_month,
        egress_cost_per_gb=settings.cost_egress_gb,
    )


def policies(settings: Settings) -> Policies:
    """The platform's policies that are not an endpoint's own."""
    return Policies(
        breaker=BreakerPolicy(settings.breaker_failures, settings.breaker_pause_s, settings.breaker_pause_max_s),
        budget=BudgetPolicy(settings.retry_budget_part, settings.retry_budget_floor),
        outage=OutagePolicy(receivers=settings.egress_outage_receivers),
        health=HealthPolicy(settings.alert_after_failures, settings.disable_after_days * DAY_S),
    )


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
        longest_s=settings.total_timeout_max_s,
    )


def quieten_libraries() -> None:
    """asyncpg warns each second that it cannot fill its pool; that the database is away is said by us, once."""
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)


def tune_gc() -> None:
    """What was loaded at start stays: leave it out of every collection to come."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def make_ingest(settings: Settings, store: PostgresStore, clock: DatabaseClock) -> Ingest:
    """The ingest path of one process."""
    limits = IngestLimits(settings.ingest_queue_events, settings.ingest_queue_bytes, settings.ingest_timeout_s)
    return Ingest(store, now=clock.now, limits=limits)


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
    # Ids carry the time they were minted at: not that of a machine whose clock is wrong.
    await _correct(store, clock)
    ingest = make_ingest(settings, store, clock)
    # Before the first request: at the start, too, a process takes no more than its part of a tenant's limit.
    await ingest.look()
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
            total_timeout_max_s=settings.total_timeout_max_s,
            endpoints_max=settings.endpoints_max,
            replay_rate_limit=settings.replay_rate_limit,
            secret_grace_s=settings.secret_grace_s,
            prices=prices(settings),
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
        sharing = tasks.create_task(ingest.follow())
        stopping = asyncio.create_task(stop.wait())
        address = listener.getsockname()
        telemetry.log("api_ready", url=f"http://{address[0]}:{address[1]}")
        ready.set()
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        clocking.cancel()
        sharing.cancel()
        stopping.cancel()
    await ingest.close()
    await store.close()


async def _follow_clock(store: PostgresStore, clock: DatabaseClock) -> None:
    while True:
        await asyncio.sleep(CLOCK_EVERY_S)
        # Without the store the clock goes on by itself; requests report the store.
        with contextlib.suppress(StoreUnavailable):
            await _correct(store, clock)


async def _correct(store: PostgresStore, clock: DatabaseClock) -> None:
    sent = clock.monotonic()
    clock.correct(await store.ping(), sent=sent, received=clock.monotonic())


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
        ca_file=_ca_file(settings),
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
            policies=policies(settings),
        ),
        rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not cryptography
    )
    maintenance = Maintenance(store, days_ahead=settings.partition_days_ahead)
    rollups = Rollups(
        store,
        minutes_kept_s=settings.rollup_minutes_days * DAY_S,
        hours_kept_s=settings.rollup_hours_days * DAY_S,
        monotonic=clock.monotonic,
    )
    spreading = Spreading(
        store,
        node_id=node_id,
        bounds=Bounds(settings.spread_depth, settings.spread_rate),
        monotonic=clock.monotonic,
    )
    tune_gc()
    async with _alerting(settings, store, clock) as alerts, asyncio.TaskGroup() as tasks:
        tending = [
            tasks.create_task(maintenance.run(stop)),
            tasks.create_task(Replays(store).run(stop)),
            tasks.create_task(rollups.run(stop)),
            tasks.create_task(alerts.run(stop)),
            tasks.create_task(spreading.run(stop)),
        ]
        ready.set()
        await worker.run(stop)
        for task in tending:
            task.cancel()
    await transport.close()
    await store.close()


# ---- alerts ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _alerting(settings: Settings, store: PostgresStore, clock: DatabaseClock) -> AsyncIterator[Alerts]:
    """The teller of alerts, with the channels that the settings know of."""
    async with contextlib.AsyncExitStack() as stack:
        ingest = make_ingest(settings, store, clock)
        stack.push_async_callback(ingest.close)
        ways: dict[Channel, Tell] = {Channel.EVENT: partial(_publish, ingest)}
        if settings.smtp_host is not None:
            ways[Channel.MAIL] = partial(_mail, mail_server(settings), clock)
        if settings.alert_url is not None:
            transport = Transport(egress=alert_egress(settings), now=clock.now, ca_file=_ca_file(settings))
            stack.push_async_callback(transport.close)
            secret = settings.alert_secret
            ways[Channel.OPERATOR] = OperatorUrl(
                settings.alert_url.get_secret_value(),
                () if secret is None else (parse_secret(secret.get_secret_value()),),
                send=transport.send,
                now=clock.now,
                user_agent=f"Hookpost/{__version__}",
            ).tell
        yield Alerts(store, ways)


def alert_egress(settings: Settings) -> EgressPolicy:
    """What posts to the operator's URL may reach: the operator chose it, so ports are not denied."""
    return EgressPolicy(allow_networks=(*settings.allow_networks, *settings.alert_allow_networks))


def mail_server(settings: Settings) -> MailServer:
    """Where mails go out."""
    assert settings.smtp_host is not None and settings.smtp_from is not None
    password = settings.smtp_password
    return MailServer(
        host=settings.smtp_host,
        port=settings.smtp_port,
        sender=settings.smtp_from,
        security=settings.smtp_tls,
        ca_file=_ca_file(settings) or certifi.where(),
        user=settings.smtp_user,
        password=None if password is None else password.get_secret_value(),
    )


async def _publish(ingest: Ingest, due: DueAlert) -> None:
    """As an event of the tenant, to all endpoints that want it but the one it is about."""
    alert = due.alert
    event = Submission(alert.type, alert.payload, key=alert_key(due), without=alert.endpoint_id)
    try:
        [answer] = await ingest.submit(alert.tenant_id, [event])
    except (StoreUnavailable, Overloaded) as error:
        raise Untold(str(error)) from error
    except UnknownTenant as error:
        raise Untold(str(error), final=True) from error
    if isinstance(answer, Refused):
        raise Untold(str(answer), final=True)
    if isinstance(answer, Appended) and answer.verdict is Verdict.CONFLICT:
        raise Untold("an event of the tenant's own has its idempotency key", final=True)


async def _mail(server: MailServer, clock: DatabaseClock, due: DueAlert) -> None:
    if due.alert_email is None:
        raise Untold("the tenant has no alert_email any more", final=True)
    subject, text = mail_text(due.alert.type, due.alert.payload)
    try:
        await send_mail(
            server, due.alert_email, message_id=due.alert_id.hex, subject=subject, text=text, now=clock.now()
        )
    except MailError as error:
        raise Untold(str(error), final=error.final) from error
