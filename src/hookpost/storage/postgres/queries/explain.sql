-- name: endpoints
-- What is to be known of the endpoints asked for, deleted ones too; of a tenant alone.
select e.endpoint_id, e.url, e.events, e.status, e.status_reason, e.created_at, e.updated_at, e.deleted_at, e.rate_limit,
       e.ordered, e.max_in_flight, e.max_attempts, e.hold_until,
       exists (select from barriers b where b.endpoint_id = e.endpoint_id offset 0) as moving
from endpoints e where e.endpoint_id = any ($2) and e.tenant_id = $1

-- name: others
-- The newest endpoints of a tenant but for those given, which the event was owed to.
select e.endpoint_id from endpoints e
where e.tenant_id = $1 and e.deleted_at is null and e.endpoint_id <> all ($2)
order by e.created_at desc, e.endpoint_id desc limit $3

-- name: queued
-- How far the owners of the shards of some journal rows are: what lies before each row that is not done, since when its
-- oldest unread neighbour has been there, and which living worker owns the shard.
select u.shard, u.seq, u.seq <= p.read_to as read, n.name as worker,
       greatest(u.seq - 1 - p.read_to, 0)
           + coalesce((select sum(upper(r) - lower(r)) from unnest(p.open * int8multirange(int8range(null, u.seq))) r), 0) as ahead,
       (select e.created_at from events e where e.shard = u.shard and e.seq = p.read_to + 1 and e.day >= p.read_day) as unread_since
from unnest($1::int[], $2::bigint[]) u (shard, seq)
join shards s on s.shard = u.shard
left join nodes n on n.node_id = s.owner and n.expires_at > clock_timestamp()
cross join lateral (
    select coalesce(q.read_to, s.floor_seq) as read_to, coalesce(q.read_day, '-infinity') as read_day, coalesce(q.open, '{}') as open
    from (select 1) one left join lateral (
        select g.read_to, g.read_day, g.open from progress g where g.shard = u.shard order by g.settle_no desc limit 1
    ) q on true
) p

-- name: waiting
-- The backlog rows of some deliveries, and the first row before each in its lane: what an ordered endpoint gets sooner.
select w.endpoint_id, w.retry_count, w.deadline, w.last_http_status, w.last_error_code,
       f.event_id as behind, coalesce(f.due_at = 'infinity', false) as behind_dead
from unnest($1::int[], $2::uuid[], $3::bigint[]) u (shard, endpoint_id, seq)
join backlog w on w.shard = u.shard and w.endpoint_id = u.endpoint_id and w.position = u.seq
left join lateral (
    select b.event_id, b.due_at from backlog b
    where b.shard = u.shard and b.endpoint_id = u.endpoint_id and b.position < u.seq
    order by b.position limit 1
) f on true

-- name: dead
select d.endpoint_id, d.died_at, d.attempt_count, d.last_http_status, d.last_error_code
from dead_letters d where d.event_id = $1 and d.endpoint_id = any ($2)

-- name: tries
-- The last attempt of each delivery, and what all of them say together. One look for all endpoints of a fan-out.
select distinct on (a.endpoint_id, a.generation) a.endpoint_id, a.generation, a.outcome, a.finished_at, a.http_status, a.error_code,
       count(*) filter (where a.outcome = 'delivered') over w as arrivals, bool_or(a.possible_duplicate) over w as doubtful
from attempts a where a.event_id = $1 and a.endpoint_id = any ($2)
window w as (partition by a.endpoint_id, a.generation)
order by a.endpoint_id, a.generation, a.retry_count desc, a.finished_at desc

-- name: replayed
-- When each generation was asked for.
select e.generation, max(e.created_at) as at from events e where e.event_id = $1 and e.tenant_id = $2 and e.kind = 1 group by 1

-- name: cancelled
-- When it was last asked for to cancel the deliveries of an event.
select c.endpoint_id, max(e.created_at) as at
from events e cross join unnest(e.owed) c (endpoint_id)
where e.event_id = $1 and e.tenant_id = $2 and e.kind = 2 and e.type = 'hookpost.cancel'
group by c.endpoint_id
