"""The composition root: settings in, the parts of a process and a running worker out. Only `app` knows the drivers.

The API is put together in `api.py`: its libraries take longer to import than all the rest, and only it needs them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import import_module
from random import Random
from types import ModuleType
from uuid import UUID

import certifi

from hookpost import __version__, telemetry
from hookpost.alerts import Alerts, OperatorUrl, Tell, Untold, alert_key
from hookpost.app.clock import DatabaseClock
from hookpost.app.config import DAY_S, ConfigError, Settings
from hookpost.app.keyring import make_vault
from hookpost.cold import ColdPayloads
from hookpost.engine.limits import Limits, Policies
from hookpost.ingest import Ingest, IngestLimits, Overloaded, UnknownTenant
from hookpost.intake import Refused, Submission
from hookpost.mail import MailError, MailServer, send_mail
from hookpost.maintenance import Maintenance, Plans, Replays, Rollups, Spreading
from hookpost.metrics import Board, Reporter
from hookpost.model import RetryPolicy, Timeouts
from hookpost.policy.alerts import mail_text
from hookpost.policy.breaker import BreakerPolicy
from hookpost.policy.budget import BudgetPolicy
from hookpost.policy.cost import Prices
from hookpost.policy.egress import EgressPolicy, EgressProxy, parse_proxy
from hookpost.policy.egress_health import OutagePolicy
from hookpost.policy.event_schema import SchemaBounds
from hookpost.policy.health import HealthPolicy
from hookpost.policy.journal import KafkaAddress, parse_address
from hookpost.policy.signing import parse_secret
from hookpost.policy.spread import Bounds
from hookpost.pump import Pump
from hookpost.relay import Listening, Relay, socket_path
from hookpost.storage.contract import Appended, Channel, DueAlert, PayloadStoreForeign, StoreUnavailable, Verdict
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore, platform_value
from hookpost.tracing import Sink, close_sink, open_sink, tracer
from hookpost.transport import Transport
from hookpost.worker import Worker, WorkerSettings

# Objects made between two looks of the garbage collector: nearly all of ours die young and without cycles. A look takes
# about 0.9 µs for each, 44 ms in all; with fewer it would look at deliveries under way again and again.
GC_THRESHOLDS = (50_000, 25, 100)
# The fact that this installation has made a payload store its own: an empty one is a wrong one from then on.
PAYLOAD_STORE = "payload_store"
# Where the journal is, once it was not in the database.
JOURNAL = "journal"


def egress_policy(settings: Settings) -> EgressPolicy:
    """What outbound requests may reach."""
    return EgressPolicy(
        allow_networks=settings.allow_networks,
        deny_ports=frozenset(settings.deny_ports),
        https_only=settings.https_only,
        proxy=_proxy(settings),
    )


def _proxy(settings: Settings) -> EgressProxy | None:
    return None if settings.egress_proxy is None else parse_proxy(settings.egress_proxy.get_secret_value())


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
        retention_days=float(settings.retention_days),
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
    journal = kafka_address(settings)
    make: Callable[..., PostgresStore] = PostgresStore
    if journal is not None:
        make = partial(_kafka().KafkaStore, address=journal, outage_s=settings.journal_outage_s)
    return make(
        dsn,
        application=application,
        size_min=settings.database_pool_min,
        size_max=settings.database_pool_max,
        idempotency_s=settings.idempotency_hours * 3600,
        append_timeout_s=settings.ingest_timeout_s,
        retry=retry_policy(settings),
        timeouts=timeouts(settings),
        longest_s=settings.total_timeout_max_s,
        deadline_s_max=settings.deadline_s_max,
        vault=make_vault(settings),
    )


def kafka_address(settings: Settings) -> KafkaAddress | None:
    """Where the journal is, unless it is a table."""
    return None if settings.journal_url is None else parse_address(settings.journal_url.get_secret_value())


def _kafka() -> ModuleType:
    """What speaks to Kafka; nobody else needs its packages. Raises ConfigError when they are missing."""
    try:
        return import_module("hookpost.storage.kafka.store")
    except ImportError as error:
        raise ConfigError(f"HOOKPOST_JOURNAL_URL: {error}; it needs `pip install 'hookpost[kafka]'`") from error


async def check_journal(settings: Settings, dsn: str, *, claim: bool = False) -> None:
    """Raises ConfigError when the database's journal is in another place than the settings say: events that lie there
    would never be delivered. ``claim``: one that was in the database alone goes to where they say."""
    address = kafka_address(settings)
    wanted = None if address is None else f"kafka topic {address.topic}"
    known = await platform_value(dsn, JOURNAL, default=wanted if claim else None)
    if known is None and wanted is not None:
        raise ConfigError("the journal of this database is not in Kafka yet: run `hookpost migrate`")
    if known != wanted:
        raise ConfigError(
            f"the journal of this database is {known}, and HOOKPOST_JOURNAL_URL says {wanted or 'nothing'}: "
            "set it to that topic, or see docs/kafka.md for how to leave it for good"
        )


async def prepare_journal(settings: Settings, dsn: str) -> None:
    """Make the topic, if there is none, with a partition for each shard. Brokers that are away hold nothing up: workers
    look after it, too."""
    await check_journal(settings, dsn, claim=True)
    if settings.journal_url is None:
        return
    store = make_store(settings, dsn, application="hookpost journal")
    await store.open()
    try:
        await store.prepare_topic()  # type: ignore[attr-defined] # a KafkaStore, whose module is not known here
    except StoreUnavailable as error:
        telemetry.log("kafka_unprepared", reason=error)
    finally:
        await store.close()


def make_pump(settings: Settings, store: PostgresStore, worker: Worker, clock: DatabaseClock) -> Pump | None:
    """What takes records over for the shards of this worker; None without Kafka."""
    address = kafka_address(settings)
    if address is None:
        return None
    kafka = _kafka()
    return Pump(
        store,  # type: ignore[arg-type] # a KafkaStore, whose module is not known here
        kafka.Reader(address),
        owned=lambda: worker.fences,
        decode=kafka.decode,
        ensure=store.tail.ensure_topic,  # type: ignore[attr-defined] # it has a tail
        ends=store.tail.ends_now,  # type: ignore[attr-defined]
        monotonic=clock.monotonic,
    )


def make_payloads(settings: Settings, dsn: str) -> ObjectStore:
    """Where large payloads lie. Raises ConfigError when the environment lacks something for it."""
    url = settings.payload_store_url or (settings.data_dir / "payloads").as_uri()
    try:
        return ObjectStore(url, before_first_put=partial(_claim_payloads, dsn))
    except ValueError as error:
        raise ConfigError(f"HOOKPOST_PAYLOAD_STORE_URL={url}: {error}") from error


async def _claim_payloads(dsn: str, payloads: ObjectStore) -> None:
    """Make the payload store this installation's with its first payload; later make sure that it is."""
    installation = await _installation(dsn)
    try:
        if await platform_value(dsn, PAYLOAD_STORE) is None:
            await payloads.claim(installation)
            await platform_value(dsn, PAYLOAD_STORE, default="claimed")
        else:
            await payloads.check(installation)
    except PayloadStoreForeign as error:
        telemetry.log("payload_store_foreign", reason=error)
        raise StoreUnavailable(str(error)) from error


async def check_payloads(settings: Settings, dsn: str) -> None:
    """Raises PayloadStoreForeign when it is not the one that this installation has used. One that does not answer holds
    up only what lies in it."""
    try:
        if await platform_value(dsn, PAYLOAD_STORE) is not None:
            await make_payloads(settings, dsn).check(await _installation(dsn))
    except StoreUnavailable as error:
        telemetry.log("payload_store_unchecked", reason=error)


async def _installation(dsn: str) -> str:
    """What tells one installation from another."""
    tenant_id = await platform_value(dsn, "default_tenant")
    assert tenant_id is not None
    return tenant_id


def quieten_libraries() -> None:
    """asyncpg warns each second that it cannot fill its pool; that the database is away is said by us, once. uvicorn
    warns of each request that it cannot read: anybody could fill the log."""
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def tune_gc() -> None:
    """What was loaded at start stays: leave it out of every collection to come."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def schema_bounds(settings: Settings) -> SchemaBounds:
    """Of the schemas of event types."""
    return SchemaBounds(
        settings.schema_max_bytes, settings.schema_depth_max, settings.schema_cost_max, settings.schema_work_max
    )


def make_ingest(
    settings: Settings, store: PostgresStore, payloads: ObjectStore, clock: DatabaseClock, relay: Relay | None
) -> Ingest:
    """The ingest path of one process."""
    limits = IngestLimits(
        settings.ingest_queue_events,
        settings.ingest_queue_bytes,
        settings.ingest_timeout_s,
        settings.payload_inline_max,
        schema_bounds(settings),
    )
    return Ingest(store, payloads, now=clock.now, limits=limits, relay=relay)


def _own_page(
    settings: Settings, store: PostgresStore, name: str, worker: Worker
) -> contextlib.AbstractAsyncContextManager[None]:
    """The page of metrics of a worker that runs alone. One under a supervisor has none, so what writes the page is
    loaded here and not by every worker at its start."""
    if settings.metrics_listen is None:
        return contextlib.nullcontext()
    from hookpost.app.metrics_page import listening
    from hookpost.exposition import alone

    metrics = alone(store, name=name, figures=worker.figures, tenants_max=settings.metrics_tenants)
    return listening(settings.metrics_listen, metrics)


async def run_worker(
    settings: Settings,
    dsn: str,
    *,
    name: str,
    node_id: UUID,
    stop: asyncio.Event,
    ready: asyncio.Event,
    board: Board | None,
) -> None:
    """Deliver until ``stop`` is set; then finish or hand back. ``board``: where a server's processes tell their
    figures; one that runs alone has none."""
    clock = DatabaseClock()
    store = make_store(settings, dsn, application=f"hookpost {name}")
    await store.open()
    payloads = make_payloads(settings, dsn)
    await check_payloads(settings, dsn)
    transport = Transport(
        egress=egress_policy(settings),
        now=clock.now,
        ca_file=_ca_file(settings),
    )
    sink = _span_sink(settings)
    worker = Worker(
        store=store,
        payloads=payloads,
        sender=transport,
        clock=clock,
        node_id=node_id,
        name=name,
        settings=WorkerSettings(
            pool=settings.pool,
            lease_s=settings.lease_s,
            renew_s=settings.renew_s,
            stop_s=settings.stop_s,
            longest_s=settings.total_timeout_max_s,
            limits=Limits(
                in_flight=settings.worker_in_flight,
                in_flight_bytes=settings.worker_in_flight_bytes,
                buffer=settings.buffer_events,
                buffer_bytes=settings.buffer_bytes,
                replay_s=settings.deadline_s_max,
            ),
            policies=policies(settings),
        ),
        rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not cryptography
        trace=None
        if sink is None
        else tracer(sink, ratio=settings.otel_ratio, service_version=__version__, worker=name),
    )
    maintenance = Maintenance(
        store,
        payloads,
        days_ahead=settings.partition_days_ahead,
        keep_days=settings.retention_days,
        audit_days=settings.audit_days or None,
    )
    rollups = Rollups(
        store,
        minutes_kept_s=settings.rollup_minutes_days * DAY_S,
        hours_kept_s=settings.rollup_hours_days * DAY_S,
        monotonic=clock.monotonic,
    )
    cold = ColdPayloads(store, payloads, age_s=settings.cold_after_s, monotonic=clock.monotonic)
    spreading = Spreading(
        store,
        node_id=node_id,
        bounds=Bounds(settings.spread_depth, settings.spread_rate),
        monotonic=clock.monotonic,
    )
    tune_gc()
    async with (
        _alerting(settings, store, payloads, clock) as alerts,
        _own_page(settings, store, name, worker) if board is None else contextlib.nullcontext(),
        asyncio.TaskGroup() as tasks,
    ):
        of_a_server = []
        if board is not None:
            of_a_server.append(tasks.create_task(Reporter(board, name, worker.figures).run()))
            path = socket_path(board.folder, name)
            listening = Listening(path, shards=worker.fences.keys, take=worker.take_told)
            of_a_server.append(tasks.create_task(listening.run()))
        tending = [
            *of_a_server,
            tasks.create_task(maintenance.run(stop)),
            tasks.create_task(Replays(store).run(stop)),
            tasks.create_task(rollups.run(stop)),
            tasks.create_task(alerts.run(stop)),
            tasks.create_task(spreading.run(stop)),
            tasks.create_task(Plans(store, node_id=node_id).run(stop)),
        ]
        pump = make_pump(settings, store, worker, clock)
        if pump is not None:
            tending.append(tasks.create_task(pump.run(stop)))
        if settings.cold_after_s:
            tending.append(tasks.create_task(cold.run(stop)))
        ready.set()
        await worker.run(stop)
        for task in tending:
            task.cancel()
    await transport.close()
    await store.close()
    if sink is not None:
        close_sink(sink)


def _span_sink(settings: Settings) -> Sink | None:
    """Where spans go; None, and nothing of OpenTelemetry's is imported, unless the operator wants them."""
    return None if settings.otel_endpoint is None else open_sink(settings.otel_endpoint)


# ---- alerts ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _alerting(
    settings: Settings, store: PostgresStore, payloads: ObjectStore, clock: DatabaseClock
) -> AsyncIterator[Alerts]:
    """The teller of alerts, with the channels that the settings know of."""
    async with contextlib.AsyncExitStack() as stack:
        ingest = make_ingest(settings, store, payloads, clock, None)
        stack.push_async_callback(ingest.close)
        ways: dict[Channel, Tell] = {Channel.EVENT: partial(publish, ingest)}
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
    return EgressPolicy(
        allow_networks=(*settings.allow_networks, *settings.alert_allow_networks), proxy=_proxy(settings)
    )


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


async def publish(ingest: Ingest, due: DueAlert) -> None:
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
