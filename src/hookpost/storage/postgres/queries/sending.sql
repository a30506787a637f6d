-- name: pause
insert into platform (name, value) values ('sending', 'paused') on conflict (name) do update set value = excluded.value

-- name: go_on
delete from platform where name = 'sending'

-- name: owed
-- What would be sent if sending went on, for each endpoint: what its shard's owner has not read or not done, and what waits
-- in the backlog. A dead delivery that blocks an ordered endpoint is none of it.
with reached as (
    select s.shard, coalesce(p.cursor, s.floor_seq) as done_to, coalesce(p.read_to, s.floor_seq) as read_to,
           coalesce(p.open, '{}') as open, p.partial
    from shards s
    left join lateral (
        select q.cursor, q.read_to, q.open, q.partial from progress q
        where q.shard = s.shard order by q.settle_no desc limit 1
    ) p on true
), owed as (
    select o.endpoint_id, e.created_at
    from reached r
    join events e on e.shard = r.shard and e.seq > r.done_to and e.kind in (0, 1) and (e.seq > r.read_to or e.seq <@ r.open)
    cross join unnest(e.owed) o (endpoint_id)
    where not coalesce(r.partial -> e.seq::text ? o.endpoint_id::text, false)
    union all
    select b.endpoint_id, b.created_at from backlog b where b.due_at < 'infinity'
)
select o.endpoint_id, e.url, count(*) as deliveries, min(o.created_at) as oldest, max(o.created_at) as newest
from owed o join endpoints e on e.endpoint_id = o.endpoint_id and e.deleted_at is null
group by o.endpoint_id, e.url order by deliveries desc, o.endpoint_id

-- name: last_recorded
-- When this database last took something down: what happened later it does not know.
select greatest((select max(finished_at) from attempts where day >= (select max(day) from progress) - 1),
                (select max(created_at) from events where day >= (select max(day) from progress) - 1))
