"""The command line. `hookpost --help` lists the commands; those of the server read HOOKPOST_… settings, those of the
client talk to a running one over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import typer
from typer.core import TyperGroup
from uuid_utils.compat import uuid7

from hookpost import __version__, telemetry
from hookpost.app import endpoint_options
from hookpost.app.client import Client, ClientError
from hookpost.app.config import ConfigError, Settings, describe, load
from hookpost.model import show_id
from hookpost.policy.diagnosis import diagnose
from hookpost.storage.contract import KeysMissing, PayloadStoreForeign, StoreUnavailable
from hookpost.storage.postgres.embedded import EmbeddedPostgresError, find_running
from hookpost.storage.postgres.migrate import SchemaTooNew, SchemaTooOld
from hookpost.storage.postgres.store import UnsafeDatabase
from hookpost.tracing import TracingUnavailable


class _EventsGroup(TyperGroup):
    """`hookpost events` lists and `hookpost events EVENT_ID` gets, without naming the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command that is meant."""
        if not args or (args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx)):
            args = ["list", *args]
        elif args[0] not in self.commands and not args[0].startswith("-"):
            args = ["get", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Hookpost delivers webhooks: accepted once, delivered at least once.",
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys of a tenant, and the installation's encryption keys.")
tenants_app = typer.Typer(no_args_is_help=True, help="Tenants (admin key).")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log: who changed what.")
pools_app = typer.Typer(no_args_is_help=True, help="Pools of shards (admin key).")
shards_app = typer.Typer(no_args_is_help=True, help="The shards of the journal: list, add, drain. On the database.")
endpoints_app = typer.Typer(no_args_is_help=True, help="Webhook endpoints.")
events_app = typer.Typer(cls=_EventsGroup, help="Events: list, get one, or ask why it is where it is.")
app.add_typer(keys_app, name="keys")
app.add_typer(tenants_app, name="tenants")
app.add_typer(pools_app, name="pools")
app.add_typer(shards_app, name="shards")
app.add_typer(endpoints_app, name="endpoints")
app.add_typer(audit_app, name="audit")
app.add_typer(events_app, name="events")

# How often `hookpost replay --wait` looks how far it is.
REPLAY_LOOK_S = 1.0

Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the embedded PostgreSQL.")]
Hidden = typer.Option(hidden=True)

_EXPECTED = (
    ConfigError, ClientError, StoreUnavailable, EmbeddedPostgresError, SchemaTooNew, SchemaTooOld, UnsafeDatabase,
    PayloadStoreForeign, KeysMissing, TracingUnavailable, OSError,
)  # fmt: skip


def main() -> None:
    """Run the command line; expected failures are one line on standard error and exit code 1."""
    try:
        app()
    except _EXPECTED as error:
        _fail(error)
    except BaseExceptionGroup as group:
        expected, rest = group.split(_EXPECTED)
        if rest is not None or expected is None:
            raise
        _fail(_first(expected))


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _fail(error: BaseException) -> None:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    print(f"hookpost: {text}", file=sys.stderr)
    raise SystemExit(1)


def _show(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


# ---- the server -----------------------------------------------------------------------------------------------------


@app.command()
def serve(
    port: Port = None,
    data_dir: DataDir = None,
    api_processes: Annotated[int | None, typer.Option(help="Processes that accept events.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that deliver.")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Send nothing until `hookpost sending --go`.")] = False,
) -> None:
    """Everything on one machine: API, workers and, without HOOKPOST_DATABASE_URL, an embedded PostgreSQL."""
    from hookpost.app.supervisor import Supervisor, show_keys

    settings = load(port=port, data_dir=data_dir, api_processes=api_processes, workers=workers)
    telemetry.configure("serve", settings.log_format, settings.log_level)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Supervisor(settings, paused=paused).run(stop, on_keys=show_keys)

    asyncio.run(run())


def _database(settings: Settings) -> str:
    """The database to work on: the configured one, or that of a server running on this data directory."""
    if settings.database_url is not None:
        return settings.database_url
    running = find_running(settings.data_dir)
    if running is None:
        raise ConfigError(
            f"there is no database: set HOOKPOST_DATABASE_URL, or start `hookpost serve` on {settings.data_dir}"
        )
    return running


@app.command()
def api(
    port: Port = None,
    data_dir: DataDir = None,
    name: Annotated[str, typer.Option(help="Name in the log.")] = "api",
    fd: Annotated[int | None, Hidden] = None,
    supervisor_fd: Annotated[int | None, Hidden] = None,
    figures: Annotated[Path | None, Hidden] = None,
) -> None:
    """One API process on a database that `hookpost migrate` or `hookpost serve` has prepared."""
    from hookpost.app.api import run_api
    from hookpost.app.children import run
    from hookpost.app.supervisor import bind, require_prepared
    from hookpost.metrics import Board

    settings = load(port=port, data_dir=data_dir)
    telemetry.configure(name, settings.log_format, settings.log_level)
    dsn = _database(settings)

    async def main_(stop: asyncio.Event, ready: asyncio.Event) -> None:
        if supervisor_fd is None:
            await require_prepared(settings, dsn)
        listener = bind(settings) if fd is None else socket.socket(fileno=fd)
        board = None if figures is None else Board(figures)
        await run_api(settings, dsn, name=name, listener=listener, stop=stop, ready=ready, board=board)

    run(main_, supervisor_fd=supervisor_fd)


@app.command()
def worker(
    pool: Annotated[str | None, typer.Option(help="Pool of shards to serve.")] = None,
    data_dir: DataDir = None,
    name: Annotated[str | None, typer.Option(help="Name in the log and in attempts.")] = None,
    node: Annotated[str | None, Hidden] = None,
    supervisor_fd: Annotated[int | None, Hidden] = None,
    figures: Annotated[Path | None, Hidden] = None,
) -> None:
    """One worker process on a prepared database; as many as you like, on any machine."""
    from hookpost.app.children import run
    from hookpost.app.compose import run_worker
    from hookpost.metrics import Board

    settings = load(pool=pool, data_dir=data_dir)
    node_id = uuid7() if node is None else UUID(node)
    shown = name or f"{socket.gethostname()}-{node_id.hex[-6:]}"
    telemetry.configure(shown, settings.log_format, settings.log_level)
    dsn = _database(settings)

    async def main_(stop: asyncio.Event, ready: asyncio.Event) -> None:
        if supervisor_fd is None:
            from hookpost.app.supervisor import require_prepared

            await require_prepared(settings, dsn)
        board = None if figures is None else Board(figures)
        await run_worker(settings, dsn, name=shown, node_id=node_id, stop=stop, ready=ready, board=board)

    run(main_, supervisor_fd=supervisor_fd)


@app.command()
def migrate(
    data_dir: DataDir = None,
    sql: Annotated[bool, typer.Option(help="Print the SQL for an empty database instead of running it.")] = False,
) -> None:
    """Bring the database's schema up to date, and at the first time make shards, the tenant default and first keys."""
    from hookpost.app.supervisor import prepare_database, show_keys
    from hookpost.storage.postgres.migrate import head, upgrade_sql

    if sql:
        print(upgrade_sql(None))
        return
    settings = load(data_dir=data_dir)
    telemetry.configure("migrate", settings.log_format, settings.log_level)
    keys = asyncio.run(prepare_database(settings, _database(settings)))
    if keys is not None:
        show_keys(keys)
    print(f"the schema is at revision {head()}")


@app.command()
def sending(
    data_dir: DataDir = None,
    pause: Annotated[bool, typer.Option("--pause", help="Send nothing more, on the whole platform.")] = False,
    go: Annotated[bool, typer.Option("--go", help="Send again.")] = False,
) -> None:
    """What would be sent now, for each endpoint; stop sending, or go on. Works on the database."""
    from hookpost.app.keyring import make_vault
    from hookpost.storage.acting import Actor, act_as
    from hookpost.storage.postgres import sending as store
    from hookpost.web.shown import show_time

    if pause and go:
        raise ConfigError("give either --pause or --go")
    settings = load(data_dir=data_dir)
    dsn = _database(settings)
    if pause or go:
        act_as(Actor("cli"))
        asyncio.run((store.pause if pause else store.go_on)(dsn, make_vault(settings)))
        print("paused: nothing is sent" if pause else "sending goes on")
        return
    owed, last = asyncio.run(store.owed(dsn))
    for each in owed:
        span = f"accepted {show_time(each.oldest)} to {show_time(each.newest)}"
        print(f"{each.deliveries:>10}  {show_id('ep', each.endpoint_id)}  {each.url}  {span}")
    total = sum(each.deliveries for each in owed)
    print(f"{total:>10}  deliveries in all; the last thing on record is of {show_time(last) or 'never'}")


@shards_app.command("list")
def list_shards(
    data_dir: DataDir = None,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
) -> None:
    """Each shard: tenants at home in it, entries not done and the age of the oldest, fence, owner, and use."""
    from hookpost.app import sharding

    found = asyncio.run(sharding.listed(_database(load(data_dir=data_dir)), pool))
    print("\n".join(sharding.table(found)))


@shards_app.command("add")
def add_shards(
    count: Annotated[int, typer.Argument(min=1, help="How many more; shards are drained, never taken away.")],
    data_dir: DataDir = None,
    pool: Annotated[str, typer.Option(help="The pool that gets them.")] = "default",
) -> None:
    """Add shards to a pool while everything runs. Nobody moves by it: spread tenants, or move them, afterwards."""
    from hookpost.app import sharding

    settings = load(data_dir=data_dir)
    telemetry.configure("shards", settings.log_format, settings.log_level)
    total = asyncio.run(sharding.add(settings, _database(settings), pool=pool, count=count))
    print(f"the pool {pool} has {total} shards; `hookpost tenants move TENANT --spread N` puts a tenant on N of them")


@shards_app.command("drain")
def drain_shard(
    shard: int,
    data_dir: DataDir = None,
    wait: Annotated[bool, typer.Option("--wait", help="End when nothing is left there.")] = False,
) -> None:
    """Take a shard out of use while everything runs: nobody new comes, and who is there moves to others of the pool."""
    from hookpost.app import sharding

    settings = load(data_dir=data_dir)
    telemetry.configure("shards", settings.log_format, settings.log_level)
    print(sharding.told(*asyncio.run(sharding.drain(settings, _database(settings), shard, wait=wait))))


@shards_app.command("undrain")
def undrain_shard(shard: int, data_dir: DataDir = None) -> None:
    """Put a shard that was drained into use again. Nobody comes back by it."""
    from hookpost.app import sharding

    settings = load(data_dir=data_dir)
    telemetry.configure("shards", settings.log_format, settings.log_level)
    asyncio.run(sharding.undrain(settings, _database(settings), shard))
    print(f"shard {shard} is in use again; `hookpost tenants move TENANT --spread N` may put a tenant there")


@app.command()
def config() -> None:
    """Every setting with its value, default and meaning (secrets masked)."""
    settings = load()
    for variable, shown, default, meaning in describe(settings):
        changed = "" if shown == default else f"  (default {default or 'none'})"
        print(f"{variable}={shown}{changed}\n    {meaning}")


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Check what a server needs, one line each; exit code 1 when something is wrong."""
    from hookpost.app.doctor import examine

    settings = load(data_dir=data_dir)
    telemetry.configure("doctor", "text", "error")
    findings = asyncio.run(examine(settings, find_running(settings.data_dir)))
    for finding in findings:
        print(f"{'ok  ' if finding.good else 'BAD '} {finding.what}: {finding.detail}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """The version of this program."""
    print(__version__)


# ---- clients of the HTTP API ----------------------------------------------------------------------------------------


@app.command()
def send(
    type: Annotated[str, typer.Argument(help="Event type, e.g. invoice.paid")],
    payload: Annotated[str, typer.Argument(help="JSON, @FILE, or - for standard input")] = "{}",
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    to: Annotated[list[str] | None, typer.Option(help="Endpoint ids; overrides the filters.")] = None,
) -> None:
    """Post one event."""
    # The payload goes out as it was given: bytes, key order and number spelling are the producer's.
    fields = {"type": type, "idempotency_key": key, "target_endpoints": to or None}
    head = json.dumps({name: value for name, value in fields.items() if value is not None})
    _show(Client().call("POST", "/v1/events", raw=f'{head[:-1]}, "payload": {_given(payload)}}}'.encode()))


def _given(payload: str) -> str:
    """A payload's text: itself, of a file, or of standard input."""
    if payload == "-":
        return sys.stdin.read()
    return Path(payload[1:]).read_text(encoding="utf-8") if payload.startswith("@") else payload


@events_app.command("list")
def list_events(
    type: Annotated[str | None, typer.Option(help="Only this type.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
) -> None:
    """The newest events."""
    _show(Client().call("GET", "/v1/events", type=type, limit=limit)["data"])


@events_app.command("get")
def get_event(event_id: str) -> None:
    """One event with its deliveries and attempts."""
    client = Client()
    event = client.call("GET", f"/v1/events/{event_id}")
    event["attempts"] = client.call("GET", "/v1/deliveries", event_id=event_id, limit=100)["data"]
    _show(event)


@events_app.command("why")
def why_event(
    event_id: str,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Only this endpoint.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As the API tells it.")] = False,
) -> None:
    """Why an event is where it is: what happened at each endpoint and what happens next, in plain words."""
    why = Client().call("GET", f"/v1/events/{event_id}/explain", endpoint_id=endpoint)
    if as_json:
        _show(why)
    else:
        print("\n".join(_explained(why)))


def _explained(why: Mapping[str, Any]) -> Iterator[str]:
    """The answer of the API for a person at a terminal. What others wrote (types, filters) shows as text."""
    yield _printable(f"{why['event_id']}  {why['type']}  accepted {why['created_at']}")
    for each in why["endpoints"]:
        reason = f" ({each['reason']})" if each["reason"] else ""
        yield _printable(f"\n{each['endpoint_id']}  {each['status']}{reason}")
        yield _printable(f"  {each['summary']}")
        if each["next_step"]:
            yield _printable(f"  -> {each['next_step']}")
    if not why["endpoints"]:
        yield "\nThe tenant had no endpoints."
    if why["more"]:
        yield "\nThere are more endpoints: ask for one with --endpoint."


def _printable(text: str) -> str:
    """Nothing of it steers the terminal; a line break at its beginning is ours."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


@app.command()
def replay(
    event_id: Annotated[str | None, typer.Argument(help="One event; without it, all that the options match.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only to this endpoint.")] = None,
    type: Annotated[str | None, typer.Option(help="Only events of this type.")] = None,
    status: Annotated[str | None, typer.Option(help="dead, delivered or any.  [default: dead]")] = None,
    reason: Annotated[str | None, typer.Option(help="Only what died of this, e.g. attempts_exhausted.")] = None,
    since: Annotated[str | None, typer.Option(help="Accepted at or after, e.g. 2026-01-02T03:04:05Z")] = None,
    until: Annotated[str | None, typer.Option(help="Accepted before.")] = None,
    rate: Annotated[float | None, typer.Option(help="Deliveries per second.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what matches.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all of it is in the journal.")] = False,
) -> None:
    """Deliver once more: an event, or in bulk whatever is dead, or was delivered, as the options say."""
    client = Client()
    wanted = {"type": type, "status": status, "reason": reason, "since": since, "until": until, "rate_limit": rate}
    body = {name: value for name, value in {"endpoint_id": endpoint, **wanted}.items() if value is not None}
    if event_id is not None:
        if dry_run or wait or body.keys() - {"endpoint_id"}:
            raise ClientError("an event is replayed at once: give either its id (and --endpoint), or a filter")
        _show(client.call("POST", f"/v1/events/{event_id}/replay", body))
        return
    if not body:
        raise ClientError("name an event, or say which by --endpoint, --type, --since, --until, --status or --reason")
    started = client.call("POST", "/v1/replays", {**body, "dry_run": dry_run})
    if wait and not dry_run:
        started = _wait_for_replay(client, started["replay_id"])
    _show(started)


def _wait_for_replay(client: Client, replay_id: str) -> Any:
    """The replay when it has ended; how far it is goes to standard error."""
    while True:
        replay = client.call("GET", f"/v1/replays/{replay_id}")
        if replay["state"] != "running":
            return replay
        print(f"{replay['replayed']} of {replay['matched']}", file=sys.stderr)
        time.sleep(REPLAY_LOOK_S)


@app.command()
def replays(
    replay_id: Annotated[str | None, typer.Argument(help="One bulk replay; without it, the newest.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it; what is in the journal is delivered.")] = False,
) -> None:
    """Bulk replays and how far they are."""
    client = Client()
    if replay_id is None:
        if cancel:
            raise ClientError("name the replay to cancel: `hookpost replays` lists them")
        _show(client.call("GET", "/v1/replays", limit=100)["data"])
        return
    if cancel:
        client.call("DELETE", f"/v1/replays/{replay_id}")
    _show(client.call("GET", f"/v1/replays/{replay_id}"))


@app.command()
def cost(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="First day, e.g. 2026-01-01T00:00:00Z")] = None,
    to: Annotated[str | None, typer.Option(help="End, not included.  [default: now]")] = None,
    worker_hour: Annotated[float | None, typer.Option(help="Price of a worker for an hour.")] = None,
    requests_per_worker: Annotated[float | None, typer.Option(help="Requests that it has under way at a time.")] = None,
    storage_gb_month: Annotated[float | None, typer.Option(help="Price of a GB of disk for a month.")] = None,
    egress_gb: Annotated[float | None, typer.Option(help="Price of a GB of traffic.")] = None,
    retention_days: Annotated[float | None, typer.Option(help="Days for which attempts are kept.")] = None,
    usage: Annotated[bool, typer.Option("--usage", help="Instead: what was used, by day and tenant.")] = False,
    format: Annotated[str, typer.Option(help="Of --usage: csv or ndjson.")] = "csv",
) -> None:
    """What a month costs at the pace of some days, measured, and by your prices; or (--usage) an export for billing."""
    about: dict[str, Any] = {"tenant_id": tenant, "from": since, "to": to}
    prices: dict[str, Any] = {
        "worker_cost_per_hour": worker_hour,
        "requests_per_worker": requests_per_worker,
        "storage_cost_per_gb_month": storage_gb_month,
        "egress_cost_per_gb": egress_gb,
        "retention_days": retention_days,
    }
    if not usage:
        _show(Client().call("GET", "/v1/cost", **about, **prices))
    elif any(price is not None for price in prices.values()):
        raise ClientError("--usage is what was used, whatever the prices: leave them out")
    else:
        sys.stdout.write(Client().text("/v1/usage", **about, format=format))


OfEndpoint = Annotated[str | None, typer.Option("--endpoint", help="Only the delivery to this endpoint.")]


@app.command()
def cancel(event_id: str, endpoint: OfEndpoint = None) -> None:
    """Cancel what is not delivered yet of an event."""
    body = {} if endpoint is None else {"endpoint_id": endpoint}
    _show(Client().call("POST", f"/v1/events/{event_id}/cancel", body))


@app.command("retry-now")
def retry_now(event_id: str, endpoint: OfEndpoint = None) -> None:
    """Try what waits of an event now, whenever it was due."""
    body = {} if endpoint is None else {"endpoint_id": endpoint}
    _show(Client().call("POST", f"/v1/events/{event_id}/retry_now", body))


@tenants_app.command("create")
def create_tenant(
    name: str,
    ingest_rate_limit: Annotated[float | None, typer.Option(help="Events a second that it may post.")] = None,
) -> None:
    """Create a tenant."""
    body: dict[str, Any] = {"name": name}
    if ingest_rate_limit is not None:
        body["ingest_rate_limit"] = ingest_rate_limit
    _show(Client().call("POST", "/v1/tenants", body))


@tenants_app.command("move")
def move_tenant(
    tenant_id: str,
    pool: Annotated[str | None, typer.Option(help="The pool that is to serve it.")] = None,
    spread: Annotated[str | None, typer.Option(help="How many home shards; auto: as its load asks.")] = None,
) -> None:
    """Move a tenant to a pool, or spread it over more or fewer shards. `moving` is true until all is over."""
    changes: dict[str, Any] = {}
    if pool is not None:
        changes["pool"] = pool
    if spread is not None:
        changes["spread"] = _home_count(spread)
    if not changes:
        raise ConfigError("give --pool, --spread, or both")
    _show(Client().call("PATCH", f"/v1/tenants/{tenant_id}", changes))


def _home_count(given: str) -> int | None:
    if given == "auto":
        return None
    if given.isascii() and given.isdigit():
        return int(given)
    raise ConfigError(f"--spread is a number or auto, not {given}")


@tenants_app.command("list")
def list_tenants() -> None:
    """The newest tenants."""
    _show(Client().call("GET", "/v1/tenants", limit=100)["data"])


@pools_app.command("add")
def add_pool(
    name: str,
    shards: Annotated[int, typer.Option(help="How many shards the pool is to have; they are never taken away.")],
) -> None:
    """Make a pool of shards, or add shards to one, while everything runs. Start its workers first."""
    _show(Client().call("POST", "/v1/pools", {"name": name, "shards": shards}))


@pools_app.command("list")
def list_pools() -> None:
    """All pools with their shards, tenants and living workers."""
    _show(Client().call("GET", "/v1/pools")["data"])


@keys_app.command("create")
def create_key(
    tenant_id: str,
    name: str,
    scope: Annotated[list[str] | None, typer.Option(help="events:write, endpoints:write, read, replay.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="When it ends, e.g. 2027-01-02T03:04:05Z")] = None,
) -> None:
    """Create an API key of a tenant; it is shown once."""
    body: dict[str, Any] = {"name": name}
    if expires_at is not None:
        body["expires_at"] = expires_at
    if scope:
        body["scopes"] = scope
    _show(Client().call("POST", f"/v1/tenants/{tenant_id}/api_keys", body))


@keys_app.command("list")
def list_keys(tenant_id: str) -> None:
    """The API keys of a tenant."""
    _show(Client().call("GET", f"/v1/tenants/{tenant_id}/api_keys", limit=100)["data"])


@keys_app.command("revoke")
def revoke_key(tenant_id: str, api_key_id: str) -> None:
    """Revoke an API key; it stops working within a second."""
    Client().call("DELETE", f"/v1/tenants/{tenant_id}/api_keys/{api_key_id}")
    print("revoked")


@keys_app.command("new-encryption-key")
def new_encryption_key() -> None:
    """Print a fresh key for HOOKPOST_ENCRYPTION_KEYS; nothing is changed."""
    from hookpost.app.keyring import new_key

    print(new_key())


@keys_app.command("add-encryption-key")
def add_encryption_key(data_dir: DataDir = None) -> None:
    """Put a fresh key in front of the file of keys. Restart all processes with it, then `keys rotate-encryption`."""
    from hookpost.app.keyring import add_key, key_file

    settings = load(data_dir=data_dir)
    if settings.encryption_keys is not None:
        raise ConfigError(
            "the keys come from HOOKPOST_ENCRYPTION_KEYS: put what `keys new-encryption-key` prints in front of them"
        )
    path = key_file(settings)
    print(f"{add_key(path)} is the first key in {path}: restart all processes, then `hookpost keys rotate-encryption`")


@keys_app.command("rotate-encryption")
def rotate_encryption(data_dir: DataDir = None) -> None:
    """Wrap all data keys with the first encryption key, while everything runs. Works on the database; where it was
    interrupted it goes on."""
    from hookpost.app.keyring import rotate

    settings = load(data_dir=data_dir)
    telemetry.configure("keys", settings.log_format, settings.log_level)
    first, count = asyncio.run(rotate(settings, _database(settings)))
    print(f"{count} data keys wrapped anew; all need the encryption key {first} alone now: others may be taken away")


@endpoints_app.command("create")
def create_endpoint(
    url: str,
    event: Annotated[list[str] | None, typer.Option(help="Event types: names, prefix.*, or *")] = None,
    ack: Annotated[bool, typer.Option("--ack", help="Delivered only when the receiver signs its answer.")] = False,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'name: value', sent with each.")] = None,
    forward_trace: Annotated[bool, typer.Option("--forward-trace", help="Told the producer's own trace.")] = False,
) -> None:
    """Create an endpoint; the answer holds its signing secret."""
    body: dict[str, Any] = {"url": url}
    if header:
        body["headers"] = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in header)}
    if event:
        body["events"] = event
    if ack:
        body["ack"] = "signed"
    if forward_trace:
        body["forward_trace"] = True
    _show(Client().call("POST", "/v1/webhook_endpoints", body))


@endpoints_app.command("list")
def list_endpoints() -> None:
    """The newest endpoints."""
    _show(Client().call("GET", "/v1/webhook_endpoints", limit=100)["data"])


@endpoints_app.command("headers")
def endpoint_headers(
    endpoint_id: str,
    header: Annotated[list[str] | None, typer.Option("--set", "-H", help="'name: value', sent with each.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="'name: @FILE' or 'name: -'; never shown again.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Name of a header to take away.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all of them away.")] = False,
) -> None:
    """An endpoint's own headers: show, set, take away. Those that are not named stay as they are."""
    change = endpoint_options.headers(header or (), secret or (), remove or (), clear=clear)
    _show(_changed_endpoint(endpoint_id, "headers", change))


@endpoints_app.command("tls")
def endpoint_tls(
    endpoint_id: str,
    ca: Annotated[Path | None, typer.Option(help="PEM file of certificates to trust, instead of public ones.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of the client certificate, its chain behind it.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its private key; never shown again.")] = None,
    remove_ca: Annotated[bool, typer.Option("--remove-ca", help="Trust public authorities again.")] = False,
    remove_cert: Annotated[bool, typer.Option("--remove-cert", help="Show no client certificate any more.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take all of it away.")] = False,
) -> None:
    """TLS of an endpoint's own: show, set, take away. What is not named stays as it is."""
    change = endpoint_options.tls(ca, cert, key, remove_ca=remove_ca, remove_cert=remove_cert, clear=clear)
    _show(_changed_endpoint(endpoint_id, "tls", change))


def _changed_endpoint(endpoint_id: str, field: str, change: Mapping[str, Any]) -> Any:
    """That field of the endpoint, after the change if there is one."""
    path = f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}"
    return (Client().call("PATCH", path, change) if change else Client().call("GET", path))[field]


@endpoints_app.command("test")
def test_endpoint(
    endpoint_id: str,
    type: Annotated[str | None, typer.Option(help="An event type; hookpost.test when left out.")] = None,
    payload: Annotated[
        str | None, typer.Option(help="JSON, @FILE, or - for standard input; else the example in the type's schema.")
    ] = None,
) -> None:
    """Send a test event to this endpoint alone, and say what its id is."""
    head = json.dumps({} if type is None else {"type": type})
    raw = head if payload is None else f'{head[:-1]}{", " if type else ""}"payload": {_given(payload)}}}'
    _show(Client().call("POST", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}/test", raw=raw.encode()))


@endpoints_app.command("delete")
def delete_endpoint(endpoint_id: str) -> None:
    """Delete an endpoint; what is still owed to it is cancelled."""
    Client().call("DELETE", f"/v1/webhook_endpoints/{endpoint_id}")
    print("deleted")


@audit_app.command("list")
def list_audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant (admin key).")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, e.g. endpoint.update")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 50,
) -> None:
    """The newest rows."""
    _show(Client().call("GET", "/v1/audit_log", tenant_id=tenant, action=action, limit=limit)["data"])


@audit_app.command("export")
def export_audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant (admin key).")] = None,
    since: Annotated[str | None, typer.Option(help="At or after, e.g. 2026-01-02T03:04:05Z")] = None,
    until: Annotated[str | None, typer.Option(help="Before.")] = None,
) -> None:
    """All rows as NDJSON on standard output, newest first."""
    about = {"tenant_id": tenant, "since": since, "until": until}
    sys.stdout.write(Client().text("/v1/audit_log", format="ndjson", **about))


@audit_app.command("verify")
def verify_audit(
    data_dir: DataDir = None,
    save: Annotated[Path | None, typer.Option(help="Write down where each chain ends; keep it elsewhere.")] = None,
    against: Annotated[Path | None, typer.Option(help="What --save wrote before: find what was cut off since.")] = None,
) -> None:
    """Find rows that were altered, deleted, put in, moved or cut off; exit code 1 when there are any. Works on the
    database, with the encryption keys."""
    from hookpost.app import auditing

    settings = load(data_dir=data_dir)
    telemetry.configure("audit", settings.log_format, settings.log_level)
    found = asyncio.run(auditing.verify_all(settings, _database(settings), against))
    for line in auditing.report(found):
        print(line)
    if save is not None:
        auditing.save(save, found)
    if found.faults:
        raise typer.Exit(1)


# ---- offline --------------------------------------------------------------------------------------------------------


@app.command("verify")
def verify_command(
    header: Annotated[list[str], typer.Option("--header", "-H", help="A header as received, 'name: value'; repeat.")],
    secret: Annotated[str, typer.Option(envvar="HOOKPOST_SECRET", help="The endpoint's secret, whsec_…")],
    body: Annotated[Path | None, typer.Option(help="File with the body as received; default: standard input.")] = None,
    now: Annotated[float | None, typer.Option(help="Unix time to judge the timestamp by; default: the clock.")] = None,
) -> None:
    """Check a received request's signature offline, and say exactly what is wrong with it."""
    headers = {}
    for line in header:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    payload = sys.stdin.buffer.read() if body is None else body.read_bytes()
    found = diagnose(headers, payload, secret, time.time() if now is None else now)
    print("valid" if found.valid else f"invalid: {found.finding} {found.advice}".rstrip())
    if not found.valid:
        raise typer.Exit(1)


# ---- demonstration --------------------------------------------------------------------------------------------------


@app.command()
def demo(
    events: Annotated[int, typer.Option(help="Events to post; without --exit the demo goes on after them.")] = 2000,
    exit: Annotated[bool, typer.Option("--exit", help="Stop when all are delivered; the last line is JSON.")] = False,
    rate: Annotated[float, typer.Option(help="Events per second after the first burst.")] = 20.0,
) -> None:
    """A server, a receiver and a producer on this machine: watch events go through."""
    from hookpost.app.demo import run_demo

    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(asyncio.run(run_demo(events=events, leave=exit, rate=rate)))


@app.command()
def bench(
    scenarios: Annotated[list[str] | None, typer.Argument(help="Which ones, e.g. bare e2e; none: the usual.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=3600, help="How long each scenario measures.")] = 10.0,
) -> None:
    """Measure this machine: one JSON line a scenario, then a table with the targets."""
    from hookpost.app.bench import SCENARIOS, USUAL
    from hookpost.app.bench import bench as run

    wanted = scenarios or list(USUAL)
    unknown = [name for name in wanted if name not in SCENARIOS]
    if unknown:
        raise ConfigError(f"there is no scenario {unknown[0]}: choose from {', '.join(SCENARIOS)}")
    raise typer.Exit(run(wanted, seconds=seconds))


if __name__ == "__main__":
    main()
