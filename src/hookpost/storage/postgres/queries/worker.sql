-- name: register
insert into nodes (node_id, pool, name, expires_at, key_ids, clock_to)
values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4), $5, clock_timestamp() + make_interval(secs => $4))
on conflict (node_id) do update
    set expires_at = excluded.expires_at, key_ids = excluded.key_ids, clock_to = greatest(nodes.clock_to, excluded.clock_to)
returning clock_timestamp()

-- name: renew
-- The lease is compared in the database's clock alone. The worker's own clock stands where that was set back: clock_to, too.
update nodes
set expires_at = clock_timestamp() + make_interval(secs => $2),
    clock_to = greatest(clock_to, clock_timestamp() + make_interval(secs => $2))
where node_id = $1 returning clock_timestamp()

-- name: survey
-- All shards of a pool with their owners; an owner whose lease has expired counts as none.
select s.shard, case when n.expires_at > clock_timestamp() then s.owner end as owner
from shards s left join nodes n on n.node_id = s.owner
where s.pool = $1 order by s.shard

-- name: living
select node_id from nodes where pool = $1 and expires_at > clock_timestamp() order by node_id

-- name: claim
-- Take free shards (see the function's own comment). One call: a worker that is frozen on the way holds up nobody.
select shard, fence from hookpost_claim($1, $2, $3, make_interval(secs => $4), make_interval(secs => $5))

-- name: release
-- Unless its last settle says that nothing was under way, a request of the owner may still be on its way to a receiver.
update shards s
set owner = null, quiet_until = hookpost_quiet_until(s.shard, s.quiet_until, make_interval(secs => $4)),
    doubtful_to = greatest(s.doubtful_to, (select n.clock_to from nodes n where n.node_id = s.owner))
where s.shard = $1 and s.owner = $2 and s.fence = $3

-- name: disown
-- The owner lost track of them: its last requests may be under way (see hookpost_claim).
update shards s
set owner = null, quiet_until = clock_timestamp() + make_interval(secs => $3),
    doubtful_to = greatest(s.doubtful_to, (select n.clock_to from nodes n where n.node_id = s.owner))
where s.shard = any ($2) and s.owner = $1

-- name: free_all
update shards s
set owner = null, quiet_until = hookpost_quiet_until(s.shard, s.quiet_until, make_interval(secs => $2)),
    doubtful_to = greatest(s.doubtful_to, (select n.clock_to from nodes n where n.node_id = s.owner))
where s.owner = $1

-- name: leave
delete from nodes where node_id = $1

-- name: last_progress
-- Where the last settle of each shard left it; without one, the last number ever given.
select s.shard, s.floor_seq, s.quiet_until, s.doubtful_to, p.settle_no, p.fence, p.read_to, p.read_day, p.open, p.partial, p.clean
from unnest($1::int[]) u (shard) join shards s using (shard)
left join lateral (
    select p.settle_no, p.fence, p.read_to, p.read_day, p.open::text as open, p.partial::text as partial, p.clean
    from progress p where p.shard = u.shard order by p.settle_no desc limit 1
) p on true

-- name: open_rows
-- The journal rows of the open entries of shards, given as ranges [first, past). `offset 0` keeps each range a look of
-- its own by the index.
select e.*
from unnest($1::int[], $2::bigint[], $3::bigint[]) r (shard, first, past)
cross join lateral (
    select e.shard, e.seq, e.day - date '2000-01-01' as day, e.kind, e.event_id, e.tenant_id, e.type, e.payload, e.owed,
           e.generation, date_part('epoch', e.created_at) as created_at, e.payload_ref,
           uuid_send(e.trace_id) || e.trace_span as trace
    from events e where e.shard = r.shard and e.seq >= r.first and e.seq < r.past offset 0
) e
order by e.shard, e.seq

-- name: lane_summaries
-- What a new owner must know of each lane's backlog: never the rows.
select shard, endpoint_id, tenant_id, count(*) as count, min(due_at) as next_due, min(deadline) as next_deadline,
       count(*) filter (where due_at = 'infinity') as blocking, min(position) as first
from backlog where shard = any ($1) group by shard, endpoint_id, tenant_id

-- name: read
-- Journal rows of many shards behind what was read, each shard in order, bounded in rows and in payload bytes (one row
-- always fits). What is owed to nobody comes without its payload; that of a replay lies with its event (`replayed`).
-- The days keep the look-up out of old partitions: each shard's own, and $3, the least of them, before any partition is
-- opened. The columns are those of engine.work.JournalRow, in its order; day and time as numbers, which the driver need
-- not hand to a codec of ours for each row.
select e.shard, e.seq, e.day - date '2000-01-01' as day, e.kind, e.event_id, e.tenant_id, e.type, e.payload, e.owed,
       e.generation, date_part('epoch', e.created_at) as created_at, e.payload_ref, e.trace
from unnest($1::int[], $2::bigint[], $6::date[]) as s (shard, after, day)
cross join lateral (
    select r.*, sum(coalesce(octet_length(r.payload), 0)) over (order by r.seq) - coalesce(octet_length(r.payload), 0)
           as bytes_before
    from (
        select e.shard, e.seq, e.day, e.kind, e.event_id, e.tenant_id, e.type, e.owed, e.generation, e.created_at, e.payload_ref,
               uuid_send(e.trace_id) || e.trace_span as trace,
               case when e.owed <> '{}' then e.payload end as payload
        from events e
        where e.shard = s.shard and e.seq > s.after and e.day >= $3 and e.day >= s.day
        order by e.seq limit $4
    ) r
) e
where e.bytes_before < $5
order by e.shard, e.seq

-- name: others_wait
-- Is any of the next $4 rows behind what was read owed to somebody who is not among $5, or a control entry? It ends with
-- the first such row; otherwise it has looked at all of them, without their payloads.
select exists (
    select from unnest($1::int[], $2::bigint[], $6::date[]) as s (shard, after, day)
    cross join lateral (
        select e.kind, e.owed from events e
        where e.shard = s.shard and e.seq > s.after and e.day >= $3 and e.day >= s.day
        order by e.seq limit $4
    ) r
    where r.kind = 2 or not r.owed <@ $5::uuid[]
)

-- name: replayed
-- The payloads that replays send again, in the order given, bounded in bytes for each shard (one always fits). Kept out
-- of `read` and `due_events`: an event may lie in any partition, and opening all of them cost more than the rest.
select p.shard, p.event_id, p.payload, p.payload_ref
from (
    select u.shard, u.event_id, o.payload, o.payload_ref, u.place,
           sum(coalesce(octet_length(o.payload), 0)) over (partition by u.shard order by u.place)
           - coalesce(octet_length(o.payload), 0) as bytes_before
    from unnest($1::int[], $2::uuid[]) with ordinality u (shard, event_id, place)
    left join lateral (select e.payload, e.payload_ref from events e where e.event_id = u.event_id and e.kind = 0 limit 1) o on true
) p
where p.bytes_before < $3
order by p.place

-- name: fetch_due
-- Backlog rows of one lane that are due, by keyset.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog
where shard = $1 and endpoint_id = $2 and (due_at, position) > ($3, $4) and due_at <= $5
order by due_at, position limit $6

-- name: fetch_forward
-- Backlog rows of one lane that are not due yet and were stored before its receiver recovered, by keyset.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog
where shard = $1 and endpoint_id = $2 and (due_at, position) > ($3, $4) and due_at > $5 and due_at < 'infinity'
  and (stored_at is null or stored_at <= $6)
order by due_at, position limit $7

-- name: fetch_head
-- The first backlog rows of an ordered lane, due or not.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog where shard = $1 and endpoint_id = $2 order by position limit $3

-- name: fetch_blocking
-- Dead deliveries that hold up an ordered lane.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog where shard = $1 and endpoint_id = $2 and due_at = 'infinity' order by position limit $3

-- name: fetch_named
-- What a lane holds of one event: its positions are those of the event's journal rows.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog
where shard = $1 and endpoint_id = $2
  and position = any (array(select e.seq from events e where e.event_id = $3 and e.shard = $1))
order by position limit $4

-- name: due_events
-- The events of backlog rows in the order given, bounded in payload bytes (one always fits); a row whose event is gone has
-- none. $4 and $5, the least and the greatest day, keep other partitions closed: joined with the backlog, all were opened.
select kind, type, payload, payload_ref, trace
from (
    select u.place, e.kind, e.type, e.payload, e.payload_ref, e.trace,
           sum(coalesce(octet_length(e.payload), 0)) over (order by u.place) - coalesce(octet_length(e.payload), 0)
           as bytes_before
    from unnest($2::bigint[], $3::date[]) with ordinality u (seq, day, place)
    left join lateral (
        select e.kind, e.type, e.payload, e.payload_ref, uuid_send(e.trace_id) || e.trace_span as trace from events e
        where e.shard = $1 and e.seq = u.seq and e.day = u.day and e.day between $4 and $5 limit 1
    ) e on true
) p
where bytes_before < $6
order by place

-- name: next_due
select min(due_at) from backlog where shard = $1 and endpoint_id = $2 and due_at > $3

-- name: fetch_expired
-- Deliveries of a closed lane whose deadline has passed. Deadlines follow positions closely, so few rows are looked at in vain.
select position, day, event_id, generation, reason, due_at, retry_count, deadline, created_at,
       coalesce(stored_at, created_at) as stored_at
from backlog where shard = $1 and endpoint_id = $2 and deadline <= $3 order by position limit $4

-- name: next_deadline
select min(deadline) from backlog where shard = $1 and endpoint_id = $2 and deadline > $3

-- name: settle
-- Locks and checks the fences, writes the progress rows; the rest of the settle follows in the same transaction.
select lost, already, today from hookpost_settle($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: settle_dead_locks
-- The dead letters that a settle will touch, in one order: another shard may hold a replay of the same event.
select 1 from dead_letters d
where (d.event_id, d.endpoint_id) in (select * from unnest($1::uuid[], $2::uuid[]))
order by d.event_id, d.endpoint_id for no key update

-- name: settle_revived
-- A replay takes the delivery out of the dead letters; but not one that blocks its lane in another shard, as it does not
-- take its place there.
delete from dead_letters d using unnest($1::uuid[], $2::uuid[], $3::int[]) u (event_id, endpoint_id, shard)
where d.event_id = u.event_id and d.endpoint_id = u.endpoint_id and (d.shard = u.shard or not exists (
    select from backlog w
    where w.shard = d.shard and w.endpoint_id = d.endpoint_id and w.position = d.position and w.due_at = 'infinity'
))

-- name: settle_dead
insert into dead_letters (event_id, endpoint_id, tenant_id, shard, position, day, generation, type, reason, died_at,
                          attempt_count, last_http_status, last_error_code)
select u.event_id, u.endpoint_id, u.tenant_id, u.shard, u.position, u.day, u.generation,
       coalesce(nullif(u.type, ''), (select e.type from events e where e.event_id = u.event_id and e.kind = 0 limit 1), ''),
       u.reason, u.died_at, u.attempt_count, u.last_http_status, u.last_error_code
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int[], $5::bigint[], $6::date[], $7::int[], $8::text[], $9::text[],
            $10::timestamptz[], $11::int[], $12::smallint[], $13::text[])
     as u (event_id, endpoint_id, tenant_id, shard, position, day, generation, type, reason, died_at, attempt_count,
           last_http_status, last_error_code)
order by 1, 2
on conflict (event_id, endpoint_id) do update
    set shard = excluded.shard, position = excluded.position, day = excluded.day, generation = excluded.generation,
        reason = excluded.reason, died_at = excluded.died_at, attempt_count = excluded.attempt_count,
        last_http_status = excluded.last_http_status, last_error_code = excluded.last_error_code

-- name: settle_notices
-- What is to be told of endpoints' health, as policy/alerts.gather takes it up.
insert into outbox (type, tenant_id, endpoint_id, at, failures, since)
select * from unnest($1::text[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::int[], $6::timestamptz[])

-- name: settle_dead_notices
-- Dead letters of this settle, one row for each endpoint. $3: operational types, of which none makes another one; $4: how
-- many events are named. The type is that of the stored letter: what expires in the backlog comes without one.
insert into outbox (type, tenant_id, endpoint_id, at, deaths, event_ids)
select 'hookpost.delivery.dead', d.tenant_id, d.endpoint_id, min(d.died_at), count(*),
       (array_agg(d.event_id order by d.died_at, d.event_id))[1:$4]
from unnest($1::uuid[], $2::uuid[]) u (event_id, endpoint_id)
join dead_letters d on d.event_id = u.event_id and d.endpoint_id = u.endpoint_id
where d.type <> all ($3::text[])
group by d.tenant_id, d.endpoint_id

-- name: settle_dropped_lanes
delete from backlog b using unnest($1::int[], $2::uuid[]) u (shard, endpoint_id)
where b.shard = u.shard and b.endpoint_id = u.endpoint_id

-- name: settle_deletes
delete from backlog b using unnest($1::int[], $2::uuid[], $3::bigint[]) u (shard, endpoint_id, position)
where b.shard = u.shard and b.endpoint_id = u.endpoint_id and b.position = u.position

-- name: settle_upserts
insert into backlog (shard, endpoint_id, position, day, tenant_id, event_id, generation, reason, due_at, retry_count,
                     deadline, created_at, stored_at, last_http_status, last_error_code)
select * from unnest($1::int[], $2::uuid[], $3::bigint[], $4::date[], $5::uuid[], $6::uuid[], $7::int[], $8::text[],
                     $9::timestamptz[], $10::int[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[],
                     $14::smallint[], $15::text[])
on conflict (shard, endpoint_id, position) do update
    set generation = excluded.generation, reason = excluded.reason, due_at = excluded.due_at,
        retry_count = excluded.retry_count, deadline = excluded.deadline, stored_at = excluded.stored_at,
        last_http_status = excluded.last_http_status, last_error_code = excluded.last_error_code

-- name: settled
select exists (select from progress where shard = $1 and settle_no = $2 and fence = $3)

-- name: load_endpoints
select e.endpoint_id, e.tenant_id, e.url, e.status, e.deleted_at is not null as deleted, e.base_s, e.cap_s,
       e.max_attempts, e.deadline_s, e.connect_s, e.first_byte_s, e.total_s, e.max_in_flight, e.hold_until,
       e.rate_limit, e.ordered, e.on_dead, e.ack, e.forward_trace, e.consecutive_failures, e.failing_since,
       coalesce((select a.failing_told from alert_states a where a.endpoint_id = e.endpoint_id), false) as failing_told,
       e.pinned, e.ordered_shard, e.ordered_seq,
       exists (select from barriers b where b.endpoint_id = e.endpoint_id offset 0) as barred,
       coalesce(s.keys, '{}') as keys, coalesce(s.sealed, '{}') as sealed,
       coalesce(s.created, '{}') as created, coalesce(s.expires, '{}') as expires,
       e.headers, e.sealed_headers, e.tls_ca, e.tls_cert, e.sealed_tls_key, d.key_id, d.wrapped
from endpoints e
left join data_keys d on d.tenant_id = e.tenant_id
left join lateral (
    select array_agg(key order by created_at desc) as keys, array_agg(sealed order by created_at desc) as sealed,
           array_agg(created_at order by created_at desc) as created,
           array_agg(expires_at order by created_at desc) as expires
    from endpoint_secrets s
    where s.endpoint_id = e.endpoint_id and (s.expires_at is null or s.expires_at > clock_timestamp())
) s on true
where e.endpoint_id = any ($1)

-- name: load_tenants
-- Behind the home shards come those it has departed from and that hold something of it still.
select t.tenant_id, t.max_in_flight,
       t.home_shards || array(select d.shard from departures d where d.tenant_id = t.tenant_id order by d.shard) as home_shards
from tenants t where t.tenant_id = any ($1)

-- name: changed_tenants
-- Which tenants to look at again.
select tenant_id, changed_at from tenants where changed_at > $1

-- name: changed_endpoints
-- Of these tenants the endpoints that have changed. Side by side, so that nobody's others are looked at.
select e.endpoint_id, e.changed_at
from unnest($1::uuid[]) t (tenant_id)
cross join lateral (
    select c.endpoint_id, c.changed_at from endpoints c where c.tenant_id = t.tenant_id and c.changed_at > $2 offset 0
) e

-- name: lift_barriers
select hookpost_lift()

-- name: is_paused
select exists (select from platform where name = 'sending' and value = 'paused')

-- name: now
select clock_timestamp()

-- name: hold_endpoint
-- Shared with the other workers by way of changed_at; the config version stays, as ingest does not care. The tenant is
-- locked before its endpoint, as by every change of the configuration.
with owner as (
    select t.tenant_id from tenants t
    where t.tenant_id = (select e.tenant_id from endpoints e where e.endpoint_id = $1) for no key update
), held as (
    update endpoints e set hold_until = $2 from owner
    where e.endpoint_id = $1 and (e.hold_until is null or e.hold_until < $2)
    returning e.tenant_id
)
update tenants t set changed_at = clock_timestamp() from held where t.tenant_id = held.tenant_id

-- name: write_health
-- One row for each endpoint whose health has changed. No tenant's version or time changes: nobody has to load it anew.
-- Locked in one order, as several workers may know the same endpoint; the last one's word stands.
with known as (
    select e.endpoint_id from endpoints e where e.endpoint_id = any ($1) order by e.endpoint_id for no key update
)
update endpoints e
set consecutive_failures = u.failures, failing_since = u.since,
    health_at = case when e.failing_since is distinct from u.since then clock_timestamp() else e.health_at end
from known join unnest($1::uuid[], $2::int[], $3::timestamptz[]) u (endpoint_id, failures, since) using (endpoint_id)
where e.endpoint_id = known.endpoint_id

-- name: health_changes
-- Runs of failures that began or ended, or were announced, after $1; not every failure of a run.
select e.endpoint_id, e.consecutive_failures, e.failing_since, e.health_at,
       coalesce((select a.failing_told from alert_states a where a.endpoint_id = e.endpoint_id), false) as failing_told
from endpoints e
where e.health_at > $1
order by e.health_at
limit $2

-- name: disable_endpoint
-- It is told in the same statement, so that it is told once, whoever finds out, and never for nothing.
with owner as (
    select t.tenant_id from tenants t where t.tenant_id = $1 for no key update
), closed as (
    update endpoints e set status = 'disabled', status_reason = $3, updated_at = clock_timestamp() from owner
    where e.endpoint_id = $2 and e.tenant_id = owner.tenant_id and e.status <> 'disabled' and e.deleted_at is null
    returning e.tenant_id
), told as (
    insert into outbox (type, tenant_id, endpoint_id, at, reason)
    select 'hookpost.endpoint.disabled', closed.tenant_id, $2, clock_timestamp(), $3 from closed
)
update tenants t set config_version = t.config_version + 1, changed_at = clock_timestamp()
from closed where t.tenant_id = closed.tenant_id
returning t.tenant_id

-- name: load_breakers
-- Of tenants that were just loaded ($2 is null): all that are not closed, or have closed within $3 seconds. Of others:
-- those that changed since $2.
select tenant_id, origin, state, since, reopen_at, openings, failures
from breakers
where tenant_id = any ($1)
  and case when $2::timestamptz is null then state <> 'closed' or since > clock_timestamp() - make_interval(secs => $3)
           else since > $2 end

-- name: save_breakers
-- What one worker has learnt, unless another one has learnt something later. Clocks may differ by a little.
insert into breakers as b (tenant_id, origin, state, since, reopen_at, openings, failures)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::int[], $7::int[])
order by 1, 2
on conflict (tenant_id, origin) do update
    set state = excluded.state, since = excluded.since, reopen_at = excluded.reopen_at, openings = excluded.openings,
        failures = excluded.failures, probe_by = null, probe_until = null
    where b.since < excluded.since + interval '1 s'

-- name: take_probes
-- Who may send the probe, for the whole fleet: whoever asks first once the pause is over, until $4 from now. A worker that
-- asks again has used its right: that its probe failed may not be stored yet. It is later than the state before, by $5 s.
update breakers b
set state = 'half_open', since = greatest(clock_timestamp(), since + make_interval(secs => $5)), probe_by = $3,
    probe_until = clock_timestamp() + make_interval(secs => $4)
from unnest($1::uuid[], $2::text[]) u (tenant_id, origin)
where b.tenant_id = u.tenant_id and b.origin = u.origin and b.state <> 'closed' and b.reopen_at <= clock_timestamp()
  and (b.probe_by = $3 or coalesce(b.probe_until, '-infinity') <= clock_timestamp())
returning b.tenant_id, b.origin

-- name: asked_breakers
select b.tenant_id, b.origin, b.state, b.since, b.reopen_at, b.openings, b.failures, b.probe_until
from breakers b join unnest($1::uuid[], $2::text[]) u (tenant_id, origin)
    on b.tenant_id = u.tenant_id and b.origin = u.origin

-- name: touch_tenants
-- The other workers look at these tenants again. The config version stays, as ingest does not care.
update tenants set changed_at = clock_timestamp()
where tenant_id = any (array(select tenant_id from tenants where tenant_id = any ($1) order by tenant_id for no key update))
