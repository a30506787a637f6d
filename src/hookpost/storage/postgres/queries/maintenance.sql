-- name: make_partitions
select hookpost_make_partitions(hookpost_today() - 1, hookpost_today() + $1::int)

-- name: expire_keys
-- The clock is asked once, so that the index ends the search. A key that an append holds is left alone: it may just be
-- given to a new event.
delete from idempotency_keys where ctid = any (array(
    select ctid from idempotency_keys where expires_at < (select hookpost_now()) order by expires_at limit $1
    for update skip locked
))

-- name: prune_turn
-- One prunes, the others have nothing to do. Held by the session.
select pg_try_advisory_lock(7704, 0)

-- name: old_progress
-- Partitions of past days, oldest first, with those that were detached by half or detached and not yet dropped.
select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day, i.inhrelid is not null as attached,
       coalesce(i.inhdetachpending, false) as pending
from pg_class c left join pg_inherits i on i.inhrelid = c.oid
where c.relkind = 'r' and pg_table_is_visible(c.oid) and c.relname ~ '^progress_\d{8}$'
  and to_date(right(c.relname, 8), 'YYYYMMDD') < hookpost_today() - 1
order by c.relname

-- name: progress_needed
-- Is the last row of some shard of that day? It is the shard's memory. The number tells which is the last, not the day:
-- clocks may have gone back. And attempts that are not rolled up yet are found by their progress. The greatest numbers are
-- looked up by the index; of an `exists` the planner hopes that a scan finds one soon.
select exists (
    select from shards s left join rollup_progress m on m.shard = s.shard
    where (select max(p.settle_no) from progress p where p.shard = s.shard and p.day = $1)
        = (select max(p.settle_no) from progress p where p.shard = s.shard)
       or (select max(a.settle_no) from attempts a where a.shard = s.shard and a.day = $1) > coalesce(m.settle_no, 0)
)

-- name: is_eldest
-- Node ids are UUIDv7: the least of the living was entered first.
select coalesce((select node_id = $1 from nodes where expires_at > clock_timestamp() order by node_id limit 1), false)

-- name: shard_loads
-- The last number of each shard, and how many entries are not read or open. What lies in the backlog is not meant: it
-- waits for its endpoints, and spreading the tenant would not help.
select s.shard, l.last_seq,
       l.last_seq - coalesce(p.read_to, s.floor_seq)
       + coalesce((select sum(upper(r) - lower(r)) from unnest(p.open) r), 0)::bigint as depth
from shards s
cross join lateral hookpost_last(s.shard) l
left join lateral (
    select q.read_to, q.open from progress q where q.shard = s.shard order by q.settle_no desc limit 1
) p on true
order by s.shard

-- name: tenant_shares
-- Whose the newest $2 rows of each shard are: a sample, bounded, not a count.
select u.shard, r.tenant_id, count(*)::float8 / sum(count(*)) over (partition by u.shard) as share
from unnest($1::int[]) u (shard)
cross join lateral (
    select e.tenant_id from events e
    where e.shard = u.shard and e.day >= (select hookpost_today() - 1) order by e.seq desc limit $2
) r
group by u.shard, r.tenant_id

-- name: spread_tenants
-- Tenants whose spread follows their load: those asked for, and all that have several home shards. pool_shards: how many
-- may be homes of theirs (moves.sql, pool_shards).
select t.tenant_id, t.home_shards, (
    select count(*) from shards s where s.pool = t.pool and (not s.draining or s.shard = any (t.home_shards))
) as pool_shards
from tenants t
where t.spread is null and t.deleted_at is null
  and (t.tenant_id = any ($1) or cardinality(t.home_shards) > 1)

-- name: grown
-- Tables that have four times the pages they had when they were last looked at ($1: at least so many count), up to a size
-- ($2) behind which no plan changes any more. Not those that are being looked at, nor another's, nor days that are moved
-- into segments. Nor partitions: what is asked of them often leaves nothing to choose, and to look at one of attempts takes
-- a core for 100 ms.
select quote_ident(c.relname) as name
from (
    select oid, relname, relowner, relpages from pg_class
    where relkind = 'r' and not relispartition and relpages <= $2 and relnamespace = current_schema()::regnamespace
      and relname !~ '^cold_'
    offset 0
) c
where pg_relation_size(c.oid) >= 4 * greatest(c.relpages, $1) * current_setting('block_size')::bigint
  and pg_has_role(c.relowner, 'usage')
  and not exists (select from pg_locks l where l.relation = c.oid and l.mode = 'ShareUpdateExclusiveLock')

-- name: swept_to
-- How far the payload store was swept; the first one to ask begins with this hour.
with begun as (
    insert into platform (name, value)
    values ('payloads_swept', floor(extract(epoch from clock_timestamp()) / 3600)::bigint::text)
    on conflict do nothing returning value
)
select coalesce((select value from begun), (select value from platform where name = 'payloads_swept'))::bigint

-- name: sweepable
select floor(extract(epoch from clock_timestamp() - make_interval(secs => $1)) / 3600)::bigint

-- name: note_swept
-- Never back: another node may have come further.
update platform set value = $1::bigint::text where name = 'payloads_swept' and value::bigint < $1

-- name: with_events
-- Of these events those that exist; in whichever partition, as clocks may have been set.
select u.event_id from unnest($1::uuid[]) u (event_id)
where exists (select from events e where e.event_id = u.event_id and e.kind = 0 offset 0)

-- name: known_segments
select key from segments where key = any ($1::text[])
