-- Traffic policies. Every new column has a default or may be null: a worker of the release before goes on writing.

-- ---- endpoints: limits and order -----------------------------------------------------------------------------------

alter table endpoints
    add column rate_limit double precision check (rate_limit > 0),
    add column ordered    boolean not null default false,
    add column on_dead    text check (on_dead in ('block', 'skip')),
    add column ack        text check (ack in ('signed'));
comment on column endpoints.rate_limit is 'deliveries a second; null: no limit. An endpoint with a limit or an order is pinned to the first home shard';
comment on column endpoints.ack is 'signed: a 2xx counts only with a valid webhook-ack; null: any 2xx counts';
comment on column endpoints.on_dead is 'what a dead delivery means to an ordered endpoint; null takes the default, block';

-- ---- breakers ------------------------------------------------------------------------------------------------------

create table breakers (
    tenant_id   uuid not null,
    origin      text not null,
    state       text not null check (state in ('closed', 'open', 'half_open')),
    since       timestamptz not null,
    reopen_at   timestamptz,
    openings    int not null default 0,
    failures    int not null default 0,
    probe_by    uuid,
    probe_until timestamptz,
    primary key (tenant_id, origin)
);
comment on table breakers is 'one row for each (tenant, scheme, host, port) that ever failed in a row, written at transitions';
comment on column breakers.probe_by is 'the one worker of the fleet that may send the probe, until probe_until';

-- ---- backlog -------------------------------------------------------------------------------------------------------

alter table backlog add column stored_at timestamptz;
comment on column backlog.stored_at is 'when the row was last written; what recovery brings forward was stored before it';

-- ---- order over a change of owner ----------------------------------------------------------------------------------

-- Until when a shard that is let go is quiet: its owner's last request may still be under way for p_longest, unless its
-- last settle says that nothing is. Never earlier than it was.
create function hookpost_quiet_until(p_shard int, p_quiet_until timestamptz, p_longest interval) returns timestamptz
language sql volatile as
$$
    select case when coalesce((select p.clean and p.fence = s.fence from progress p join shards s on s.shard = p.shard
                               where p.shard = p_shard order by p.settle_no desc limit 1), false)
                then p_quiet_until else greatest(p_quiet_until, clock_timestamp() + p_longest) end
$$;

-- As before, with the longest time that a request may take.
create function hookpost_claim(p_node uuid, p_pool text, p_limit int, p_lease interval, p_longest interval)
returns table (shard int, fence bigint) language plpgsql as
$$
begin
    perform pg_advisory_xact_lock(7703, 0);
    return query
        update shards s
        set owner = p_node, fence = s.fence + 1,
            quiet_until = case when s.owner is null then s.quiet_until
                               else greatest(s.quiet_until, clock_timestamp() + p_longest) end
        where s.shard in (
            select f.shard from shards f left join nodes n on n.node_id = f.owner
            where f.pool = p_pool
              and (f.owner is null
                   or (coalesce(n.expires_at, '-infinity') < clock_timestamp()
                       and pg_postmaster_start_time() + p_lease < clock_timestamp()))
            order by f.shard limit p_limit
            for update of f skip locked
        )
        returning s.shard, s.fence;
end
$$;
-- ---- the rate limit of a tenant at ingest --------------------------------------------------------------------------

-- A small table that is rewritten every second: room on its pages keeps the rows where they are.
create table ingest_nodes (
    node_id    uuid primary key,
    tenants    uuid[] not null,
    demands    double precision[] not null check (cardinality(demands) = cardinality(tenants)),
    expires_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table ingest_nodes is 'one row for each API process: events a second it was asked to take of tenants that have a limit';
alter table tenants add check (ingest_rate_limit > 0);
comment on column tenants.ingest_rate_limit is 'events a second over all API processes; null: no limit';
