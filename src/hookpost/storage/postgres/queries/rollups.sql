-- name: turn
-- One builds at a time, the others have nothing to do. Held to the end of the transaction, so whoever has it sees all
-- that was built before.
select pg_try_advisory_xact_lock(7709, 0) as mine, hookpost_now() as moment

-- name: pending_settles
-- The settles of each shard behind its mark, in their order; of all shards alike if there are more than $2. Where a
-- settle is visible, all before it are: their commits come one after the other behind the fence.
select p.shard, p.settle_no, p.day
from shards s left join rollup_progress m on m.shard = s.shard
cross join lateral (
    select q.shard, q.settle_no, q.day, row_number() over (order by q.settle_no) as place
    from (
        select n.shard, n.settle_no, n.day from progress n
        where n.shard = s.shard and n.settle_no > coalesce(m.settle_no, 0) order by n.settle_no limit $1
    ) q
) p
order by p.place, p.shard limit $2

-- name: roll_up
-- Adds the attempts of settles (shard, number, day) to the rollups of their endpoints, tenants and the platform, and to
-- the metering, and moves the marks: one statement, so all of it or nothing. Attempts have the day of their settle; $4 and
-- $5, the least and the greatest, keep other partitions closed. $6: the least latency of each bucket. The minute is always
-- written; a coarser grain only where it is built already, and this is late. First deliveries are counted once more, by
-- the time since their event was accepted.
with tries as materialized (
    select date_trunc('minute', a.finished_at) as bucket, a.tenant_id, a.endpoint_id, a.outcome,
           coalesce(a.error_code, '') as error_code, a.retry_count > 0 as retry,
           ($6::int[])[width_bucket(greatest(a.latency_ms, 0), $6::int[])] as latency_ms,
           a.latency_ms as spent_ms, a.request_bytes, a.response_bytes,
           case when a.outcome = 'delivered' and a.generation = 0 then
               least(greatest(extract(epoch from a.finished_at) * 1000 - hookpost_minted_ms(a.event_id), 0), 2147483647)::int
           end as arrived_ms
    from unnest($1::int[], $2::bigint[], $3::date[]) p (shard, settle_no, day)
    cross join lateral (
        select * from attempts a
        where a.shard = p.shard and a.settle_no = p.settle_no and a.day = p.day and a.day between $4 and $5 offset 0
    ) a
), summed as materialized (
    select bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms, count(*) as attempts,
           sum(spent_ms) as total_ms, sum(request_bytes) as request_bytes, sum(response_bytes) as response_bytes
    from tries
    group by bucket, outcome, error_code, retry, latency_ms, grouping sets ((tenant_id, endpoint_id), (tenant_id), ())
), keyed as materialized (
    select bucket, coalesce(tenant_id, '00000000-0000-0000-0000-000000000000') as tenant_id,
           coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000') as endpoint_id, outcome, error_code, retry,
           latency_ms, attempts, total_ms, request_bytes, response_bytes
    from summed
    union all
    select bucket, coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'),
           coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000'), 'arrived', '', false, low_ms, count(*),
           sum(arrived_ms), 0, 0
    from (
        select t.bucket, t.tenant_id, t.endpoint_id, t.arrived_ms,
               ($6::int[])[width_bucket(t.arrived_ms, $6::int[])] as low_ms
        from tries t where t.arrived_ms is not null
    ) t
    group by bucket, low_ms, grouping sets ((tenant_id, endpoint_id), (tenant_id), ())
), rolled as (
    insert into rollup_counts as r (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms,
                                    attempts, total_ms, request_bytes, response_bytes)
    select 60, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms, attempts, total_ms,
           request_bytes, response_bytes
    from keyed
    union all
    select g.grain, c.bucket, k.tenant_id, k.endpoint_id, k.outcome, k.error_code, k.retry, k.latency_ms,
           sum(k.attempts), sum(k.total_ms), sum(k.request_bytes), sum(k.response_bytes)
    from rollup_grains g cross join keyed k
    cross join lateral (
        select date_bin(make_interval(secs => g.grain), k.bucket, timestamptz '2000-01-01 00:00:00Z') as bucket
    ) c
    where g.grain > 60 and (c.bucket, k.tenant_id, k.endpoint_id) <= (g.bucket, g.tenant_id, g.endpoint_id)
    group by 1, 2, 3, 4, 5, 6, 7, 8
    order by 1, 2, 3, 4
    on conflict (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms) do update
        set attempts = r.attempts + excluded.attempts, total_ms = r.total_ms + excluded.total_ms,
            request_bytes = r.request_bytes + excluded.request_bytes,
            response_bytes = r.response_bytes + excluded.response_bytes
), metered as (
    insert into metering as m (
        day, tenant_id, attempts, delivered, dead, total_ms, request_bytes, response_bytes, retries, retries_ms,
        retries_request_bytes, retries_response_bytes, rate_limited, rate_limited_ms, rate_limited_request_bytes,
        rate_limited_response_bytes)
    select (s.bucket at time zone 'utc')::date, s.tenant_id, sum(s.attempts),
           coalesce(sum(s.attempts) filter (where s.outcome = 'delivered'), 0),
           coalesce(sum(s.attempts) filter (where s.outcome = 'dead'), 0),
           sum(s.total_ms), sum(s.request_bytes), sum(s.response_bytes),
           coalesce(sum(s.attempts) filter (where s.retry), 0),
           coalesce(sum(s.total_ms) filter (where s.retry), 0),
           coalesce(sum(s.request_bytes) filter (where s.retry), 0),
           coalesce(sum(s.response_bytes) filter (where s.retry), 0),
           coalesce(sum(s.attempts) filter (where s.error_code = 'http_429'), 0),
           coalesce(sum(s.total_ms) filter (where s.error_code = 'http_429'), 0),
           coalesce(sum(s.request_bytes) filter (where s.error_code = 'http_429'), 0),
           coalesce(sum(s.response_bytes) filter (where s.error_code = 'http_429'), 0)
    from summed s where s.tenant_id is not null and s.endpoint_id is null group by 1, 2
    on conflict (day, tenant_id) do update
        set attempts = m.attempts + excluded.attempts, delivered = m.delivered + excluded.delivered,
            dead = m.dead + excluded.dead, total_ms = m.total_ms + excluded.total_ms,
            request_bytes = m.request_bytes + excluded.request_bytes,
            response_bytes = m.response_bytes + excluded.response_bytes,
            retries = m.retries + excluded.retries, retries_ms = m.retries_ms + excluded.retries_ms,
            retries_request_bytes = m.retries_request_bytes + excluded.retries_request_bytes,
            retries_response_bytes = m.retries_response_bytes + excluded.retries_response_bytes,
            rate_limited = m.rate_limited + excluded.rate_limited,
            rate_limited_ms = m.rate_limited_ms + excluded.rate_limited_ms,
            rate_limited_request_bytes = m.rate_limited_request_bytes + excluded.rate_limited_request_bytes,
            rate_limited_response_bytes = m.rate_limited_response_bytes + excluded.rate_limited_response_bytes
), marked as (
    insert into rollup_progress as k (shard, settle_no)
    select p.shard, max(p.settle_no) from unnest($1::int[], $2::bigint[]) p (shard, settle_no) group by p.shard
    on conflict (shard) do update set settle_no = excluded.settle_no
)
select coalesce(sum(attempts), 0)::bigint from summed where tenant_id is null

-- name: count_accepted
-- Counts the events of each shard behind its mark for their tenants, in the order of the journal, and moves the marks.
-- What Hookpost publishes itself is not counted, nor replays and control rows. `day` never decreases within a shard.
with fresh as materialized (
    select e.shard, e.seq, e.day, e.kind, e.tenant_id, e.type, e.created_at, e.place
    from shards s left join rollup_progress m on m.shard = s.shard
    cross join lateral (
        select f.*, row_number() over (order by f.seq) as place
        from (
            select n.shard, n.seq, n.day, n.kind, n.tenant_id, n.type, n.created_at from events n
            where n.shard = s.shard and n.seq > coalesce(m.seq, 0) and n.day >= coalesce(m.day, '-infinity')
            order by n.seq limit $1
        ) f
    ) e
    order by e.place, e.shard limit $2
), metered as (
    insert into metering as m (day, tenant_id, accepted)
    select (created_at at time zone 'utc')::date, tenant_id, count(*)
    from fresh where kind = 0 and type not like 'hookpost.%' group by 1, 2
    on conflict (day, tenant_id) do update set accepted = m.accepted + excluded.accepted
), marked as (
    insert into rollup_progress as k (shard, seq, day) select shard, max(seq), max(day) from fresh group by shard
    on conflict (shard) do update set seq = excluded.seq, day = excluded.day
)
select count(*) as events, coalesce(max(place), 0) as most from fresh

-- name: complete
update rollup_state set counted_until = greatest(counted_until, $1)

-- name: grains
-- How far each grain reaches. Built up to and with (bucket, key); the greatest key: all of the bucket.
select grain, bucket, tenant_id, endpoint_id, kept_from from rollup_grains

-- name: oldest_unbuilt
-- The oldest rollup of a grain ($1) that a coarser one ($2) was not built of; the coarser one's last bucket is whole.
select r.bucket from rollup_counts r
where r.grain = $1 and r.bucket >= (select g.bucket + make_interval(secs => g.grain) from rollup_grains g where g.grain = $2)
order by r.bucket limit 1

-- name: build
-- Builds a coarse bucket ($3, $2 seconds) of a finer grain ($1) from a key ($4, $5) on: as far as the first $6 rows of each
-- fine bucket reach, to the end of a key. What is built is noted in the statement; a row that stands there already is of a
-- time when it was not, and worth nothing.
with fine as materialized (
    select t.bucket
    from generate_series($3::timestamptz, $3::timestamptz + make_interval(secs => $2::int - $1::int),
                         make_interval(secs => $1::int)) t (bucket)
), reached as materialized (
    select coalesce(e.tenant_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as tenant_id,
           coalesce(e.endpoint_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as endpoint_id
    from (select 1) one left join (
        select n.tenant_id, n.endpoint_id
        from fine f cross join lateral (
            select m.tenant_id, m.endpoint_id from rollup_counts m
            where m.grain = $1::int and m.bucket = f.bucket and (m.tenant_id, m.endpoint_id) >= ($4::uuid, $5::uuid)
            order by m.tenant_id, m.endpoint_id offset $6::int - 1 limit 1
        ) n
        order by n.tenant_id, n.endpoint_id limit 1
    ) e on true
), built as (
    insert into rollup_counts as r (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms,
                                    attempts, total_ms, request_bytes, response_bytes)
    select $2::int, $3::timestamptz, n.tenant_id, n.endpoint_id, n.outcome, n.error_code, n.retry, n.latency_ms,
           sum(n.attempts), sum(n.total_ms), sum(n.request_bytes), sum(n.response_bytes)
    from fine f cross join reached e
    cross join lateral (
        select * from rollup_counts m
        where m.grain = $1::int and m.bucket = f.bucket and (m.tenant_id, m.endpoint_id) >= ($4::uuid, $5::uuid)
          and (m.tenant_id, m.endpoint_id) <= (e.tenant_id, e.endpoint_id) offset 0
    ) n
    group by 3, 4, 5, 6, 7, 8 order by 3, 4
    on conflict (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms) do update
        set attempts = excluded.attempts, total_ms = excluded.total_ms, request_bytes = excluded.request_bytes,
            response_bytes = excluded.response_bytes
)
update rollup_grains g set bucket = $3, tenant_id = e.tenant_id, endpoint_id = e.endpoint_id
from reached e where g.grain = $2

-- name: nothing_to_build
-- There is nothing of the time up to the bucket ($2) of a grain ($1), so it is built.
update rollup_grains set bucket = $2 where grain = $1 and bucket < $2

-- name: keep_from
update rollup_grains set kept_from = $2 where grain = $1 and kept_from < $2

-- name: prune
-- Removes the oldest $3 rollups of a grain ($1) before $2.
with removed as (
    delete from rollup_counts where ctid = any (array(
        select n.ctid from rollup_counts n where n.grain = $1 and n.bucket < $2 order by n.bucket limit $3
    ))
    returning 1
)
select count(*) from removed
