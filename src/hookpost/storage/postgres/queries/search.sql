-- name: events_by_trace
-- The newest events of a producer's trace; few have one. Across tenants for null.
select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at
from (
    select * from events where trace_id = $2 and kind = 0 and ($1::uuid is null or tenant_id = $1) offset 0
) e
order by created_at desc, event_id desc limit $3

-- name: events_by_key
-- The newest events with this idempotency key: those whose key had expired before it was used again, too.
select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at
from (
    select * from events where idempotency_key = $2 and kind = 0 and ($1::uuid is null or tenant_id = $1) offset 0
) e
order by created_at desc, event_id desc limit $3

-- name: endpoints_by_host
-- Endpoints at a host ($2, backwards) or at a subdomain of it ($3, backwards and as a pattern).
select * from endpoints
where deleted_at is null and ($1::uuid is null or tenant_id = $1)
  and (reverse(hookpost_url_host(url)) = $2 or reverse(hookpost_url_host(url)) like $3)
order by created_at desc, endpoint_id desc limit $4

-- name: endpoint_urls
-- Where these endpoints are, deleted ones too: a history names them.
select endpoint_id, url from endpoints where endpoint_id = any ($2) and ($1::uuid is null or tenant_id = $1)

-- name: scan_events_of_tenant
-- Of the newest $7 events behind (created_at, event_id) those of a type ($2) whose payload holds a text ($9), as far as it
-- lies here: a rare one costs as much as a common one. The oldest one that was looked at comes with them, asked for or
-- not: the search goes on behind it.
with looked_at as materialized (
    select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at,
           $9::bytea is null or coalesce(position($9 in payload) > 0, false) as holds
    from events
    where tenant_id = $1 and kind = 0
      and created_at >= coalesce($3::timestamptz, '-infinity') and created_at < coalesce($4::timestamptz, 'infinity')
      and created_at <= coalesce($5::timestamptz, 'infinity')
      and (created_at, event_id) < (coalesce($5::timestamptz, 'infinity'), coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
      and day >= (coalesce($3::timestamptz, '-infinity') at time zone 'utc')::date - 1
      and day <= (least($4::timestamptz, $5::timestamptz, 'infinity') at time zone 'utc')::date + 1
    order by created_at desc, event_id desc limit $7
), told as (
    (select *, true as wanted from looked_at where ($2::text is null or type = $2) and holds
     order by created_at desc, event_id desc limit $8)
    union all
    (select *, false from looked_at order by created_at, event_id limit 1)
)
select t.*, (select count(*) from looked_at) as looked_at from told t order by t.created_at desc, t.event_id desc

-- name: scan_owed
-- Of the newest $5 events behind (created_at, event_id) those that were owed to an endpoint, as above.
with looked_at as materialized (
    select event_id, tenant_id, created_at, owed @> array[$2::uuid] as is_owed
    from events
    where tenant_id = $1 and kind = 0
      and created_at <= coalesce($3::timestamptz, 'infinity')
      and (created_at, event_id) < (coalesce($3::timestamptz, 'infinity'), coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
      and day <= (coalesce($3::timestamptz, 'infinity') at time zone 'utc')::date + 1
    order by created_at desc, event_id desc limit $5
), told as (
    (select *, true as wanted from looked_at where is_owed order by created_at desc, event_id desc limit $6)
    union all
    (select *, false from looked_at order by created_at, event_id limit 1)
)
select t.*, (select count(*) from looked_at) as looked_at from told t order by t.created_at desc, t.event_id desc

-- name: scan_events_of_all
-- The same across tenants, by id. Times are compared behind the limit: an index of them holds no order across tenants.
with looked_at as materialized (
    select event_id, tenant_id, type, cardinality(owed) as delivery_count, idempotency_key, trace_id, created_at,
           $7::bytea is null or coalesce(position($7 in payload) > 0, false) as holds
    from events
    where kind = 0 and event_id < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      and day >= (coalesce($2::timestamptz, '-infinity') at time zone 'utc')::date - 1
      and day <= (coalesce($3::timestamptz, 'infinity') at time zone 'utc')::date + 1
    order by event_id desc limit $5
), told as (
    (select *, true as wanted from looked_at
     where ($1::text is null or type = $1) and holds and created_at >= coalesce($2::timestamptz, '-infinity')
       and created_at < coalesce($3::timestamptz, 'infinity')
     order by event_id desc limit $6)
    union all
    (select *, false from looked_at order by event_id limit 1)
)
select t.*, (select count(*) from looked_at) as looked_at from told t order by t.event_id desc

-- name: scan_attempts_of_tenant
-- Of the newest $9 attempts behind (scheduled_at, attempt_id) those that are asked for: a rare status costs as much as a
-- common one. The oldest one that was looked at comes with them, asked for or not: the search goes on behind it.
with looked_at as materialized (
    select a.attempt_id, a.event_id, a.endpoint_id, a.day, a.scheduled_at, a.outcome, a.http_status
    from attempts a
    where a.tenant_id = $1
      and a.scheduled_at >= coalesce($5::timestamptz, '-infinity') and a.scheduled_at < coalesce($6::timestamptz, 'infinity')
      and a.scheduled_at <= coalesce($7::timestamptz, 'infinity')
      and (a.scheduled_at, a.attempt_id)
          < (coalesce($7::timestamptz, 'infinity'), coalesce($8::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
      and a.day >= (coalesce($5::timestamptz, '-infinity') at time zone 'utc')::date - 1
    order by a.scheduled_at desc, a.attempt_id desc limit $9
), wanted as (
    select l.*, true as wanted from looked_at l
    where ($2::text is null or l.outcome = $2) and ($3::int is null or l.http_status between $3 and $4)
    order by l.scheduled_at desc, l.attempt_id desc limit $10
), told as (
    select * from wanted
    union all
    (select l.*, false from looked_at l order by l.scheduled_at, l.attempt_id limit 1)
)
select a.*, t.wanted, (select count(*) from looked_at) as looked_at
from told t
cross join lateral (
    select * from attempts n
    where n.event_id = t.event_id and n.endpoint_id = t.endpoint_id and n.day = t.day and n.attempt_id = t.attempt_id offset 0
) a
order by a.scheduled_at desc, a.attempt_id desc

-- name: scan_attempts_of_all
-- Across tenants, where no index holds the time: of the newest $6 of each shard, as they were settled.
with looked_at as materialized (
    select a.attempt_id, a.event_id, a.endpoint_id, a.day, a.scheduled_at, a.outcome, a.http_status
    from shards s
    cross join lateral (
        select * from attempts n
        where n.shard = s.shard and n.day >= (coalesce($4::timestamptz, '-infinity') at time zone 'utc')::date - 1
          and n.day <= (coalesce($5::timestamptz, 'infinity') at time zone 'utc')::date + 1
        order by n.settle_no desc limit $6
    ) a
), wanted as (
    select * from looked_at l
    where ($1::text is null or l.outcome = $1) and ($2::int is null or l.http_status between $2 and $3)
      and l.scheduled_at >= coalesce($4::timestamptz, '-infinity') and l.scheduled_at < coalesce($5::timestamptz, 'infinity')
    order by l.scheduled_at desc, l.attempt_id desc limit $7
)
select a.*, true as wanted, (select count(*) from looked_at) as looked_at
from wanted w
cross join lateral (
    select * from attempts n
    where n.event_id = w.event_id and n.endpoint_id = w.endpoint_id and n.day = w.day and n.attempt_id = w.attempt_id offset 0
) a
order by a.scheduled_at desc, a.attempt_id desc

-- name: waiting_of_tenant
-- What waits for a tenant, by (endpoint, shard, position), in the shards that are or were its homes.
select b.shard, b.position, b.event_id, b.endpoint_id, b.tenant_id, b.generation, b.reason, b.due_at, b.retry_count,
       b.deadline, b.created_at, b.last_http_status, b.last_error_code, e.url, e.status as endpoint_status
from (
    select n.endpoint_id, n.url, n.status from endpoints n
    where n.tenant_id = $1 and n.endpoint_id >= coalesce($2::uuid, '00000000-0000-0000-0000-000000000000') offset 0
) e
cross join lateral (
    select w.* from (
        select unnest(t.home_shards) as shard from tenants t where t.tenant_id = $1
        union select d.shard from departures d where d.tenant_id = $1
    ) s
    cross join lateral (
        select * from backlog r
        where r.shard = s.shard and r.endpoint_id = e.endpoint_id
          and (e.endpoint_id > coalesce($2::uuid, '00000000-0000-0000-0000-000000000000')
               or (r.shard, r.position) > (coalesce($3::int, -1), coalesce($4::bigint, -1)))
        order by r.position limit $5
    ) w limit $5
) b
order by b.endpoint_id, b.shard, b.position limit $5

-- name: waiting_of_all
-- The same across tenants, by (shard, endpoint, position): the key of the table.
select b.shard, b.position, b.event_id, b.endpoint_id, b.tenant_id, b.generation, b.reason, b.due_at, b.retry_count,
       b.deadline, b.created_at, b.last_http_status, b.last_error_code, e.url, e.status as endpoint_status
from (
    select * from backlog r
    where (r.shard, r.endpoint_id, r.position)
          > (coalesce($1::int, -1), coalesce($2::uuid, '00000000-0000-0000-0000-000000000000'), coalesce($3::bigint, -1))
    order by r.shard, r.endpoint_id, r.position limit $4
) b
left join endpoints e on e.endpoint_id = b.endpoint_id
order by b.shard, b.endpoint_id, b.position

-- name: failing_of_tenant
-- The endpoints with the most failed attempts in pieces (grain, from, to), by the newest $5 rollups that hold some.
select e.endpoint_id, e.tenant_id, e.url, e.status, e.consecutive_failures, sum(r.failed)::bigint as failed
from (
    select n.endpoint_id, n.failed
    from unnest($2::int[], $3::timestamptz[], $4::timestamptz[]) p (grain, since, until)
    cross join lateral (
        select m.endpoint_id, m.failed, m.bucket from rollup_tallies m
        where m.tenant_id = $1 and m.grain = p.grain and m.failed > 0
          and m.endpoint_id <> '00000000-0000-0000-0000-000000000000' and m.bucket >= p.since and m.bucket < p.until
        order by m.bucket desc limit $5
    ) n
    order by n.bucket desc limit $5
) r
join endpoints e on e.endpoint_id = r.endpoint_id and e.deleted_at is null
group by e.endpoint_id order by failed desc, e.endpoint_id limit $6

-- name: failing_of_all
-- The same across tenants, out of the newest $4 rollups of each piece, whatever they hold.
select e.endpoint_id, e.tenant_id, e.url, e.status, e.consecutive_failures, sum(r.failed)::bigint as failed
from unnest($1::int[], $2::timestamptz[], $3::timestamptz[]) p (grain, since, until)
cross join lateral (
    select m.endpoint_id, m.failed from rollup_tallies m
    where m.grain = p.grain and m.bucket >= p.since and m.bucket < p.until order by m.bucket desc limit $4
) r
join endpoints e on e.endpoint_id = r.endpoint_id and e.deleted_at is null
where r.failed > 0
group by e.endpoint_id order by failed desc, e.endpoint_id limit $5

-- name: open_breakers_of_tenant
-- Breakers that hold something back, those that opened last first.
select b.tenant_id, b.origin, b.state, b.since, b.reopen_at from breakers b
where b.state <> 'closed' and b.tenant_id = $1
order by b.since desc limit $2

-- name: open_breakers_of_all
-- The same across tenants: all of the table is read, which has a row only for each receiver that ever failed in a row.
select b.tenant_id, b.origin, b.state, b.since, b.reopen_at from breakers b
where b.state <> 'closed'
order by b.since desc limit $1

-- name: count_shards
select count(*) from shards

-- name: dead_groups_of_tenant
-- The newest $2 dead letters by endpoint and reason.
select d.endpoint_id, d.reason, count(*) as dead from (
    select n.endpoint_id, n.reason from dead_letters n where n.tenant_id = $1 order by n.died_at desc limit $2
) d
group by d.endpoint_id, d.reason order by dead desc, d.endpoint_id, d.reason limit $3

-- name: dead_groups_of_all
select d.endpoint_id, d.reason, count(*) as dead from (
    select n.endpoint_id, n.reason from dead_letters n order by n.died_at desc limit $1
) d
group by d.endpoint_id, d.reason order by dead desc, d.endpoint_id, d.reason limit $2

-- name: now
-- By the clock that rollups are kept by.
select hookpost_now()
