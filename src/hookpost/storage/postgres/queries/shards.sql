-- name: listing
-- Every shard with its owner (a worker whose lease has expired owns nothing), how much of its journal is not done, since
-- how many seconds the oldest of that is there (null: there is none), and how many tenants are at home in it.
select s.shard, s.pool, n.name as owner, s.fence, d.depth,
       case when d.depth > 0 then (
           select extract(epoch from clock_timestamp() - e.created_at)::double precision from events e
           where e.shard = s.shard and e.seq = least(lower(p.open), coalesce(p.read_to, s.floor_seq) + 1)
       ) end as age_s,
       coalesce(h.tenants, 0) as tenants, s.draining,
       (select count(*) from departures p where p.shard = s.shard) as leaving
from shards s
left join nodes n on n.node_id = s.owner and n.expires_at > clock_timestamp()
left join (select unnest(home_shards) as shard, count(*) as tenants from tenants where deleted_at is null group by 1) h
    on h.shard = s.shard
cross join lateral hookpost_last(s.shard) l
left join lateral (
    select q.read_to, q.open from progress q where q.shard = s.shard order by q.settle_no desc limit 1
) p on true
cross join lateral (
    select l.last_seq - coalesce(p.read_to, s.floor_seq)
           + coalesce((select sum(upper(r) - lower(r)) from unnest(p.open) r), 0)::bigint as depth
) d
where $1::text is null or s.pool = $1
order by s.shard

-- name: lock
-- One pool grows at a time: shards are numbered on (as in moves.sql).
select pg_advisory_xact_lock(7706, 0)

-- name: of_pool
select count(*) from shards where pool = $1

-- name: use_of
-- A shard's pool and whether it is drained, how many others of the pool are not, and whether any endpoint waits for what
-- it holds.
select s.pool, s.draining,
       (select count(*) from shards o where o.pool = s.pool and o.shard <> s.shard and not o.draining) as others,
       exists (select from barriers b where b.shard = s.shard) as waited_for
from shards s where s.shard = $1

-- name: use
update shards set draining = $2 where shard = $1

-- name: at_home
select tenant_id from tenants where $1 = any (home_shards) and deleted_at is null order by tenant_id

-- name: bump_tenant
-- First in every change of a tenant's configuration (as in admin.sql).
update tenants set config_version = config_version + 1, changed_at = clock_timestamp()
where tenant_id = $1 and deleted_at is null
returning *

-- name: tenant
select spread, home_shards from tenants where tenant_id = $1
