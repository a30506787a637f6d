-- name: pool_shards
-- The shards of a pool that may be a home of a tenant which has these homes, the one that is home to the fewest tenants
-- first: one that is drained only if the tenant lives there already.
select s.shard
from shards s
left join (select unnest(home_shards) as shard, count(*) as tenants from tenants where deleted_at is null group by 1) h
    on h.shard = s.shard
where s.pool = $1 and (not s.draining or s.shard = any ($2::int[]))
order by coalesce(h.tenants, 0), s.shard

-- name: pools_lock
-- One pool grows at a time: shards are numbered on.
select pg_advisory_xact_lock(7706, 0)

-- name: pools_stay
-- No shard is taken out of use before this transaction ends; many may hold it.
select pg_advisory_xact_lock_shared(7706, 0)

-- name: count_shards
select count(*) filter (where pool = $1) as own, count(*) as every from shards

-- name: add_shards
insert into shards (shard, pool)
select (select coalesce(max(shard), -1) from shards) + g, $1 from generate_series(1, $2::int) g

-- name: place_tenant
update tenants set pool = $2, home_shards = $3, spread = $4 where tenant_id = $1

-- name: endpoints_of
-- The endpoints that something may be left of, as a move must know them.
select endpoint_id, max_in_flight, pinned from endpoints where tenant_id = $1 and deleted_at is null

-- name: tenant_of
select home_shards, max_in_flight from tenants where tenant_id = $1

-- name: departed
select shard from departures where tenant_id = $1

-- name: moves_in_order
-- Does the endpoint wait for what a first home shard holds that its tenant has left: one of another pool than its tenant's,
-- or one that is drained?
select exists (
    select from barriers b join shards s on s.shard = b.shard join tenants t on t.tenant_id = b.tenant_id
    where b.endpoint_id = $1 and (s.pool <> t.pool or s.draining)
)

-- name: has_barriers
select exists (select from barriers where tenant_id = $1)

-- name: seal
select shard, seq from hookpost_seal($1)

-- name: depart
-- Leaving a shard once more moves its mark.
insert into departures (tenant_id, shard, seq) select $1, u.shard, u.seq from unnest($2::int[], $3::bigint[]) u (shard, seq)
on conflict (tenant_id, shard) do update set seq = excluded.seq, created_at = clock_timestamp()

-- name: return_home
delete from departures where tenant_id = $1 and shard = any ($2)

-- name: bar
insert into barriers (endpoint_id, tenant_id, shard, seq)
select u.endpoint_id, $1, u.shard, u.seq from unnest($2::uuid[], $3::int[], $4::bigint[]) u (endpoint_id, shard, seq)
on conflict (endpoint_id, shard) do update set seq = excluded.seq, created_at = clock_timestamp()

-- name: keep_order
update endpoints set ordered_shard = $2, ordered_seq = $3 where endpoint_id = $1

-- name: announce
select hookpost_append_notice($1, $2, $3, $4)
