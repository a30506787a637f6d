-- name: removals
select key from payload_removals order by key limit $1

-- name: forget_removals
delete from payload_removals where key = any ($1::text[])

-- name: erasable
-- Segments with bytes to be written over, those that were noted first.
select key, array_agg(start order by start) as starts, array_agg(length order by start) as lengths
from segment_removals group by key order by min(noted_at), key limit $1

-- name: erased
delete from segment_removals where key = $1 and start = any ($2::int[])

-- name: tenant_to_empty
-- A deleted tenant whose payloads are still there. Appends that were under way when it was deleted have ended by then.
select tenant_id from tenants
where deleted_at < clock_timestamp() - interval '1 min' and payloads_removed_at is null
order by deleted_at limit 1

-- name: payloads_of
-- The next events of a tenant in the order of its index, those that have lost their payload included: where to go on from
-- is the last one's place.
select e.day, e.shard, e.seq, e.event_id, e.created_at
from events e
where e.tenant_id = $1 and e.created_at >= $2 and (e.created_at, e.event_id) > ($2, $3)
order by e.created_at, e.event_id limit $4

-- name: empty
with held as (
    select e.day, e.shard, e.seq, e.payload_ref from events e
    join unnest($1::date[], $2::int[], $3::bigint[]) u (day, shard, seq) on e.day = u.day and e.shard = u.shard and e.seq = u.seq
    where e.kind = 0 and coalesce(e.payload_ref, '') <> 'removed 0 0 00'
    order by e.day, e.shard, e.seq for update of e
), emptied as (
    update events e set payload = null, payload_ref = 'removed 0 0 00' from held h
    where e.day = h.day and e.shard = h.shard and e.seq = h.seq
)
select hookpost_note_removal(h.payload_ref) from held h where h.payload_ref is not null

-- name: emptied
update tenants set payloads_removed_at = clock_timestamp() where tenant_id = $1
