-- name: complete_until
select tallied_until from rollup_state

-- name: endpoint_owner
-- Deleted endpoints have a history, too.
select tenant_id from endpoints where endpoint_id = $1 and ($2::uuid is null or tenant_id = $2)

-- name: series
-- Attempts of an endpoint, a tenant or the platform (nil ids, see the table) in pieces (grain, from, to), in points of $7
-- seconds from $6 on: counts, in rows without latency_ms, and latencies, in rows with it; arrived: not of attempts but of
-- deliveries, since acceptance. The key begins with time, so each bucket of a piece, from the first to the last that there
-- are, is a look-up of its own. To ask for the next bucket that exists instead would be a look-up more for each: nearly all
-- of them do.
with buckets as materialized (
    select p.grain, t.bucket, (extract(epoch from t.bucket - $6::timestamptz)::bigint / $7::int)::int as point
    from unnest($3::int[], $4::timestamptz[], $5::timestamptz[]) p (grain, since, until)
    cross join lateral generate_series(
        (select min(r.bucket) from rollup_tallies r where r.grain = p.grain and r.bucket >= p.since and r.bucket < p.until),
        (select max(r.bucket) from rollup_tallies r where r.grain = p.grain and r.bucket >= p.since and r.bucket < p.until),
        make_interval(secs => p.grain)
    ) t (bucket)
), tallies as materialized (
    select b.point, t.*
    from buckets b
    cross join lateral (
        select n.tallies from rollup_tallies n
        where n.grain = b.grain and n.bucket = b.bucket and n.tenant_id = $1 and n.endpoint_id = $2 offset 0
    ) r
    cross join lateral unnest(r.tallies) t
)
select point, outcome, error_code, retry, false as arrived, null::int as latency_ms, sum(attempts)::bigint as attempts
from tallies where outcome is not null group by 1, 2, 3, 4
union all
select point, null, null, null, false, latency_ms, sum(attempts)::bigint
from tallies where outcome is not null group by 1, 6
union all
select point, null, null, null, true, arrived_ms, sum(attempts)::bigint
from tallies where arrived_ms is not null group by 1, 6
order by 1

-- name: waiting_of_endpoint
-- Counted up to $2.
select count(*) from (
    select from shards s cross join lateral (
        select from backlog b where b.shard = s.shard and b.endpoint_id = $1 limit $2
    ) b limit $2
) c

-- name: waiting_of_tenant
-- In the shards that are or were the tenant's homes.
select count(*) from (
    select from endpoints e
    cross join (
        select unnest(t.home_shards) as shard from tenants t where t.tenant_id = $1
        union select d.shard from departures d where d.tenant_id = $1
    ) s
    cross join lateral (select from backlog b where b.shard = s.shard and b.endpoint_id = e.endpoint_id limit $2) b
    where e.tenant_id = $1 limit $2
) c

-- name: waiting_of_all
select count(*) from (select from backlog limit $1) c

-- name: dead_of_endpoint
select count(*) from (select from dead_letters where endpoint_id = $1 limit $2) c

-- name: dead_of_tenant
select count(*) from (select from dead_letters where tenant_id = $1 limit $2) c

-- name: dead_of_all
select count(*) from (select from dead_letters limit $1) c

-- name: depth
-- Entries of the journal that are not read, or read and not done, in a tenant's home shards or (null) in all.
select coalesce(sum(l.last_seq - coalesce(p.read_to, s.floor_seq)
                    + coalesce((select sum(upper(r) - lower(r)) from unnest(p.open) r), 0)), 0)::bigint
from shards s
cross join lateral hookpost_last(s.shard) l
left join lateral (
    select q.read_to, q.open from progress q where q.shard = s.shard order by q.settle_no desc limit 1
) p on true
where $1::uuid is null or s.shard in (select unnest(t.home_shards) from tenants t where t.tenant_id = $1)

-- name: usage_of_tenant
-- Newest day first, behind a key.
select m.*, extract(epoch from m.day + 1) <= extract(epoch from s.tallied_until) as complete
from metering m cross join rollup_state s
where m.tenant_id = $1 and m.day >= $2 and m.day < coalesce($4::date, $3)
order by m.day desc limit $5

-- name: usage_of_all
-- Behind a key (day, tenant); without one, before the last day.
select m.*, extract(epoch from m.day + 1) <= extract(epoch from s.tallied_until) as complete
from metering m cross join rollup_state s
where m.day >= $1
  and (m.day, m.tenant_id) < (coalesce($3::date, $2), coalesce($4::uuid, '00000000-0000-0000-0000-000000000000'))
order by m.day desc, m.tenant_id desc limit $5

-- name: metered
-- What tenants had in days [$2, $3) together, those with the most attempts first; all of them, or one.
select m.tenant_id, sum(m.accepted)::bigint as accepted, sum(m.attempts)::bigint as attempts,
       sum(m.total_ms)::bigint as total_ms, sum(m.request_bytes)::bigint as request_bytes,
       sum(m.response_bytes)::bigint as response_bytes, sum(m.retries)::bigint as retries,
       sum(m.retries_ms)::bigint as retries_ms, sum(m.retries_request_bytes)::bigint as retries_request_bytes,
       sum(m.retries_response_bytes)::bigint as retries_response_bytes, sum(m.rate_limited)::bigint as rate_limited,
       sum(m.rate_limited_ms)::bigint as rate_limited_ms,
       sum(m.rate_limited_request_bytes)::bigint as rate_limited_request_bytes,
       sum(m.rate_limited_response_bytes)::bigint as rate_limited_response_bytes
from metering m
where ($1::uuid is null or m.tenant_id = $1) and m.day >= $2 and m.day < $3
group by grouping sets ((m.tenant_id), ())
having $1::uuid is null or m.tenant_id is not null
order by m.tenant_id is not null, attempts desc, m.tenant_id limit $4

-- name: stored_attempts
-- What the attempts that are kept take on disk, with their indexes, and how many there are by the metering.
with parts as (
    select c.oid, to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'attempts'::regclass and pg_relation_size(c.oid) > 0
)
select coalesce(sum(pg_total_relation_size(p.oid)), 0)::bigint as bytes,
       (select coalesce(sum(m.attempts), 0)::bigint from metering m where m.day in (select q.day from parts q)) as attempts
from parts p
