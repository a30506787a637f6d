-- name: turn
-- One builds at a time, the others have nothing to do. Held to the end of the transaction, so whoever has it sees all
-- that was built before.
select pg_try_advisory_xact_lock(7709, 0) as mine, hookpost_now() as moment

-- name: to_count
-- Shards with settles or events behind their marks, and up to which there are some. Where one is visible, all before it
-- are: settles commit one after the other behind the fence, appends behind the lock of the shard.
select s.shard, p.settle_no, e.seq
from shards s
cross join lateral (
    select coalesce(max(k.settle_no), 0) as settle_no, coalesce(max(k.seq), 0) as seq,
           coalesce(max(k.day), '-infinity') as day
    from rollup_progress k where k.shard = s.shard
) m
left join lateral (
    select n.settle_no from progress n where n.shard = s.shard and n.settle_no > m.settle_no
    order by n.settle_no desc limit 1
) p on true
left join lateral (
    select n.seq from events n where n.shard = s.shard and n.seq > m.seq and n.day >= m.day order by n.seq desc limit 1
) e on true
where p.settle_no is not null or e.seq is not null
order by s.shard

-- name: marks
select s.shard, coalesce(m.settle_no, 0) as settle_no, coalesce(m.seq, 0) as seq, coalesce(m.day, '-infinity') as day
from unnest($1::int[]) s (shard) left join rollup_progress m on m.shard = s.shard

-- name: settles
-- The settles of shards behind a number, up to another, and their days.
select n.shard, n.settle_no, n.day
from unnest($1::int[], $2::bigint[], $3::bigint[]) s (shard, behind, up_to)
cross join lateral (
    select q.shard, q.settle_no, q.day from progress q
    where q.shard = s.shard and q.settle_no > s.behind and q.settle_no <= s.up_to offset 0
) n

-- name: roll_up
-- Adds the attempts of settles (shard, number, day) to the rollups of their endpoints, tenants and the platform, and to
-- the metering, and moves the marks: one statement, so all of it or nothing. Attempts have the day of their settle; $4 and
-- $5, the least and the greatest, keep other partitions closed. $6: the least latency of each bucket. $7, $8: the marks. The
-- minute is always written; a coarser grain only where it is built already, and this is late. A row has a tally for each
-- kind of attempt in it; several of the same kind, too, until there are many: to add them up costs more than to keep them.
with tries as materialized (
    select date_trunc('minute', a.finished_at) as bucket, a.tenant_id, a.endpoint_id, a.outcome,
           coalesce(a.error_code, '') as error_code, a.retry_count > 0 as retry,
           ($6::int[])[width_bucket(greatest(a.latency_ms, 0), $6::int[])] as latency_ms,
           a.latency_ms as spent_ms, a.request_bytes, a.response_bytes,
           case when a.outcome = 'delivered' and a.generation = 0 then
               ($6::int[])[width_bucket(least(greatest(extract(epoch from a.finished_at) * 1000
                                                       - hookpost_minted_ms(a.event_id), 0), 2147483647)::int, $6::int[])]
           end as arrived_ms
    from unnest($1::int[], $2::bigint[], $3::date[]) p (shard, settle_no, day)
    cross join lateral (
        select * from attempts a
        where a.shard = p.shard and a.settle_no = p.settle_no and a.day = p.day and a.day between $4 and $5 offset 0
    ) a
), counted as materialized (
    select bucket, coalesce(tenant_id, '00000000-0000-0000-0000-000000000000') as tenant_id,
           coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000') as endpoint_id, outcome, error_code, retry,
           latency_ms, arrived_ms, count(*) as attempts
    from tries
    group by bucket, outcome, error_code, retry, latency_ms, arrived_ms,
             grouping sets ((tenant_id, endpoint_id), (tenant_id), ())
), late as materialized (
    select g.grain, c.bucket, m.bucket as minute, g.bucket as built, g.tenant_id, g.endpoint_id
    from (select distinct bucket from tries) m cross join rollup_reach g
    cross join lateral (
        select date_bin(make_interval(secs => g.grain), m.bucket, timestamptz '2000-01-01 00:00:00Z') as bucket
    ) c
    where g.grain > 60 and c.bucket <= g.bucket
), placed as (
    select 60 as grain, * from counted
    union all
    select l.grain, l.bucket, k.tenant_id, k.endpoint_id, k.outcome, k.error_code, k.retry, k.latency_ms, k.arrived_ms,
           k.attempts
    from late l join counted k on k.bucket = l.minute
    where (l.bucket, k.tenant_id, k.endpoint_id) <= (l.built, l.tenant_id, l.endpoint_id)
), keyed as (
    select grain, bucket, tenant_id, endpoint_id,
           coalesce(sum(attempts) filter (where outcome in ('retry', 'dead')), 0)::bigint as failed,
           array_agg(row(outcome, error_code, retry, latency_ms, arrived_ms, attempts)::rollup_tally) as tallies
    from placed group by 1, 2, 3, 4
), rolled as (
    insert into rollup_tallies as r (grain, bucket, tenant_id, endpoint_id, failed, tallies)
    select grain, bucket, tenant_id, endpoint_id, failed, hookpost_tallied(tallies) from keyed order by 1, 2, 3, 4
    on conflict (grain, bucket, tenant_id, endpoint_id) do update
        set failed = r.failed + excluded.failed, tallies = hookpost_tallied(r.tallies || excluded.tallies)
), metered as (
    insert into metering as m (
        day, tenant_id, attempts, delivered, dead, total_ms, request_bytes, response_bytes, retries, retries_ms,
        retries_request_bytes, retries_response_bytes, rate_limited, rate_limited_ms, rate_limited_request_bytes,
        rate_limited_response_bytes)
    select (bucket at time zone 'utc')::date, tenant_id, count(*),
           count(*) filter (where outcome = 'delivered'), count(*) filter (where outcome = 'dead'),
           sum(spent_ms), sum(request_bytes), sum(response_bytes), count(*) filter (where retry),
           coalesce(sum(spent_ms) filter (where retry), 0), coalesce(sum(request_bytes) filter (where retry), 0),
           coalesce(sum(response_bytes) filter (where retry), 0), count(*) filter (where error_code = 'http_429'),
           coalesce(sum(spent_ms) filter (where error_code = 'http_429'), 0),
           coalesce(sum(request_bytes) filter (where error_code = 'http_429'), 0),
           coalesce(sum(response_bytes) filter (where error_code = 'http_429'), 0)
    from tries group by 1, 2
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
    insert into rollup_progress as k (shard, settle_no) select * from unnest($7::int[], $8::bigint[])
    on conflict (shard) do update set settle_no = excluded.settle_no
)
select count(*) as attempts, (select count(*) from keyed) as rows from tries

-- name: count_accepted
-- Counts events of shards (behind $2, up to $3, of days from $4 on) for their tenants and moves the marks. What Hookpost
-- publishes itself is not counted, nor replays and control rows. `day` never decreases within a shard.
with fresh as materialized (
    select e.shard, e.seq, e.day, e.kind, e.tenant_id, e.type, e.created_at
    from unnest($1::int[], $2::bigint[], $3::bigint[], $4::date[]) s (shard, behind, up_to, day)
    cross join lateral (
        select n.shard, n.seq, n.day, n.kind, n.tenant_id, n.type, n.created_at from events n
        where n.shard = s.shard and n.seq > s.behind and n.seq <= s.up_to and n.day >= s.day offset 0
    ) e
), metered as (
    insert into metering as m (day, tenant_id, accepted)
    select (created_at at time zone 'utc')::date, tenant_id, count(*)
    from fresh where kind = 0 and type not like 'hookpost.%' group by 1, 2
    on conflict (day, tenant_id) do update set accepted = m.accepted + excluded.accepted
), marked as (
    insert into rollup_progress as k (shard, seq, day)
    select s.shard, s.up_to, coalesce((select max(f.day) from fresh f where f.shard = s.shard), s.day)
    from unnest($1::int[], $3::bigint[], $4::date[]) s (shard, up_to, day)
    on conflict (shard) do update set seq = excluded.seq, day = excluded.day
)
select count(*) from fresh

-- name: complete
update rollup_state set tallied_until = greatest(tallied_until, $1)

-- name: grains
-- How far each grain reaches. Built up to and with (bucket, key); the greatest key: all of the bucket.
select grain, bucket, tenant_id, endpoint_id, kept_from from rollup_reach

-- name: oldest_unbuilt
-- The oldest rollup of a grain ($1) that a coarser one ($2) was not built of; the coarser one's last bucket is whole.
select r.bucket from rollup_tallies r
where r.grain = $1 and r.bucket >= (select g.bucket + make_interval(secs => g.grain) from rollup_reach g where g.grain = $2)
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
            select m.tenant_id, m.endpoint_id from rollup_tallies m
            where m.grain = $1::int and m.bucket = f.bucket and (m.tenant_id, m.endpoint_id) >= ($4::uuid, $5::uuid)
            order by m.tenant_id, m.endpoint_id offset $6::int - 1 limit 1
        ) n
        order by n.tenant_id, n.endpoint_id limit 1
    ) e on true
), counted as (
    select n.tenant_id, n.endpoint_id, t.outcome, t.error_code, t.retry, t.latency_ms, t.arrived_ms,
           sum(t.attempts)::bigint as attempts
    from fine f cross join reached e
    cross join lateral (
        select * from rollup_tallies m
        where m.grain = $1::int and m.bucket = f.bucket and (m.tenant_id, m.endpoint_id) >= ($4::uuid, $5::uuid)
          and (m.tenant_id, m.endpoint_id) <= (e.tenant_id, e.endpoint_id) offset 0
    ) n
    cross join lateral unnest(n.tallies) t
    group by 1, 2, 3, 4, 5, 6, 7
), keyed as (
    select tenant_id, endpoint_id,
           coalesce(sum(attempts) filter (where outcome in ('retry', 'dead')), 0)::bigint as failed,
           array_agg(row(outcome, error_code, retry, latency_ms, arrived_ms, attempts)::rollup_tally) as tallies
    from counted group by 1, 2
), built as (
    insert into rollup_tallies as r (grain, bucket, tenant_id, endpoint_id, failed, tallies)
    select $2::int, $3::timestamptz, tenant_id, endpoint_id, failed, hookpost_tallied(tallies) from keyed order by 3, 4
    on conflict (grain, bucket, tenant_id, endpoint_id) do update
        set failed = excluded.failed, tallies = excluded.tallies
)
update rollup_reach g set bucket = $3, tenant_id = e.tenant_id, endpoint_id = e.endpoint_id
from reached e where g.grain = $2

-- name: nothing_to_build
-- There is nothing of the time up to the bucket ($2) of a grain ($1), so it is built.
update rollup_reach set bucket = $2 where grain = $1 and bucket < $2

-- name: keep_from
update rollup_reach set kept_from = $2 where grain = $1 and kept_from < $2

-- name: prune
-- Removes the oldest $3 rollups of a grain ($1) before $2.
with removed as (
    delete from rollup_tallies where ctid = any (array(
        select n.ctid from rollup_tallies n where n.grain = $1 and n.bucket < $2 order by n.bucket limit $3
    ))
    returning 1
)
select count(*) from removed
