-- name: keep_events
-- No day of events leaves before this transaction has ended: what is found of an event and owed once more would be gone
-- when it is read. First of all, as a day that leaves waits for whoever has looked at events.
select pg_advisory_xact_lock_shared(7710, 0)

-- name: lock_tenant
-- Keeps the tenant's configuration, and with it which endpoints pin an event to the first home shard, as it is until the
-- replays are appended; and one replay after the other counts generations.
select home_shards, max_in_flight as tenant_cap from tenants where tenant_id = $1 and deleted_at is null for no key update

-- name: replay_source
-- What a replay needs of an event: its type, those of the endpoints it was owed to that still exist, and whether its
-- payload was removed on request.
select e.type, coalesce(e.payload_ref = 'removed 0 0 00', false) as removed,
       array(select x.endpoint_id from endpoints x
             where x.endpoint_id = any (e.owed) and x.tenant_id = e.tenant_id and x.deleted_at is null
             order by x.created_at, x.endpoint_id) as owed
from events e
where e.event_id = $1 and e.tenant_id = $2 and e.kind = 0
  and e.day between (to_timestamp($3) at time zone 'utc')::date - 1 and (to_timestamp($3) at time zone 'utc')::date + 1

-- name: pins
-- What may pin an event to the first home shard: a cap that is too small to share, an order or a limit.
select endpoint_id, max_in_flight as cap, pinned
from endpoints where endpoint_id = any ($1)

-- name: blocking
-- Where a dead one of these deliveries still blocks the lane of an endpoint that keeps an order, or did when it died.
select d.event_id, d.endpoint_id, d.shard
from unnest($1::uuid[], $2::uuid[]) u (event_id, endpoint_id)
join dead_letters d on d.event_id = u.event_id and d.endpoint_id = u.endpoint_id
join backlog w on w.shard = d.shard and w.endpoint_id = d.endpoint_id and w.position = d.position
where w.due_at = 'infinity'

-- name: append_replays
-- The day of an event lies at most one beside that of its id: $2 is the time in the oldest id.
select hookpost_append_replays($1, (to_timestamp($2) at time zone 'utc')::date - 1, $3, $4, $5, $6, $7, $8)

-- name: removed
-- Of these events those whose payload was removed on request. $2 as above.
select e.event_id from events e
where e.event_id = any ($1) and e.day >= (to_timestamp($2) at time zone 'utc')::date - 1 and e.kind = 0
  and e.payload_ref = 'removed 0 0 00'

-- name: now
select hookpost_now()

-- name: count_replayable
-- What a filter matches among the first so many that it looks at, and how many those were.
select coalesce(sum(cardinality(c.owed)), 0)::bigint as matched, count(*) as looked_at
from hookpost_replayable($1, $2, $3, $4, $5, $6, $7, $8, '00000000-0000-0000-0000-000000000000',
                         '00000000-0000-0000-0000-000000000000', $9) c

-- name: create_replay
-- None when the tenant has $11 running ones.
insert into replays (replay_id, tenant_id, endpoint_id, type, status, since, until, rate_limit, matched, matched_exact,
                     created_at, after_at, reason)
select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $12, $13, $14
where (select count(*) from replays where tenant_id = $2 and state = 'running') < $11
returning *

-- name: get_replay
select * from replays where replay_id = $1 and ($2::uuid is null or tenant_id = $2)

-- name: list_replays_of_tenant
-- Newest first, behind (created_at, replay_id).
select * from replays
where tenant_id = $1
  and (created_at, replay_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by created_at desc, replay_id desc limit $4

-- name: list_replays_of_all
select * from replays
where (created_at, replay_id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by created_at desc, replay_id desc limit $3

-- name: cancel_replay
-- Waits for a chunk under way; what that appends stays.
update replays set state = 'cancelled', finished_at = clock_timestamp()
where replay_id = $1 and tenant_id = $2 and state = 'running'
returning *

-- name: take_replay
-- One runner has a job; it is whose turn came first.
select * from replays where state = 'running' and next_at <= clock_timestamp()
order by next_at limit 1 for update skip locked

-- name: next_replay_in
-- Seconds until a job may go on; null when none runs.
select extract(epoch from min(next_at) - clock_timestamp())::double precision from replays where state = 'running'

-- name: pressure
-- Entries of the journal not done in the fullest of these shards, and how many replays of the tenant wait in the backlog,
-- counted up to $3.
select (select coalesce(max(l.last_seq - coalesce(p.read_to, 0) + coalesce(p.open, 0)), 0)
        from unnest($2::int[]) h(shard)
        cross join lateral hookpost_last(h.shard) l
        left join lateral (
            select q.read_to, (select sum(upper(r) - lower(r)) from unnest(q.open) r) as open
            from progress q where q.shard = h.shard order by q.settle_no desc limit 1
        ) p on true)::bigint as depth,
       (select count(*) from (select from backlog b where b.tenant_id = $1 and b.generation > 0 limit $3) w) as waiting

-- name: replayable
-- The next candidates; what does not match owes nothing.
select c.at, c.event_id, c.endpoint_id, c.type, c.owed
from hookpost_replayable($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) c

-- name: move_replay
-- A job that was idle may catch up one second's worth, as a token bucket.
update replays
set after_at = $2, after_event = $3, after_endpoint = $4, replayed = replayed + $5,
    matched = greatest(matched, replayed + $5),
    next_at = greatest(next_at, clock_timestamp() - interval '1 s') + make_interval(secs => $5 / rate_limit)
where replay_id = $1

-- name: hold_replay
update replays set next_at = clock_timestamp() + make_interval(secs => $2) where replay_id = $1

-- name: finish_replay
-- What was counted up to a bound is known now.
update replays
set state = $2, failure = $3, finished_at = clock_timestamp(),
    matched = case when $2 = 'done' and not matched_exact then replayed else matched end,
    matched_exact = matched_exact or $2 = 'done'
where replay_id = $1 and state = 'running'
