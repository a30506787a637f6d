-- name: reserve
-- Idempotency keys of events on their way to Kafka (see the function's own comment).
select * from hookpost_reserve(make_interval(secs => $1), $2, $3, $4, $5, $6)

-- name: pump
-- Records of one partition into the journal: one call, one implicit transaction (see the function's own comment).
select * from hookpost_pump($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)

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

-- name: outdated
-- Tenants whose configuration is another one than events were matched with.
select u.tenant_id from unnest($1::uuid[], $2::bigint[]) u (tenant_id, version)
left join tenants t on t.tenant_id = u.tenant_id and t.deleted_at is null
where t.config_version is distinct from u.version

-- name: shard_count
select coalesce(max(shard), -1) + 1 from shards

-- name: event_of_any_day
-- The event of an id whose record waited in Kafka for longer than a day: its partition is not that of its id.
select event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id, created_at
from events where event_id = $1 and kind = 0 and ($2::uuid is null or tenant_id = $2)
