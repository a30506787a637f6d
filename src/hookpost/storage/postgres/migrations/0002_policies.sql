-- Traffic policies. Every new column has a default or may be null: a worker of the release before goes on writing.

-- ---- endpoints: limits and order -----------------------------------------------------------------------------------

alter table endpoints
    add column rate_limit double precision check (rate_limit > 0),
    add column ordered    boolean not null default false,
    add column on_dead    text check (on_dead in ('block', 'skip')),
    add column ack        text check (ack in ('signed'));
comment on column endpoints.rate_limit is 'deliveries a second; null: no limit. An endpoint with a limit or an order is pinned to the first home shard';
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

-- ---- moves: spread over home shards, pools -------------------------------------------------------------------------

alter table tenants add column spread int check (spread between 1 and 64);
comment on column tenants.spread is 'how many home shards the operator wants; null: as many as the load asks for';
-- Who has several got them deliberately: the tenant `default`.
update tenants set spread = cardinality(home_shards) where cardinality(home_shards) between 2 and 64;
create index tenants_spread on tenants (tenant_id)
    where spread is null and deleted_at is null and cardinality(home_shards) > 1;

alter table endpoints
    add column spread        boolean,
    add column pinned        boolean not null generated always as (ordered or rate_limit is not null or spread is false) stored,
    add column ordered_shard int,
    add column ordered_seq   bigint,
    add check (not (spread and (ordered or rate_limit is not null))),
    add check ((ordered_shard is null) = (ordered_seq is null));
comment on column endpoints.spread is 'false: all of it goes to the first home shard';
comment on column endpoints.pinned is 'whatever its cap, its deliveries live in the first home shard';
comment on column endpoints.ordered_seq is 'what the endpoint was owed in ordered_shard up to here was accepted while it was ordered';

create table barriers (
    endpoint_id uuid not null references endpoints,
    tenant_id   uuid not null references tenants,
    shard       int not null,
    seq         bigint not null,
    created_at  timestamptz not null default clock_timestamp(),
    primary key (endpoint_id, shard)
);
comment on table barriers is 'the endpoint waits, in its first home shard, until all it is owed in shard up to seq is done';
create index barriers_tenant on barriers (tenant_id);

create table departures (
    tenant_id  uuid not null references tenants,
    shard      int not null,
    seq        bigint not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, shard)
);
comment on table departures is 'the shard was a home of the tenant, and holds something of it until all up to seq is done';

-- The last numbers of shards, whose locks the caller then holds to its commit. In the transaction of a change that has
-- raised the tenant's config version nothing of the older configuration can come behind these numbers: an append takes
-- the shard's lock before it checks the version, so it either had the lock before us, and its rows are counted, or gets
-- it after our commit, sees the new version and is refused as stale.
-- Lock order: the tenant's row, then shards, sorted. An append waits for no tenant's row (it reads the version), and a
-- settle takes neither, so no circle can close.
create function hookpost_seal(p_shards int[]) returns table (shard int, seq bigint) language plpgsql as
$$
begin
    for shard in select distinct u from unnest(p_shards) u order by u loop
        perform pg_advisory_xact_lock(7700, shard);
        select l.last_seq into seq from hookpost_last(shard) l;
        return next;
    end loop;
end
$$;

-- Tells the owner of a shard, in the order of the journal, that a tenant's configuration was changed: rows behind this
-- one are not to be handled by an older one.
create function hookpost_append_control(p_shard int, p_event_id uuid, p_tenant_id uuid, p_type text) returns bigint
language plpgsql as
$$
declare
    new_seq bigint;
    d       date;
begin
    perform pg_advisory_xact_lock(7700, p_shard);
    select l.last_seq + 1, l.last_day into new_seq, d from hookpost_last(p_shard) l;
    insert into events (day, shard, seq, kind, event_id, tenant_id, type, owed, created_at)
    values (d, p_shard, new_seq, 2, p_event_id, p_tenant_id, p_type, '{}', hookpost_now());
    return new_seq;
end
$$;

-- A replay is matched with a configuration, too: null, and nothing appended, when that is no longer the tenant's.
create function hookpost_append_replay(
    p_shard int, p_event_id uuid, p_tenant_id uuid, p_type text, p_owed uuid[], p_version bigint, out new_seq bigint
) language plpgsql as
$$
begin
    perform pg_advisory_xact_lock(7700, p_shard);
    if exists (select from tenants t where t.tenant_id = p_tenant_id and t.config_version = p_version) then
        select r.new_seq into new_seq
        from hookpost_append_replay(p_shard, p_event_id, p_tenant_id, p_type, p_owed) r;
    end if;
end
$$;

-- All up to here is done or in the backlog. `stable`: it is to see what the statement around it sees, as a settle that
-- comes in between moves the cursor over what it puts into the backlog.
create function hookpost_cursor(p_shard int) returns bigint stable language sql as
$$
    select greatest(s.floor_seq, (
        select p.cursor from progress p where p.shard = p_shard order by p.settle_no desc limit 1
    ))
    from shards s where s.shard = p_shard
$$;

-- Lifts what has been waited for; returns how many barriers and departures. One call does it at a time, the others have
-- nothing to do. A tenant whose configuration is just being changed has its turn with the next call. Workers hear of it
-- by way of changed_at. `offset 0` keeps each look an index's: joined, a whole backlog might be read.
create function hookpost_lift() returns int language plpgsql as
$$
declare
    barriers_lifted   int;
    departures_lifted int;
begin
    if not exists (select from barriers) and not exists (select from departures) then
        return 0;
    end if;
    if not pg_try_advisory_xact_lock(7705, 0) then
        return 0;
    end if;

    with done as (
        select b.endpoint_id, b.shard, b.seq, b.tenant_id from barriers b
        where hookpost_cursor(b.shard) >= b.seq and not exists (
            select from backlog w
            where w.shard = b.shard and w.endpoint_id = b.endpoint_id and w.position <= b.seq offset 0
        )
    ), held as (
        select t.tenant_id from tenants t where t.tenant_id in (select d.tenant_id from done d)
        order by t.tenant_id for no key update skip locked
    ), gone as (
        delete from barriers b using done d, held h
        where b.endpoint_id = d.endpoint_id and b.shard = d.shard and b.seq = d.seq and h.tenant_id = d.tenant_id
        returning b.tenant_id
    ), told as (
        update tenants t set changed_at = clock_timestamp() from (select distinct g.tenant_id from gone g) g
        where t.tenant_id = g.tenant_id
    )
    select count(*) into barriers_lifted from gone;

    with done as (
        select d.tenant_id, d.shard, d.seq from departures d
        where hookpost_cursor(d.shard) >= d.seq and not exists (
            select from endpoints e
            where e.tenant_id = d.tenant_id and exists (
                select from backlog w where w.shard = d.shard and w.endpoint_id = e.endpoint_id and w.position <= d.seq offset 0
            ) offset 0
        )
    ), held as (
        select t.tenant_id from tenants t where t.tenant_id in (select d.tenant_id from done d)
        order by t.tenant_id for no key update skip locked
    ), gone as (
        delete from departures d using done o, held h
        where d.tenant_id = o.tenant_id and d.shard = o.shard and d.seq = o.seq and h.tenant_id = o.tenant_id
        returning d.tenant_id
    ), told as (
        update tenants t set changed_at = clock_timestamp() from (select distinct g.tenant_id from gone g) g
        where t.tenant_id = g.tenant_id
    )
    select count(*) into departures_lifted from gone;
    return barriers_lifted + departures_lifted;
end
$$;
