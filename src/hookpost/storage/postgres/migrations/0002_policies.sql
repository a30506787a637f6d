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
-- ---- replays and control rows --------------------------------------------------------------------------------------

create table replays (
    replay_id      uuid primary key,
    tenant_id      uuid not null references tenants,
    endpoint_id    uuid,
    type           text,
    status         text not null check (status in ('dead', 'delivered', 'any')),
    since          timestamptz,
    until          timestamptz,
    rate_limit     double precision not null check (rate_limit > 0),
    matched        bigint not null,
    matched_exact  boolean not null,
    replayed       bigint not null default 0,
    after_at       timestamptz not null,
    after_event    uuid not null default '00000000-0000-0000-0000-000000000000',
    after_endpoint uuid not null default '00000000-0000-0000-0000-000000000000',
    next_at        timestamptz not null default clock_timestamp(),
    state          text not null default 'running' check (state in ('running', 'done', 'cancelled', 'failed')),
    failure        text,
    created_at     timestamptz not null,
    finished_at    timestamptz,
    check ((state = 'running') = (finished_at is null)),
    check ((state = 'failed') = (failure is not null))
);
comment on table replays is 'bulk replays: a filter frozen at created_at, and how far its job is';
comment on column replays.after_at is 'with after_event and after_endpoint: the last candidate that was looked at, moved in the transaction that appends';
comment on column replays.next_at is 'when the job may go on: its rate limit, kept here so that it holds over restarts and runners';
create index replays_tenant on replays (tenant_id, created_at, replay_id);
create index replays_created on replays (created_at, replay_id);
create index replays_running on replays (next_at) where state = 'running';

-- How many replays of a tenant wait bounds what its bulk replays add.
create index backlog_replays on backlog (tenant_id) where generation > 0;

-- Owe events of one tenant once more, each in its shard; an event may stand in several, for different endpoints. The caller has locked the
-- tenant's row, so no two replays of an event count the same generation, and no endpoint changes meanwhile. None of the
-- events is older than p_first_day.
-- (hookpost_append_replay stays for processes of the release before.)
create function hookpost_append_replays(
    p_tenant_id uuid, p_first_day date, p_shards int[], p_event_ids uuid[], p_types text[], p_owed uuid[],
    p_owed_from int[], p_owed_count int[]
) returns void language plpgsql as
$$
declare
    generations int[];
    home        int;
    base_seq    bigint;
    d           date;
    moment      timestamptz;
begin
    -- Before any shard is locked, as old partitions are looked into.
    select array_agg(1 + coalesce(g.generation, 0) order by u.ord) into generations
    from unnest(p_event_ids) with ordinality u(id, ord)
    cross join lateral (
        select max(e.generation) as generation from events e where e.event_id = u.id and e.day >= p_first_day
    ) g;
    for home in select distinct s from unnest(p_shards) s order by s loop
        perform pg_advisory_xact_lock(7700, home);
        select l.last_seq, l.last_day into base_seq, d from hookpost_last(home) l;
        moment := hookpost_now();
        insert into events (day, shard, seq, kind, event_id, tenant_id, type, owed, generation, created_at)
        select d, home, base_seq + row_number() over (order by u.ord), 1, u.id, p_tenant_id, u.type,
               p_owed[u.start : u.start + u.cnt - 1], generations[u.ord], moment
        from unnest(p_shards, p_event_ids, p_types, p_owed_from, p_owed_count)
             with ordinality u(shard, id, type, start, cnt, ord)
        where u.shard = home;
    end loop;
end
$$;

-- Ask the owners of an event's shards to cancel or hurry its deliveries to some endpoints: one control row in each shard
-- that holds such a delivery. Its payload lists their numbers there. Looked up under the shard's lock, so that the row
-- stands behind all that it names. Returns the shards.
create function hookpost_append_control(
    p_event_id uuid, p_tenant_id uuid, p_type text, p_endpoints uuid[], out shards int[]
) language plpgsql as
$$
declare
    home     int;
    last_seq bigint;
    d        date;
begin
    for home in
        select distinct e.shard from events e
        where e.event_id = p_event_id and e.tenant_id = p_tenant_id and e.kind in (0, 1) and e.owed && p_endpoints
        order by e.shard
    loop
        perform pg_advisory_xact_lock(7700, home);
        select l.last_seq, l.last_day into last_seq, d from hookpost_last(home) l;
        insert into events (day, shard, seq, kind, event_id, tenant_id, type, payload, owed, created_at)
        select d, home, last_seq + 1, 2, p_event_id, p_tenant_id, p_type,
               convert_to(to_json(array_agg(distinct e.seq))::text, 'UTF8'), array_agg(distinct o.endpoint_id),
               hookpost_now()
        from events e cross join unnest(e.owed) o(endpoint_id)
        where e.event_id = p_event_id and e.tenant_id = p_tenant_id and e.shard = home and e.kind in (0, 1)
          and o.endpoint_id = any (p_endpoints);
        shards := shards || home;
    end loop;
end
$$;

-- What a bulk replay looks at behind its last candidate, at most p_limit of them, in the order of the index that leads
-- to them: dead letters by the time they died, else events by the time they were accepted. `owed` is empty where the
-- filter does not match: the work is bounded by what is looked at, however rare a match. Only what existed at p_moment;
-- p_since and p_until bound the time at which the event was accepted. `offset 0` keeps each `exists` a look by its index:
-- the plan does not know p_limit, takes it for a tenth of the table, and would hash other tables whole for so many rows.
create function hookpost_replayable(
    p_tenant_id uuid, p_endpoint_id uuid, p_type text, p_status text, p_since timestamptz, p_until timestamptz,
    p_moment timestamptz, p_after_at timestamptz, p_after_event uuid, p_after_endpoint uuid, p_limit int
) returns table (at timestamptz, event_id uuid, endpoint_id uuid, type text, owed uuid[]) language plpgsql as
$$
#variable_conflict use_column
declare
    windowed boolean := p_since is not null or p_until is not null;
    since_at timestamptz := coalesce(p_since, '-infinity');
    until_at timestamptz := coalesce(p_until, 'infinity');
    -- An event's day lies at most one beside the day it was accepted.
    first    date := (since_at at time zone 'utc')::date - 1;
    last     date := (least(until_at, p_moment) at time zone 'utc')::date + 1;
begin
    if p_status = 'dead' then
        -- Only one of the two indexes is walked. What a deleted endpoint was owed stays where it is.
        return query
            select d.died_at, d.event_id, d.endpoint_id, d.type,
                   case when (p_type is null or d.type = p_type)
                         and exists (select from endpoints x
                                     where x.endpoint_id = d.endpoint_id and x.deleted_at is null offset 0)
                         and (not windowed or exists (
                             select from events e
                             where e.event_id = d.event_id and e.kind = 0 and e.day between first and last
                               and e.created_at >= since_at and e.created_at < until_at offset 0))
                        then array[d.endpoint_id] else '{}' end
            from (
                (select l.died_at, l.event_id, l.endpoint_id, l.type from dead_letters l
                 where p_endpoint_id is null and l.tenant_id = p_tenant_id and l.died_at <= p_moment
                   and (l.died_at, l.event_id, l.endpoint_id) > (p_after_at, p_after_event, p_after_endpoint)
                 order by l.died_at, l.event_id, l.endpoint_id limit p_limit)
                union all
                (select l.died_at, l.event_id, l.endpoint_id, l.type from dead_letters l
                 where l.endpoint_id = p_endpoint_id and l.tenant_id = p_tenant_id and l.died_at <= p_moment
                   and (l.died_at, l.event_id) > (p_after_at, p_after_event)
                 order by l.died_at, l.event_id limit p_limit)
            ) d
            order by d.died_at, d.event_id, d.endpoint_id;
    else
        first := (greatest(since_at, p_after_at) at time zone 'utc')::date - 1;
        return query
            select e.created_at, e.event_id, p_after_endpoint, e.type,
                   case when p_type is null or e.type = p_type then array(
                       select o.endpoint_id from unnest(e.owed) with ordinality o(endpoint_id, place)
                       join endpoints x on x.endpoint_id = o.endpoint_id and x.deleted_at is null
                       where (p_endpoint_id is null or o.endpoint_id = p_endpoint_id)
                         and (p_status = 'any' or exists (
                             select from attempts a
                             where a.event_id = e.event_id and a.endpoint_id = o.endpoint_id and a.day >= first
                               and a.outcome = 'delivered' and a.finished_at <= p_moment offset 0))
                       order by o.place) else '{}' end
            from events e
            where e.tenant_id = p_tenant_id and e.kind = 0 and e.day between first and last
              and e.created_at >= since_at and e.created_at < until_at and e.created_at <= p_moment
              and e.created_at >= p_after_at and (e.created_at, e.event_id) > (p_after_at, p_after_event)
            order by e.created_at, e.event_id limit p_limit;
    end if;
end
$$;

-- ---- health and alerts ---------------------------------------------------------------------------------------------

alter table endpoints
    add column consecutive_failures int not null default 0,
    add column failing_since        timestamptz;
comment on column endpoints.failing_since is 'the first failure of the run; null: the last attempt was none. Written by workers, a second late at most';

create table outbox (
    notice_id   bigint generated always as identity primary key,
    type        text not null,
    tenant_id   uuid not null,
    endpoint_id uuid not null,
    at          timestamptz not null,
    failures    int not null default 0,
    since       timestamptz,
    reason      text,
    deaths      int not null default 0,
    event_ids   uuid[] not null default '{}'
);
comment on table outbox is 'what workers saw and is to be told, written in the settle that saw it; taken out once it is gathered into alerts';

create table alert_states (
    endpoint_id     uuid primary key,
    failing_told    boolean not null default false,
    failing_told_at timestamptz,
    deaths          int not null default 0,
    deaths_since    timestamptz,
    event_ids       uuid[] not null default '{}',
    deaths_told_at  timestamptz
);
comment on table alert_states is 'what was told of an endpoint, and the deaths not told yet (policy/alerts.Standing)';
create index alert_states_untold on alert_states (deaths_told_at) where deaths > 0;

create table alerts (
    alert_id    uuid not null,
    channel     text not null check (channel in ('event', 'mail', 'operator')),
    tenant_id   uuid not null,
    endpoint_id uuid not null,
    type        text not null,
    payload     bytea not null,
    tries       int not null default 0,
    due_at      timestamptz not null default clock_timestamp(),
    primary key (alert_id, channel)
);
comment on table alerts is 'what is still to be told, and where; a row goes when it was told or given up';
create index alerts_due on alerts (channel, due_at);

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
create function hookpost_append_notice(p_shard int, p_event_id uuid, p_tenant_id uuid, p_type text) returns bigint
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
    lifted int;
begin
    if not exists (select from barriers) and not exists (select from departures)
       or not pg_try_advisory_xact_lock(7705, 0) then
        return 0;
    end if;
    with done as (
        select b.tenant_id, b.endpoint_id, b.shard, b.seq from barriers b
        where hookpost_cursor(b.shard) >= b.seq and not exists (
            select from backlog w
            where w.shard = b.shard and w.endpoint_id = b.endpoint_id and w.position <= b.seq offset 0
        )
        union all
        select d.tenant_id, null, d.shard, d.seq from departures d
        where hookpost_cursor(d.shard) >= d.seq and not exists (
            select from endpoints e
            where e.tenant_id = d.tenant_id and exists (
                select from backlog w where w.shard = d.shard and w.endpoint_id = e.endpoint_id and w.position <= d.seq offset 0
            ) offset 0
        )
    ), held as (
        select t.tenant_id from tenants t where t.tenant_id in (select d.tenant_id from done d)
        order by t.tenant_id for no key update skip locked
    ), free as (
        select d.* from done d join held h on h.tenant_id = d.tenant_id
    ), gone as (
        delete from barriers b using free f where (b.endpoint_id, b.shard, b.seq) = (f.endpoint_id, f.shard, f.seq)
        returning b.tenant_id
    ), left_behind as (
        delete from departures d using free f
        where f.endpoint_id is null and (d.tenant_id, d.shard, d.seq) = (f.tenant_id, f.shard, f.seq)
        returning d.tenant_id
    ), all_gone as (
        select g.tenant_id from gone g union all select l.tenant_id from left_behind l
    ), told as (
        update tenants t set changed_at = clock_timestamp() where t.tenant_id in (select g.tenant_id from all_gone g)
    )
    select count(*) into lifted from all_gone;
    return lifted;
end
$$;
