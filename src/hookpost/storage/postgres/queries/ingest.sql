-- name: append
-- The whole of ingest's work in the database: one call, one implicit transaction (see the function's own comment).
-- What is the same of all events ($7, $8, $11, $12: tenant, type, and where the list of whom they are owed to lies) may
-- be said once.
select * from hookpost_append_lot(
    $1, $2, make_interval(secs => $3), $4, $5, $6,
    case cardinality($7::uuid[]) when 1 then array_fill(($7::uuid[])[1], array[cardinality($6::uuid[])]) else $7 end,
    case cardinality($8::text[]) when 1 then array_fill(($8::text[])[1], array[cardinality($6::uuid[])]) else $8 end,
    $9, $10,
    case cardinality($11::int[]) when 1 then array_fill(($11::int[])[1], array[cardinality($6::uuid[])]) else $11 end,
    case cardinality($12::int[]) when 1 then array_fill(($12::int[])[1], array[cardinality($6::uuid[])]) else $12 end,
    $13, $14, $15, $16, $17, $18
)

-- name: load_routes
-- Tenants as ingest needs them, in one snapshot: version and filters belong together. Side by side, so that each tenant's
-- endpoints are looked up however many others have.
select t.tenant_id, t.config_version, t.home_shards, t.max_in_flight, t.ingest_rate_limit, e.ids, e.filters,
       (select jsonb_object_agg(y.name, y.schema) from event_types y
        where y.tenant_id = t.tenant_id and y.schema is not null)::text as schemas,
       array(select d.shard from departures d where d.tenant_id = t.tenant_id
             union select b.shard from barriers b where b.tenant_id = t.tenant_id) as left_behind
from tenants t cross join lateral (
    select coalesce(array_agg(p.endpoint_id order by p.created_at, p.endpoint_id), '{}') as ids,
           coalesce(jsonb_agg(jsonb_build_array(to_jsonb(p.events), p.max_in_flight, p.pinned)
                              order by p.created_at, p.endpoint_id), '[]')::text as filters
    from endpoints p where p.tenant_id = t.tenant_id and p.deleted_at is null
) e
where t.tenant_id = any ($1::uuid[]) and t.deleted_at is null

-- name: load_route_changes
-- The same of tenants ($1) whose endpoints are known as of a version ($2): only those that changed in it or later, and
-- which are gone since. Fenced off, so that they are found by that, and not in the order they are asked for.
select t.tenant_id, u.since, t.config_version, t.home_shards, t.max_in_flight, t.ingest_rate_limit, e.ids, e.filters, e.gone,
       (select jsonb_object_agg(y.name, y.schema) from event_types y
        where y.tenant_id = t.tenant_id and y.schema is not null)::text as schemas,
       array(select d.shard from departures d where d.tenant_id = t.tenant_id
             union select b.shard from barriers b where b.tenant_id = t.tenant_id) as left_behind
from unnest($1::uuid[], $2::bigint[]) u (tenant_id, since)
join tenants t on t.tenant_id = u.tenant_id cross join lateral (
    select coalesce(array_agg(p.endpoint_id order by p.created_at, p.endpoint_id) filter (where p.deleted_at is null),
                    '{}') as ids,
           coalesce(jsonb_agg(jsonb_build_array(to_jsonb(p.events), p.max_in_flight, p.pinned)
                              order by p.created_at, p.endpoint_id) filter (where p.deleted_at is null), '[]')::text
               as filters,
           coalesce(array_agg(p.endpoint_id) filter (where p.deleted_at is not null), '{}') as gone
    from (select * from endpoints n where n.tenant_id = u.tenant_id and n.routed_in >= u.since offset 0) p
) e
where t.deleted_at is null

-- name: recall
-- Before an event is refused: is its tenant's configuration what it was checked against, and was its key answered before?
select t.config_version, k.event_id, k.request_hash, k.delivery_count, k.reserved
from tenants t
left join idempotency_keys k on k.tenant_id = t.tenant_id and k.key = $2 and k.expires_at > hookpost_now()
where t.tenant_id = $1 and t.deleted_at is null

-- name: share_demand
-- Once a second from each API process: its own row, and what the living others say in all. It need not wait for the disk.
-- Processes long gone are removed by whoever comes; a row that somebody writes at this moment is left alone.
with mine as (
    insert into ingest_nodes (node_id, tenants, demands, expires_at, key_ids)
    values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4), $5)
    on conflict (node_id) do update
        set tenants = excluded.tenants, demands = excluded.demands, expires_at = excluded.expires_at,
            key_ids = excluded.key_ids
), gone as (
    delete from ingest_nodes where node_id in (
        select node_id from ingest_nodes
        where node_id <> $1 and expires_at < clock_timestamp() - interval '1 minute' for update skip locked
    )
), others as (
    select tenants, demands from ingest_nodes where node_id <> $1 and expires_at > clock_timestamp()
), told as (
    select u.tenant_id, sum(u.demand) as demand
    from others o cross join lateral unnest(o.tenants, o.demands) u(tenant_id, demand) group by u.tenant_id
)
select (select 1 + count(*) from others) as processes,
       array(select t.tenant_id from told t order by t.tenant_id) as tenants,
       array(select t.demand from told t order by t.tenant_id) as demands, clock_timestamp() as now,
       set_config('synchronous_commit', 'off', true)

-- name: changed_versions
-- Whose routes are out of date: a process that refuses all of a tenant's events never appends, and would not find out.
-- The clock is asked once, so that the index ends the search.
select tenant_id, config_version from tenants
where changed_at > (select least($1::timestamptz, clock_timestamp() - make_interval(secs => $2)))

-- name: leave_ingest
delete from ingest_nodes where node_id = $1

-- name: find_keys
-- The stored keys of key ids; those of deleted tenants count as revoked.
select k.key_id, k.tenant_id, k.key_hash, k.scopes, k.expires_at,
       k.revoked_at is not null
       or coalesce((select t.deleted_at is not null from tenants t where t.tenant_id = k.tenant_id), false) as revoked
from api_keys k where k.key_id = any ($1::text[])

-- name: revoked_keys
-- Which keys to forget. Deleting a tenant revokes its keys.
select array(
    select key_id from api_keys
    where revoked_at > (select least($1::timestamptz, clock_timestamp() - make_interval(secs => $2)))
) as key_ids, clock_timestamp() as now

-- name: ring
-- Wake sleeping workers for the shards named in $1, or (empty) for all. Outside of every append, at most 170 times a second: NOTIFY takes a global lock at commit.
-- It need not wait for the disk: a ring that a crash forgets is replaced by the workers' own looking.
select set_config('synchronous_commit', 'off', true), pg_notify('hookpost', $1)
