"""Fill a database by SQL, as if Hookpost had run for days: far faster than by posting, and for the store the same rows.

Relies on nobody owning the shards meanwhile. Promises what an append and a settle promise: gapless numbers in each
shard, events in the shard that their id asks for, days that never go back, progress that a new owner can go on from.

The statements make rows for measurements only, so they stand here and not with the store's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from hookpost.app.bench.load import PAYLOAD
from hookpost.model import WaitReason
from hookpost.policy.keys import KEY_ID_BYTES, SECRET_BYTES, hash_secret, make_key, parse_key
from hookpost.policy.routing import is_pinned

# Events of one statement: short enough to be followed, and for its transaction not to hold back the rest.
EVENTS_AT_ONCE = 250_000
# What stands before and behind the running number in a payload.
_PAYLOAD = PAYLOAD.decode().split("%010d")
# How filled attempts are told from those that the scenario caused.
WORKER = "filled"
# Rows of one COPY from here.
COPY_ROWS = 10_000

# The events of a fill, each with the one endpoint it is owed to. All of it follows from the running number, so that an
# event, its backlog row and its attempt agree although each is made by a statement of its own. The low half of an id
# leads to its shard as policy/routing.py says: 2^63 and 60 drawn bits, moved to the right remainder.
_EVENTS_OF = """
create function pg_temp.events_of(
    p_first bigint, p_from bigint, p_count bigint, p_shards int[], p_after bigint[], p_endpoints uuid[],
    p_begin timestamptz, p_step interval, p_payload text[]
) returns table (shard int, seq bigint, event_id uuid, endpoint_id uuid, payload bytea, created_at timestamptz)
language sql stable as $$
    select p_shards[1 + place], p_after[1 + place] + 1 + i / k,
           (lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(i & 4095), 3, '0')
            || to_hex(-9223372036854775808 + drawn - drawn % k
                      + (place - (4611686018427387904 % k * 2) % k + k) % k))::uuid,
           p_endpoints[1 + (i / k) % cardinality(p_endpoints)],
           convert_to(p_payload[1] || lpad((p_first + i)::text, 10, '0') || p_payload[2], 'UTF8'),
           moment
    from (
        select g as i, cardinality(p_shards)::bigint as k, (g % cardinality(p_shards))::int as place,
               hashint8extended(p_first + g, 7) & 1152921504606846975 as drawn, p_begin + g * p_step as moment
        from generate_series(p_from, p_from + p_count - 1) g
    ) n
$$
"""
_EVENTS = """
insert into events (day, shard, seq, event_id, tenant_id, type, payload, owed, created_at)
select $10, shard, seq, event_id, $11, 'invoice.paid', payload, array[endpoint_id], created_at
from pg_temp.events_of($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_BACKLOG = """
insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at, retry_count,
                     deadline, created_at, last_http_status, last_error_code)
select shard, endpoint_id, seq, $10, $11, event_id, 0, $12, created_at + make_interval(secs => $13), $14,
       created_at + interval '3 days', created_at, case when $14 > 0 then 503 end, case when $14 > 0 then 'http_5xx' end
from pg_temp.events_of($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_ATTEMPTS_OF = """
insert into attempts (day, attempt_id, shard, settle_no, position, event_id, endpoint_id, tenant_id, generation,
                      scheduled_at, started_at, finished_at, retry_count, latency_ms, dns_ms, connect_ms, tls_ms,
                      first_byte_ms, request_bytes, response_bytes, http_status, error_code, possible_duplicate,
                      outcome, worker, address, protocol, response_hash, response_head)
select $10, uuidv7(created_at - now()), shard, 1 + seq / 50, seq, event_id, endpoint_id, $11, 0, created_at,
       created_at + interval '3 ms', created_at + make_interval(secs => (3 + took) / 1000.0), 0, took, 0, 0, 0, took,
       900, 2, case outcome when 'retry' then 503 when 'dead' then 404 else 200 end,
       case outcome when 'retry' then 'http_5xx' when 'dead' then 'http_4xx' end, false, outcome, 'filled', '127.0.0.1',
       'HTTP/1.1', sha256('ok'), convert_to(E'HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok', 'UTF8')
from pg_temp.events_of($1, $2, $3, $4, $5, $6, $7, $8, $9)
cross join lateral (
"""
_ATTEMPTS = f"{_ATTEMPTS_OF} select 5 as took, 'delivered' as outcome) v"
# As a real day looks: latencies from 1 ms to 1 s, two of a hundred to be tried again, one of a thousand dead.
_VARIED_ATTEMPTS = f"""{_ATTEMPTS_OF}
    select round(2 ^ (abs(hashint8(seq) % 1000) / 100.0))::int as took,
           case when seq % 50 = 7 then 'retry' when seq % 1000 = 11 then 'dead' else 'delivered' end as outcome
) v
"""
# All that is there was read, and is done or in the backlog; the last owner left with nothing in flight.
_PROGRESS = """
insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day, clean)
select hookpost_today(), s.shard, coalesce((select max(p.settle_no) from progress p where p.shard = s.shard), 0) + 1,
       s.fence, l.last_seq, l.last_seq, $2, true
from shards s cross join lateral hookpost_last(s.shard) l where s.shard = any ($1)
"""
_COUNTED = """
insert into rollup_progress as m (shard, settle_no, seq, day)
select s.shard, coalesce((select max(p.settle_no) from progress p where p.shard = s.shard), 0), l.last_seq,
       hookpost_today()
from shards s cross join lateral hookpost_last(s.shard) l
on conflict (shard) do update set settle_no = excluded.settle_no, seq = excluded.seq, day = excluded.day
"""
# One event for every endpoint of tenants that are at home in one shard.
_ONE_EACH = """
with numbered as materialized (
    select e.endpoint_id, e.tenant_id, t.home_shards[1] as shard, uuidv7() as event_id, hookpost_now() as created_at,
           l.last_seq + row_number() over (partition by l.shard order by e.endpoint_id) as seq,
           $1 + row_number() over (order by e.endpoint_id) - 1 as number
    from endpoints e join tenants t using (tenant_id)
    join (select s.shard, l.last_seq from shards s cross join lateral hookpost_last(s.shard) l) l
        on l.shard = t.home_shards[1]
    where cardinality(t.home_shards) = 1
), stored as (
    insert into events (day, shard, seq, event_id, tenant_id, type, payload, owed, created_at)
    select hookpost_today(), shard, seq, event_id, tenant_id, 'invoice.paid',
           convert_to(($2::text[])[1] || lpad(number::text, 10, '0') || ($2::text[])[2], 'UTF8'), array[endpoint_id],
           created_at
    from numbered
)
insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at, retry_count,
                     deadline, created_at)
select shard, endpoint_id, seq, hookpost_today(), tenant_id, event_id, 0, $3, created_at + make_interval(secs => $4), 0,
       created_at + interval '3 days', created_at
from numbered
"""
_OWNED = "select count(*) from shards where owner is not null"
_UNDONE = """
select count(*) from shards s cross join lateral hookpost_last(s.shard) l left join lateral (
    select p.cursor from progress p where p.shard = s.shard order by p.settle_no desc limit 1
) p on true
where s.shard = any ($1) and l.last_seq > coalesce(p.cursor, s.floor_seq)
"""
_ROUTES = """
select t.max_in_flight as tenant_cap, t.home_shards, array_agg(e.max_in_flight) as caps
from tenants t join endpoints e using (tenant_id)
where t.tenant_id = $1 and e.endpoint_id = any ($2) group by t.tenant_id
"""
_PARTITIONS = """
select c.oid::regclass::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
where pg_relation_size(c.oid) > 0 order by 1
"""
_PLAIN_TABLES = ("tenants", "api_keys", "endpoints", "endpoint_secrets", "backlog", "shards")


class ShardsOwned(RuntimeError):
    """A worker owns shards: what it knows of them would become wrong."""


class EventsLeft(RuntimeError):
    """Events are neither done nor in the backlog: the progress of a fill would pass them over."""


@dataclass(frozen=True, slots=True)
class Owed:
    """Whom filled events belong to: each is owed to one of the endpoints, in turns, and lies in one of the shards."""

    tenant_id: UUID
    shards: tuple[int, ...]
    endpoints: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class FilledTenant:
    """A tenant with the API key and the endpoints it was made with."""

    tenant_id: UUID
    shard: int
    key: str
    endpoints: tuple[UUID, ...]


async def begin(connection: Any) -> None:
    """Make the session ready to fill; raises ShardsOwned while a worker is at work."""
    if await connection.fetchval(_OWNED):
        raise ShardsOwned("workers own shards: stop them before the database is filled")
    await connection.execute("set synchronous_commit = off")
    await connection.execute("set statement_timeout = 0")
    await connection.execute(_EVENTS_OF)


async def finish(connection: Any) -> None:
    """Let the database forget that it was filled in a hurry: clean rows, true statistics, nothing left to write, and
    nothing to be counted by the builder of rollups, who would be at work while something else is measured."""
    await connection.execute(_COUNTED)
    await connection.execute("reset synchronous_commit")
    tables = [row[0] for row in await connection.fetch(_PARTITIONS)]
    for table in (*tables, *_PLAIN_TABLES):
        await connection.execute(f"vacuum (analyze) {table}")
    await connection.execute("checkpoint")


async def owed_to(connection: Any, tenant_id: UUID, endpoints: Sequence[UUID], *, endpoint_cap: int = 64) -> Owed:
    """The shards that ingest would choose for events of this tenant owed to one of these endpoints."""
    row = await connection.fetchrow(_ROUTES, tenant_id, list(endpoints))
    homes = tuple(row["home_shards"])
    caps = [row["tenant_cap"], *(cap or endpoint_cap for cap in row["caps"])]
    pinned = any(is_pinned(cap, homes) for cap in caps)
    return Owed(tenant_id, homes[:1] if pinned else homes, tuple(endpoints))


# ---- events ---------------------------------------------------------------------------------------------------------


async def journal(connection: Any, owed: Owed, count: int, *, first: int = 0) -> None:
    """Events that were accepted just now and not read yet, numbered from ``first``."""
    batch = await _batch(connection, owed, count, first=first)
    await batch.insert(_EVENTS)


async def backlog(
    connection: Any, owed: Owed, count: int, *, reason: WaitReason, due_in_s: float, first: int = 0
) -> None:
    """Events that were read and wait in the backlog, due in so many seconds (or since, when negative)."""
    await _require_done(connection, owed.shards)
    batch = await _batch(connection, owed, count, first=first)
    await batch.insert(_EVENTS)
    await batch.insert(_BACKLOG, reason.value, due_in_s, 1 if reason is WaitReason.RETRY else 0)
    await connection.execute(_PROGRESS, list(owed.shards), batch.day)


async def backlog_of_all(connection: Any, *, reason: WaitReason, due_in_s: float, first: int = 0) -> None:
    """One waiting event for every endpoint of the tenants that ``tenants`` made: a lane each."""
    shards = await connection.fetchval("select array_agg(shard) from shards")
    await _require_done(connection, shards)
    await connection.execute(_ONE_EACH, first, _PAYLOAD, reason.value, due_in_s, timeout=None)
    await connection.execute(_PROGRESS, shards, await connection.fetchval("select hookpost_today()"))


async def finished(connection: Any, owed: Owed, count: int, *, days: int, first: int = 0, varied: bool = False) -> None:
    """Delivered events with their attempts, spread evenly over so many days up to today, oldest first. ``varied``: as a
    history looks, with latencies and failures of all kinds."""
    await _require_done(connection, owed.shards)
    today = await connection.fetchval("select hookpost_today()")
    await connection.execute("select hookpost_make_partitions($1::date - $2::int, $1::date)", today, days - 1)
    for place in range(days):
        share = count * (place + 1) // days - count * place // days
        if share:
            back = days - 1 - place
            batch = await _batch(connection, owed, share, first=first + count * place // days, days_back=back)
            await batch.insert(_EVENTS)
            await batch.insert(_VARIED_ATTEMPTS if varied else _ATTEMPTS)
            await connection.execute(_PROGRESS, list(owed.shards), batch.day)


async def _require_done(connection: Any, shards: Sequence[int]) -> None:
    if await connection.fetchval(_UNDONE, list(shards)):
        raise EventsLeft("events of these shards are not done: fill the journal last, or let a worker finish them")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Events of one day as the arguments of ``pg_temp.events_of``."""

    connection: Any
    owed: Owed
    first: int
    count: int
    after: list[int]
    begin: Any
    step: Any
    day: Any

    async def insert(self, sql: str, *more: Any) -> None:
        """Run the statement over all events, some at a time."""
        owed = self.owed
        for start in range(0, self.count, EVENTS_AT_ONCE):
            await self.connection.execute(
                sql, self.first, start, min(EVENTS_AT_ONCE, self.count - start), list(owed.shards), self.after,
                list(owed.endpoints), self.begin, self.step, _PAYLOAD, self.day, owed.tenant_id, *more,
                timeout=None,
            )  # fmt: skip


async def _batch(connection: Any, owed: Owed, count: int, *, first: int, days_back: int = 0) -> _Batch:
    """Where the shards stand, and times that end now: a millionth of a second apart today, all over a day gone by."""
    after = await connection.fetchval(
        "select array_agg((select l.last_seq from hookpost_last(s.shard) l) order by s.place)"
        " from unnest($1::int[]) with ordinality s(shard, place)",
        list(owed.shards),
    )
    row = await connection.fetchrow(
        "select d.day, case when $1 = 0 then greatest(hookpost_now() - $2 * s.step, d.day::timestamptz) else d.day end"
        " as begin, s.step"
        " from (select hookpost_today() - $1::int as day) d,"
        " (select case when $1 = 0 then interval '1 us' else interval '1 day' / ($2::bigint + 1) end as step) s",
        days_back,
        count,
    )
    return _Batch(connection, owed, first, count, after, row["begin"], row["step"], row["day"])


# ---- tenants --------------------------------------------------------------------------------------------------------


async def tenants(
    connection: Any,
    *,
    tenants: int,
    endpoints: int,
    urls: Sequence[str],
    secret: bytes,
    types: Sequence[str] = ("*",),
    pool: str = "default",
) -> list[FilledTenant]:
    """Tenants, each at home in one shard as the API would choose it, with equal parts of the endpoints.

    Endpoint number n has the URL ``urls[n % len(urls)]`` with its number behind, the k-th of each tenant wants events
    of ``types[k % len(types)]``; all sign with the same secret.
    """
    shards = [row[0] for row in await connection.fetch("select shard from shards where pool = $1 order by 1", pool)]
    made = [_tenant(number, shards, tenants, endpoints) for number in range(tenants)]
    await _copy(connection, "tenants", ("tenant_id", "name", "pool", "home_shards"), [
        (tenant.tenant_id, f"tenant {number}", pool, [tenant.shard]) for number, tenant in enumerate(made)
    ])  # fmt: skip
    keys = [(tenant, parse_key(tenant.key)) for tenant in made]
    await _copy(connection, "api_keys", ("key_id", "tenant_id", "name", "key_hash"), [
        (key.key_id, tenant.tenant_id, "filled", hash_secret(key.secret)) for tenant, key in keys if key is not None
    ])  # fmt: skip
    owners = [(tenant.tenant_id, e, types[k % len(types)]) for tenant in made for k, e in enumerate(tenant.endpoints)]
    await _copy(connection, "endpoints", ("endpoint_id", "tenant_id", "url", "events"), [
        (endpoint, tenant_id, f"{urls[number % len(urls)]}/{number}", [type_])
        for number, (tenant_id, endpoint, type_) in enumerate(owners)
    ])  # fmt: skip
    await _copy(connection, "endpoint_secrets", ("endpoint_id", "key"), [(e, secret) for _, e, _ in owners])
    return made


def _tenant(number: int, shards: Sequence[int], tenants: int, endpoints: int) -> FilledTenant:
    share = endpoints * (number + 1) // tenants - endpoints * number // tenants
    key = make_key(number.to_bytes(KEY_ID_BYTES, "big"), number.to_bytes(SECRET_BYTES, "big"))
    return FilledTenant(uuid7(), shards[number % len(shards)], key, tuple(uuid7() for _ in range(share)))


async def _copy(connection: Any, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    for start in range(0, len(rows), COPY_ROWS):
        await connection.copy_records_to_table(table, records=rows[start : start + COPY_ROWS], columns=list(columns))
