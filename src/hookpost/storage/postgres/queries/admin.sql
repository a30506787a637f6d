-- name: now
select clock_timestamp()

-- name: unowned_shards
-- Shards that no living worker owns.
select count(*) from shards s left join nodes n on n.node_id = s.owner
where coalesce(n.expires_at, '-infinity') <= clock_timestamp()

-- name: bump_tenant
-- First in every change of a tenant's configuration: its row lock puts the changes in order, and an append that was
-- matched with the older version is refused.
update tenants set config_version = config_version + 1, changed_at = clock_timestamp()
where tenant_id = $1 and deleted_at is null
returning tenant_id

-- name: list_pools
select s.pool as name, count(*) as shards,
       (select count(*) from tenants t where t.pool = s.pool and t.deleted_at is null) as tenants,
       (select count(*) from nodes n where n.pool = s.pool and n.expires_at > clock_timestamp()) as workers
from shards s group by s.pool order by s.pool

-- name: create_tenant
insert into tenants (tenant_id, name, pool, home_shards, max_in_flight, ingest_rate_limit, alert_email, spread)
values ($1, $2, $3, $4, coalesce($5, 512), $6, $7, $8)
returning *, false as moving

-- name: get_tenant
select t.*, exists (select from barriers b where b.tenant_id = t.tenant_id)
         or exists (select from departures d where d.tenant_id = t.tenant_id) as moving
from tenants t where t.tenant_id = $1 and t.deleted_at is null

-- name: list_tenants
-- Newest first, behind (created_at, tenant_id).
select t.*, exists (select from barriers b where b.tenant_id = t.tenant_id offset 0)
         or exists (select from departures d where d.tenant_id = t.tenant_id offset 0) as moving
from tenants t
where deleted_at is null
  and (created_at, tenant_id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by created_at desc, tenant_id desc limit $3

-- name: update_tenant
update tenants
set name = $2, max_in_flight = coalesce($3, 512), ingest_rate_limit = $4, alert_email = $5, updated_at = clock_timestamp()
where tenant_id = $1

-- name: delete_tenant
update tenants set deleted_at = clock_timestamp(), updated_at = clock_timestamp() where tenant_id = $1

-- name: delete_endpoints_of
update endpoints set deleted_at = clock_timestamp(), updated_at = clock_timestamp()
where tenant_id = $1 and deleted_at is null

-- name: delete_types_of
delete from event_types where tenant_id = $1

-- name: forget_barriers
-- What is cancelled need not be waited for.
delete from barriers where endpoint_id = $1

-- name: forget_barriers_of
delete from barriers where tenant_id = $1

-- name: revoke_keys_of
update api_keys set revoked_at = clock_timestamp() where tenant_id = $1 and revoked_at is null

-- name: count_keys
-- Those that open a door: neither revoked nor expired.
select count(*) from api_keys
where tenant_id = $1 and revoked_at is null and coalesce(expires_at, 'infinity') > clock_timestamp()

-- name: create_key
insert into api_keys (key_id, tenant_id, name, key_hash, scopes, expires_at)
values ($1, $2, $3, $4, $5, $6)
returning key_id, tenant_id, name, scopes, created_at, expires_at, revoked_at, last_used_at

-- name: list_keys
-- Newest first, behind (created_at, key_id), revoked ones too.
select key_id, tenant_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
from api_keys
where tenant_id = $1 and created_at <= coalesce($2::timestamptz, 'infinity')
  and ($2::timestamptz is null or (created_at, key_id) < ($2, $3::text))
order by created_at desc, key_id desc limit $4

-- name: revoke_key
update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where tenant_id = $1 and key_id = $2
returning key_id

-- name: note_used_keys
-- To the minute: a row is not written again for less.
update api_keys k set last_used_at = u.at
from unnest($1::text[], $2::timestamptz[]) u (key_id, at)
where k.key_id = u.key_id and (k.last_used_at is null or k.last_used_at < u.at - interval '1 minute')

-- name: count_endpoints
select count(*) from endpoints where tenant_id = $1 and deleted_at is null

-- name: create_endpoint
insert into endpoints (endpoint_id, tenant_id, url, events, status, status_reason, description, uid, metadata,
                       base_s, cap_s, max_attempts, deadline_s, connect_s, first_byte_s, total_s, max_in_flight,
                       rate_limit, ordered, on_dead, ack, spread, forward_trace)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)
returning *

-- name: get_endpoint
select * from endpoints where endpoint_id = $1 and deleted_at is null and ($2::uuid is null or tenant_id = $2)

-- name: list_endpoints_of_tenant
-- Newest first, behind (created_at, endpoint_id).
select * from endpoints
where tenant_id = $1 and deleted_at is null
  and (created_at, endpoint_id) < (coalesce($2::timestamptz, 'infinity'), coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by created_at desc, endpoint_id desc limit $4

-- name: list_endpoints_of_all
select * from endpoints
where deleted_at is null
  and (created_at, endpoint_id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by created_at desc, endpoint_id desc limit $3

-- name: update_endpoint
-- All columns that a user can change: the row was read under the tenant's lock and changed in memory. The failures of an
-- endpoint that is opened again or moves begin anew, as in engine._adopt_health.
update endpoints
set consecutive_failures = case when ($5 = 'enabled' and status <> 'enabled') or url <> $3 then 0 else consecutive_failures end,
    failing_since = case when ($5 = 'enabled' and status <> 'enabled') or url <> $3 then null else failing_since end,
    url = $3, events = $4, status = $5, status_reason = $6, description = $7, uid = $8, metadata = $9, base_s = $10,
    cap_s = $11, max_attempts = $12, deadline_s = $13, connect_s = $14, first_byte_s = $15, total_s = $16,
    max_in_flight = $17, rate_limit = $18, ordered = $19, on_dead = $20, ack = $21, spread = $22,
    forward_trace = $23,
    updated_at = clock_timestamp()
where endpoint_id = $1 and tenant_id = $2
returning *

-- name: breakers
-- Those of the (tenant, origin) pairs given that have ever opened; until when at least each holds what is due.
select b.tenant_id, b.origin, b.state, b.since, b.reopen_at,
       case when b.state <> 'closed' then greatest(b.reopen_at, clock_timestamp()) end as held_until
from unnest($1::uuid[], $2::text[]) u (tenant_id, origin)
join breakers b on b.tenant_id = u.tenant_id and b.origin = u.origin

-- name: close_breaker
-- The tenant says that the receiver is well: nothing is held against it. A probe that is under way tells how it is later.
-- It is later than what it ends, should the clock of who told of that be ahead: by $3 seconds.
update breakers
set state = 'closed', since = greatest(clock_timestamp(), since + make_interval(secs => $3)), reopen_at = null, openings = 0, failures = 0, probe_by = null, probe_until = null
where tenant_id = $1 and origin = $2 and state <> 'closed'

-- name: delete_endpoint
update endpoints set deleted_at = clock_timestamp(), updated_at = clock_timestamp()
where endpoint_id = $1 and tenant_id = $2 and deleted_at is null
returning endpoint_id

-- name: limit_secrets
-- The secrets so far go on signing for the grace period; one that ends earlier keeps its end.
update endpoint_secrets s
set expires_at = least(s.expires_at, $3::timestamptz)
from endpoints e
where e.endpoint_id = s.endpoint_id and e.tenant_id = $1 and s.endpoint_id = $2
  and (s.expires_at is null or s.expires_at > clock_timestamp())

-- name: grace_end
select clock_timestamp() + make_interval(secs => $1)

-- name: forget_secrets
-- Keys that no longer sign are of no use to anyone but a thief.
delete from endpoint_secrets s using endpoints e
where e.endpoint_id = s.endpoint_id and e.tenant_id = $1 and s.endpoint_id = $2 and s.expires_at <= clock_timestamp()

-- name: get_event
-- The event as it was posted. Its partition is that of its id's day or lies one day beside it.
select event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id, trace_span, created_at
from events
where event_id = $1 and kind = 0 and ($2::uuid is null or tenant_id = $2)
  and day between (to_timestamp($3) at time zone 'utc')::date - 1 and (to_timestamp($3) at time zone 'utc')::date + 1

-- name: delivery_states
-- What is known of each delivery of an event, or of the one to endpoint $3, in one snapshot: of its newest generation, whether the shard's owner has
-- it still before it or in hand (queued), what the backlog, the dead letters and the attempts say, the endpoint, whether
-- it was asked behind it in its shard to be cancelled, and whether an older generation still waits in the backlog.
-- One attempts scan for all endpoints: a fan-out of thousands would make thousands of probes in every partition.
with journal as (
    select e.shard, e.seq, e.kind, e.type, e.generation, e.owed from events e where e.event_id = $1 and e.tenant_id = $2
), latest as (
    select distinct on (o.endpoint_id) o.endpoint_id, j.shard, j.seq, j.generation
    from journal j cross join unnest(j.owed) as o (endpoint_id)
    where j.kind in (0, 1) and ($3::uuid is null or o.endpoint_id = $3)
    order by o.endpoint_id, j.generation desc
), cancels as (
    select c.endpoint_id, j.shard, max(j.seq) as seq
    from journal j cross join unnest(j.owed) as c (endpoint_id)
    where j.kind = 2 and j.type = 'hookpost.cancel'
    group by c.endpoint_id, j.shard
), older as (
    select distinct l.endpoint_id
    from journal j cross join unnest(j.owed) as o (endpoint_id)
    join latest l on l.endpoint_id = o.endpoint_id and l.generation > j.generation
    join backlog w on w.shard = j.shard and w.endpoint_id = o.endpoint_id and w.position = j.seq
    where j.kind in (0, 1)
), reached as (
    select s.shard, p.read_to, p.open, p.partial
    from (select distinct j.shard from journal j) s
    cross join lateral (
        select q.read_to, q.open, q.partial from progress q where q.shard = s.shard order by q.settle_no desc limit 1
    ) p
), tries as (
    select a.endpoint_id, a.generation, count(*) as attempt_count,
           (array_agg(a.outcome order by a.retry_count desc, a.finished_at desc))[1] as last_outcome,
           (array_agg(a.http_status order by a.retry_count desc, a.finished_at desc))[1] as last_http_status
    from attempts a where a.event_id = $1 and ($3::uuid is null or a.endpoint_id = $3)
    group by a.endpoint_id, a.generation
)
select l.endpoint_id, l.shard, l.seq, l.generation,
       r.shard is null or l.seq > r.read_to
           or (l.seq <@ r.open and not coalesce(r.partial -> l.seq::text ? l.endpoint_id::text, false)) as queued,
       b.reason as waiting_reason, b.due_at, d.reason as dead_reason,
       coalesce(t.attempt_count, 0) as attempt_count, t.last_outcome, t.last_http_status,
       e.status as endpoint_status, e.url as endpoint_url, e.deleted_at is not null or e.endpoint_id is null as endpoint_deleted,
       coalesce(c.seq > l.seq, false) as cancelled, o.endpoint_id is not null as older_waits
from latest l
left join cancels c on c.endpoint_id = l.endpoint_id and c.shard = l.shard
left join older o on o.endpoint_id = l.endpoint_id
left join reached r on r.shard = l.shard
left join lateral (
    select w.reason, w.due_at from backlog w
    where w.shard = l.shard and w.endpoint_id = l.endpoint_id and w.position = l.seq
) b on true
left join lateral (
    select x.reason from dead_letters x
    where x.event_id = $1 and x.endpoint_id = l.endpoint_id and x.generation = l.generation
) d on true
left join tries t on t.endpoint_id = l.endpoint_id and t.generation = l.generation
left join lateral (
    select c.endpoint_id, c.status, c.url, c.deleted_at, c.created_at from endpoints c where c.endpoint_id = l.endpoint_id
) e on true
order by e.created_at, l.endpoint_id

-- name: list_events_of_tenant
-- Newest first, behind (created_at, event_id). A row's day lies at most one beside its created_at, which spares old partitions.
select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at
from events
where tenant_id = $1 and kind = 0
  and created_at >= coalesce($3::timestamptz, '-infinity') and created_at < coalesce($4::timestamptz, 'infinity')
  and created_at <= coalesce($5::timestamptz, 'infinity')
  and (created_at, event_id) < (coalesce($5::timestamptz, 'infinity'), coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  and day >= (coalesce($3::timestamptz, '-infinity') at time zone 'utc')::date - 1
  and day <= (least($4::timestamptz, $5::timestamptz, 'infinity') at time zone 'utc')::date + 1
  and ($2::text is null or type = $2)
order by created_at desc, event_id desc limit $7

-- name: list_events_of_all
-- The same across tenants, newest first by id, which is the order of time: no index holds created_at across tenants.
select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at
from events
where kind = 0 and event_id < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  and created_at >= coalesce($2::timestamptz, '-infinity') and created_at < coalesce($3::timestamptz, 'infinity')
  and day >= (coalesce($2::timestamptz, '-infinity') at time zone 'utc')::date - 1
  and day <= (coalesce($3::timestamptz, 'infinity') at time zone 'utc')::date + 1
  and ($1::text is null or type = $1)
order by event_id desc limit $5

-- name: list_attempts_of_event
-- Newest first, behind (scheduled_at, attempt_id).
select * from attempts
where event_id = $2 and ($1::uuid is null or tenant_id = $1) and ($3::uuid is null or endpoint_id = $3)
  and ($4::text is null or outcome = $4)
  and scheduled_at >= coalesce($5::timestamptz, '-infinity') and scheduled_at < coalesce($6::timestamptz, 'infinity')
  and (scheduled_at, attempt_id) < (coalesce($7::timestamptz, 'infinity'), coalesce($8::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by scheduled_at desc, attempt_id desc limit $9

-- name: list_attempts_of_endpoint
-- A row's day is never before its scheduled_at (but for a clock set back), which spares old partitions.
select * from attempts
where endpoint_id = $2 and ($1::uuid is null or tenant_id = $1)
  and ($3::text is null or outcome = $3)
  and scheduled_at >= coalesce($4::timestamptz, '-infinity') and scheduled_at < coalesce($5::timestamptz, 'infinity')
  and scheduled_at <= coalesce($6::timestamptz, 'infinity')
  and (scheduled_at, attempt_id) < (coalesce($6::timestamptz, 'infinity'), coalesce($7::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  and day >= (coalesce($4::timestamptz, '-infinity') at time zone 'utc')::date - 1
order by scheduled_at desc, attempt_id desc limit $8

-- name: list_attempts_of_tenant
select * from attempts
where tenant_id = $1 and ($2::text is null or outcome = $2)
  and scheduled_at >= coalesce($3::timestamptz, '-infinity') and scheduled_at < coalesce($4::timestamptz, 'infinity')
  and scheduled_at <= coalesce($5::timestamptz, 'infinity')
  and (scheduled_at, attempt_id) < (coalesce($5::timestamptz, 'infinity'), coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  and day >= (coalesce($3::timestamptz, '-infinity') at time zone 'utc')::date - 1
order by scheduled_at desc, attempt_id desc limit $7

-- name: list_attempts_of_all
-- Across tenants: the newest of each tenant, merged. Some probes a tenant, never a scan of the history.
select a.*
from tenants t
cross join lateral (
    select * from attempts a
    where a.tenant_id = t.tenant_id and ($1::text is null or a.outcome = $1)
      and a.scheduled_at >= coalesce($2::timestamptz, '-infinity') and a.scheduled_at < coalesce($3::timestamptz, 'infinity')
      and a.scheduled_at <= coalesce($4::timestamptz, 'infinity')
      and (a.scheduled_at, a.attempt_id)
          < (coalesce($4::timestamptz, 'infinity'), coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
      and a.day >= (coalesce($2::timestamptz, '-infinity') at time zone 'utc')::date - 1
    order by a.scheduled_at desc, a.attempt_id desc limit $6
) a
order by a.scheduled_at desc, a.attempt_id desc limit $6

-- name: list_waiting
-- What waits for one endpoint, by (shard, position): the one order that does not move while retries are rescheduled.
-- The row of a dead letter that blocks an ordered endpoint is none that waits.
select b.shard, b.position, b.event_id, b.endpoint_id, b.tenant_id, b.generation, b.reason, b.due_at, b.retry_count,
       b.deadline, b.created_at, b.last_http_status, b.last_error_code
from shards s
cross join lateral (
    select * from backlog w
    where w.shard = s.shard and w.endpoint_id = $2 and ($1::uuid is null or w.tenant_id = $1)
      and w.position > case when s.shard = $3 then $4::bigint else -1 end
      and not (w.due_at = 'infinity' and exists (
          select from dead_letters d
          where d.event_id = w.event_id and d.endpoint_id = w.endpoint_id and d.generation = w.generation))
    order by w.position limit $5
) b
where s.shard >= coalesce($3::int, -1)
order by b.shard, b.position limit $5

-- name: list_dead_of_endpoint
-- Newest first, behind (died_at, event_id, endpoint_id).
select * from dead_letters
where endpoint_id = $2 and ($1::uuid is null or tenant_id = $1) and ($3::text is null or reason = $3)
  and died_at >= coalesce($4::timestamptz, '-infinity') and died_at < coalesce($5::timestamptz, 'infinity')
  and (died_at, event_id) < (coalesce($6::timestamptz, 'infinity'), coalesce($7::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by died_at desc, event_id desc limit $8

-- name: list_dead_of_tenant
select * from dead_letters
where tenant_id = $1 and ($2::text is null or reason = $2)
  and died_at >= coalesce($3::timestamptz, '-infinity') and died_at < coalesce($4::timestamptz, 'infinity')
  and (died_at, event_id, endpoint_id)
      < (coalesce($5::timestamptz, 'infinity'), coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
         coalesce($7::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by died_at desc, event_id desc, endpoint_id desc limit $8

-- name: list_dead_of_all
select * from dead_letters
where ($1::text is null or reason = $1)
  and died_at >= coalesce($2::timestamptz, '-infinity') and died_at < coalesce($3::timestamptz, 'infinity')
  and (died_at, event_id, endpoint_id)
      < (coalesce($4::timestamptz, 'infinity'), coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
         coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
order by died_at desc, event_id desc, endpoint_id desc limit $7

-- name: append_control
select hookpost_append_control($1, $2, $3, $4)

-- name: hold_tenant
-- No replay of its events is appended meanwhile, and no other key of it is made.
select 1 from tenants where tenant_id = $1 for no key update

-- name: remove_payload
-- The event stays, without its payload. What is to be removed from the payload store is noted in the same transaction.
with held as (
    select day, shard, seq, payload_ref from events
    where event_id = $1 and tenant_id = $2 and kind = 0
      and day between (to_timestamp($3) at time zone 'utc')::date - 1 and (to_timestamp($3) at time zone 'utc')::date + 1
    for update
), emptied as (
    update events e set payload = null, payload_ref = 'removed 0 0 00' from held h
    where e.day = h.day and e.shard = h.shard and e.seq = h.seq
)
select hookpost_note_removal(h.payload_ref) from held h
