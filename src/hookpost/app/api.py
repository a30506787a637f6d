"""The composition root of an API process: settings and a bound socket in, a served API out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from uuid import UUID

import uvicorn

from hookpost import __version__, telemetry
from hookpost.app.clock import DatabaseClock
from hookpost.app.compose import (
    check_payloads,
    egress_policy,
    make_ingest,
    make_payloads,
    make_store,
    prices,
    retry_policy,
    schema_bounds,
    timeouts,
    tune_gc,
)
from hookpost.app.config import Settings
from hookpost.app.metrics_page import listening
from hookpost.exposition import Metrics, alone
from hookpost.intake import Submission, UnknownEndpoint
from hookpost.metrics import Board, Platform, Reporter
from hookpost.policy.json_bounds import JsonBounds
from hookpost.policy.keys import hash_secret
from hookpost.relay import Relay
from hookpost.storage.contract import Appended, StoreUnavailable, TypeLimits
from hookpost.storage.postgres.store import PostgresStore, platform_value
from hookpost.web.app import BODY_BYTES_MAX, WebSettings, make_app
from hookpost.web.auth import KEY_CACHE_S, Authenticator
from hookpost.web.dashboard.render import compile_templates
from hookpost.web.doors import Doors, WireLimits
from hookpost.web.events import EventLimits, EventRoutes, problem_of_event
from hookpost.web.problems import invalid
from hookpost.web.wire import protocol

# How often an API process, which holds no lease, corrects its clock by the database's.
CLOCK_EVERY_S = 10.0
# A message may be so much larger than the largest body: chunks of few bytes, extensions, trailers.
MESSAGE_FACTOR = 4


class _Server(uvicorn.Server):
    """Signals are the caller's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def run_api(
    settings: Settings,
    dsn: str,
    *,
    name: str,
    listener: socket.socket,
    stop: asyncio.Event,
    ready: asyncio.Event,
    board: Board | None,
) -> None:
    """Serve the API on a bound socket until ``stop`` is set. ``board``: where a server's processes tell their figures;
    one that runs alone has none."""
    clock = DatabaseClock()
    store = make_store(settings, dsn, application="hookpost api")
    await store.open()
    # Ids carry the time they were minted at: not that of a machine whose clock is wrong.
    await _correct(store, clock)
    payloads = make_payloads(settings, dsn)
    await check_payloads(settings, dsn)
    relay = None if board is None else Relay(board.folder)
    ingest = make_ingest(settings, store, payloads, clock, relay)
    # Before the first request: at the start, too, a process takes no more than its part of a tenant's limit.
    await ingest.look()
    cursor_secret = await platform_value(dsn, "cursor_secret", default=secrets.token_hex(32))
    assert cursor_secret is not None
    admin_key = settings.admin_key
    authenticator = Authenticator(
        store,
        admin_key_hash=None if admin_key is None else hash_secret(admin_key.get_secret_value()),
        outage_s=KEY_CACHE_S if settings.journal_url is None else settings.journal_outage_s,
        now=clock.now,
    )

    bounds = json_bounds(settings)

    async def submit(tenant_id: UUID, type: str, payload: bytes, target_endpoints: list[UUID]) -> UUID:
        beyond = bounds.fault(payload)
        if beyond is not None:
            raise invalid("payload", beyond)
        [answer] = await ingest.submit(tenant_id, [Submission(type, payload, targets=tuple(target_endpoints))])
        if isinstance(answer, UnknownEndpoint):
            raise StoreUnavailable("the endpoint was deleted a moment ago")
        if not isinstance(answer, Appended):
            raise problem_of_event(answer)
        return answer.event_id

    events = EventRoutes(
        ingest,
        authenticator,
        limits=EventLimits(settings.body_max_bytes, settings.batch_max_events, settings.ingest_queue_bytes, bounds),
    )
    doors = Doors(wire_limits(settings))

    def figures() -> dict[str, float]:
        events, size = ingest.queued
        return {"ingest_queue_events": events, "ingest_queue_bytes": size}

    if board is None:
        metrics = alone(store, name=name, figures=figures, tenants_max=settings.metrics_tenants)
    else:
        metrics = Metrics(Platform(store, tenants_max=settings.metrics_tenants), board.read)
    app = make_app(
        store=store,
        payloads=payloads,
        authenticator=authenticator,
        submit=submit,
        raw_events=events,
        settings=WebSettings(
            version=__version__,
            public_url=settings.public_url,
            now=clock.now,
            egress=egress_policy(settings),
            retry=retry_policy(settings),
            timeouts=timeouts(settings),
            total_timeout_max_s=settings.total_timeout_max_s,
            deadline_s_max=settings.deadline_s_max,
            endpoints_max=settings.endpoints_max,
            api_keys_max=settings.api_keys_max,
            filters_max=settings.filters_max,
            schemas=schema_bounds(settings),
            types=TypeLimits(settings.event_types_max, settings.schemas_max_bytes),
            replay_rate_limit=settings.replay_rate_limit,
            secret_grace_s=settings.secret_grace_s,
            headers_allow=settings.headers_allow,
            prices=prices(settings),
            cursor_secret=bytes.fromhex(cursor_secret),
        ),
        shown_metrics=metrics,
    )
    server = _Server(
        uvicorn.Config(
            app,
            http=protocol(events.in_place, doors),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type] # any number will do
            timeout_graceful_shutdown=round(settings.stop_s),
        )
    )
    tune_gc()
    async with listening(None if board else settings.metrics_listen, metrics), asyncio.TaskGroup() as tasks:
        reporting = None if board is None else tasks.create_task(Reporter(board, name, figures).run())
        relaying = None if relay is None else tasks.create_task(relay.run())
        serving = tasks.create_task(server.serve(sockets=[listener]))
        clocking = tasks.create_task(_follow_clock(store, clock))
        sharing = tasks.create_task(ingest.follow())
        guarding = tasks.create_task(doors.keep(asyncio.get_running_loop().time))
        noting = tasks.create_task(authenticator.follow())
        compiling = tasks.create_task(compile_templates())
        stopping = asyncio.create_task(stop.wait())
        address = listener.getsockname()
        telemetry.log("api_ready", url=f"http://{address[0]}:{address[1]}")
        ready.set()
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        clocking.cancel()
        sharing.cancel()
        guarding.cancel()
        noting.cancel()
        compiling.cancel()
        if reporting is not None:
            reporting.cancel()
        if relaying is not None:
            relaying.cancel()
        stopping.cancel()
    await authenticator.note_used()
    await ingest.close()
    await store.close()


def wire_limits(settings: Settings) -> WireLimits:
    """What a client may take of the process."""
    return WireLimits(
        target_bytes=settings.request_target_max,
        header_bytes=settings.request_header_bytes_max,
        headers=settings.request_headers_max,
        message_bytes=settings.request_header_bytes_max + MESSAGE_FACTOR * max(settings.body_max_bytes, BODY_BYTES_MAX),
        head_s=settings.request_head_s,
        body_s=settings.request_body_s,
        body_rate_min=settings.request_body_rate_min,
        answer_s=settings.answer_s,
        connections=settings.connections_max,
        connections_per_address=settings.connections_per_address_max,
    )


def json_bounds(settings: Settings) -> JsonBounds:
    """Of payloads."""
    return JsonBounds(settings.json_depth_max, settings.json_number_chars_max)


async def _follow_clock(store: PostgresStore, clock: DatabaseClock) -> None:
    while True:
        await asyncio.sleep(CLOCK_EVERY_S)
        # Without the store the clock goes on by itself; requests report the store.
        with contextlib.suppress(StoreUnavailable):
            await _correct(store, clock)


async def _correct(store: PostgresStore, clock: DatabaseClock) -> None:
    sent = clock.monotonic()
    clock.correct(await store.ping(), sent=sent, received=clock.monotonic())
