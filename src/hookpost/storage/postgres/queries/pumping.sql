-- name: reserve
-- Idempotency keys of events on their way to Kafka (see the function's own comment).
select * from hookpost_reserve(make_interval(secs => $1), $2, $3, $4, $5, $6)

-- name: pump
-- Records of one partition into the journal: one call, one implicit transaction (see the function's own comment).
select * from hookpost_pump($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)

-- name: pumped_to
-- How far the partitions of these shards were taken over, and when the last record was accepted.
select s.shard, o.next_offset, o.reached_at
from unnest($1::int[]) s (shard)
cross join lateral (
    select next_offset, reached_at from journal_offsets where shard = s.shard order by next_offset desc limit 1
) o

-- name: trim_offsets
-- Rows that a later one has taken the place of; the last ones stay for whoever looks what happened.
delete from journal_offsets o
where o.shard = $1 and o.next_offset < (
    select next_offset from journal_offsets where shard = $1 order by next_offset desc offset 100 limit 1
)

-- name: remember_topic
-- Which topic offsets are of; written once. (`coalesce`: the snapshot of this statement is older than its own row.)
with first as (insert into platform (name, value) values ('journal_topic', $1) on conflict do nothing)
select coalesce((select value from platform where name = 'journal_topic'), $1)

-- name: outdated
-- Tenants whose configuration is another one than events were matched with.
select u.tenant_id from unnest($1::uuid[], $2::bigint[]) u (tenant_id, version)
left join tenants t on t.tenant_id = u.tenant_id and t.deleted_at is null
where t.config_version is distinct from u.version

-- name: unsealed
-- Shards that somebody waits for and whose partitions' ends were not noted since, and up to which time of a change all that
-- was accepted before it lies in Kafka now. That is $1 s ago; or so long before the last look of a process that may have
-- been cut off since, and goes on accepting for $2 s. (Its row says until when it counts: $3 s from that look.)
select distinct w.shard, n.covers
from (
    select least(clock_timestamp(), (
        select min(i.expires_at) - make_interval(secs => $3::float8) from ingest_nodes i
        where i.expires_at > clock_timestamp() - make_interval(secs => $1::float8 + $2::float8 - $3::float8)
    )) - make_interval(secs => $1::float8) as covers
) n
cross join lateral (
    select shard, created_at from barriers union all select shard, created_at from departures
) w
where w.created_at <= n.covers
  and not exists (select from journal_ends j where j.shard = w.shard and j.covers >= w.created_at)

-- name: note_ends
insert into journal_ends (shard, end_offset, covers)
select u.shard, u.end_offset, $3 from unnest($1::int[], $2::bigint[]) u (shard, end_offset) order by u.shard
on conflict (shard) do update set end_offset = excluded.end_offset, covers = excluded.covers
where journal_ends.covers < excluded.covers

-- name: shard_count
select coalesce(max(shard), -1) + 1 from shards

-- name: event_of_any_day
-- The event of an id whose record waited in Kafka for longer than a day: its partition is not that of its id.
select event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id, trace_span, created_at
from events where event_id = $1 and kind = 0 and ($2::uuid is null or tenant_id = $2)
