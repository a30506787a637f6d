-- The first schema. Append-only tables (events, attempts, progress) are partitioned by day from the start.
-- `day` is assigned by the database under the shard's lock and never decreases within a shard.

create table platform (
    name  text primary key,
    value text not null
);
comment on table platform is 'single facts of this installation, e.g. which tenant is the default one';

create table tenants (
    tenant_id         uuid primary key,
    name              text not null,
    pool              text not null default 'default',
    home_shards       int[] not null check (cardinality(home_shards) > 0),
    config_version    bigint not null default 1,
    changed_at        timestamptz not null default clock_timestamp(),
    ingest_rate_limit double precision,
    max_in_flight     int not null default 512 check (max_in_flight > 0),
    alert_email       text,
    created_at        timestamptz not null default clock_timestamp(),
    updated_at        timestamptz not null default clock_timestamp(),
    deleted_at        timestamptz
);
comment on column tenants.home_shards is 'stored, not computed: adding shards moves nobody';
comment on column tenants.config_version is 'grows with every change of the tenant or its endpoints; checked inside the append';
create index tenants_changed_at on tenants (changed_at);
create index tenants_created on tenants (created_at, tenant_id);

create table api_keys (
    key_id       text primary key,
    tenant_id    uuid references tenants,
    name         text not null,
    key_hash     bytea not null,
    scopes       text[] not null default '{}',
    created_at   timestamptz not null default clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
comment on column api_keys.tenant_id is 'null: an admin key';
create index api_keys_revoked on api_keys (revoked_at) where revoked_at is not null;
create index api_keys_tenant on api_keys (tenant_id, created_at, key_id);

create table endpoints (
    endpoint_id    uuid primary key,
    tenant_id      uuid not null references tenants,
    url            text not null,
    events         text[] not null default '{*}' check (cardinality(events) > 0),
    status         text not null default 'enabled' check (status in ('enabled', 'paused', 'disabled')),
    status_reason  text,
    description    text,
    uid            text,
    metadata       jsonb not null default '{}',
    base_s         double precision,
    cap_s          double precision,
    max_attempts   int,
    deadline_s     double precision,
    connect_s      double precision,
    first_byte_s   double precision,
    total_s        double precision,
    max_in_flight  int check (max_in_flight > 0),
    hold_until     timestamptz,
    created_at     timestamptz not null default clock_timestamp(),
    updated_at     timestamptz not null default clock_timestamp(),
    deleted_at     timestamptz
);
comment on column endpoints.deleted_at is 'a deleted endpoint stays as a tombstone, so that "whom was it owed to?" has an answer';
comment on column endpoints.base_s is 'retry and timeout columns: null takes the platform''s default';
create index endpoints_tenant on endpoints (tenant_id, created_at, endpoint_id);
create index endpoints_created on endpoints (created_at, endpoint_id);
create unique index endpoints_uid on endpoints (tenant_id, uid) where deleted_at is null;

create table endpoint_secrets (
    endpoint_id uuid not null references endpoints,
    key         bytea not null,
    created_at  timestamptz not null default clock_timestamp(),
    expires_at  timestamptz,
    primary key (endpoint_id, created_at)
);

create table events (
    day             date not null,
    shard           int not null,
    seq             bigint not null,
    kind            smallint not null default 0,
    event_id        uuid not null,
    tenant_id       uuid not null,
    type            text not null,
    payload         bytea,
    owed            uuid[] not null,
    generation      int not null default 0,
    idempotency_key text,
    trace_id        uuid,
    created_at      timestamptz not null,
    primary key (shard, seq, day)
) partition by range (day);
comment on table events is 'the journal: the event store is the dispatch queue. kind: 0 deliver, 1 replay, 2 control';
create index events_event on events (event_id);
create index events_tenant on events (tenant_id, created_at);

create table attempts (
    day                date not null,
    attempt_id         uuid not null,
    shard              int not null,
    settle_no          bigint not null,
    position           bigint not null,
    event_id           uuid not null,
    endpoint_id        uuid not null,
    tenant_id          uuid not null,
    generation         int not null,
    scheduled_at       timestamptz not null,
    started_at         timestamptz not null,
    finished_at        timestamptz not null,
    retry_count        int not null,
    latency_ms         int not null,
    dns_ms             int not null,
    connect_ms         int not null,
    tls_ms             int not null,
    first_byte_ms      int not null,
    request_bytes      int not null,
    response_bytes     int not null,
    http_status        smallint,
    possible_duplicate boolean not null,
    outcome            text not null check (outcome in ('delivered', 'retry', 'dead')),
    error_code         text,
    worker             text not null,
    address            text not null,
    protocol           text not null,
    response_hash      bytea,
    response_head      bytea not null
) partition by range (day);
comment on table attempts is 'one row per HTTP try, append-only; response bytes are bytes, whatever a receiver sends';
create index attempts_event on attempts (event_id, endpoint_id);
create index attempts_endpoint on attempts (endpoint_id, scheduled_at);
create index attempts_tenant on attempts (tenant_id, scheduled_at);

create table backlog (
    shard            int not null,
    endpoint_id      uuid not null,
    position         bigint not null,
    day              date not null,
    tenant_id        uuid not null,
    event_id         uuid not null,
    generation       int not null,
    reason           text not null,
    due_at           timestamptz not null,
    retry_count      int not null,
    deadline         timestamptz not null,
    created_at       timestamptz not null,
    last_http_status smallint,
    last_error_code  text,
    primary key (shard, endpoint_id, position)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, fillfactor = 80);
comment on table backlog is 'deliveries that cannot run now; written by the fenced owner of the shard alone';
create index backlog_due on backlog (shard, endpoint_id, due_at, position);

create table dead_letters (
    event_id         uuid not null,
    endpoint_id      uuid not null,
    tenant_id        uuid not null,
    shard            int not null,
    position         bigint not null,
    day              date not null,
    generation       int not null,
    type             text not null,
    reason           text not null,
    died_at          timestamptz not null,
    attempt_count    int not null,
    last_http_status smallint,
    last_error_code  text,
    primary key (event_id, endpoint_id)
);
create index dead_letters_tenant on dead_letters (tenant_id, died_at, event_id, endpoint_id);
create index dead_letters_endpoint on dead_letters (endpoint_id, died_at, event_id);
create index dead_letters_died on dead_letters (died_at, event_id, endpoint_id);

create table nodes (
    node_id    uuid primary key,
    pool       text not null,
    name       text not null,
    started_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);

create table shards (
    shard       int primary key,
    pool        text not null default 'default',
    owner       uuid,
    fence       bigint not null default 0,
    floor_seq   bigint not null default 0,
    quiet_until timestamptz
);
comment on column shards.fence is 'grows with every new owner; every settle checks it';
comment on column shards.floor_seq is 'the last number ever given, for a shard whose rows were all dropped';

create table progress (
    day       date not null,
    shard     int not null,
    settle_no bigint not null,
    fence     bigint not null,
    cursor    bigint not null,
    read_to   bigint not null,
    read_day  date not null,
    open      int8multirange not null default '{}',
    partial   jsonb,
    clean     boolean not null default false,
    check (cursor <= read_to),
    primary key (shard, settle_no, day)
) partition by range (day);
comment on table progress is 'one row per shard and settle, append-only: all up to cursor is done or in the backlog';

create table idempotency_keys (
    tenant_id      uuid not null,
    key            text not null,
    event_id       uuid not null,
    request_hash   bytea not null,
    delivery_count int not null,
    expires_at     timestamptz not null,
    primary key (tenant_id, key)
) with (autovacuum_vacuum_scale_factor = 0.05);
create index idempotency_keys_expiry on idempotency_keys (expires_at);

-- The one clock of the schema, so that a test can let midnight pass.
create function hookpost_now() returns timestamptz language sql volatile as 'select clock_timestamp()';

create function hookpost_today() returns date language sql volatile as
$$ select (hookpost_now() at time zone 'utc')::date $$;

-- Makes the missing daily partitions of [from_day, to_day]; returns how many. CREATE + ATTACH take no lock that
-- a reader or an append waits for.
create function hookpost_make_partitions(from_day date, to_day date) returns int language plpgsql as
$$
declare
    parent text;
    part   text;
    col    text;
    d      date;
    made   int := 0;
begin
    perform pg_advisory_xact_lock(7701, 0);
    for parent in select unnest(array['events', 'attempts', 'progress']) loop
        for d in select g::date from generate_series(from_day, to_day, interval '1 day') g loop
            part := parent || '_' || to_char(d, 'YYYYMMDD');
            if to_regclass(part) is null then
                execute format('create table %I (like %I including all)', part, parent);
                -- No plan asks about these columns, and to analyze them is to read and sort every payload.
                for col in select c from unnest(case parent
                        when 'events' then array['payload', 'owed', 'idempotency_key', 'trace_id']
                        when 'attempts' then array['response_head', 'response_hash', 'address', 'protocol', 'worker']
                        else array['open', 'partial'] end) c loop
                    execute format('alter table %I alter column %I set statistics 0', part, col);
                end loop;
                execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, part, d, d + 1);
                made := made + 1;
            end if;
        end loop;
    end loop;
    return made;
end
$$;

-- The day and number of the last row of a shard. The caller holds the shard's lock.
-- A shard that was silent for days is looked up in all partitions; as a rule two or three will do, and for these the day
-- must be a value: a function call would neither prune partitions nor be found by an index.
create function hookpost_last(p_shard int, out last_seq bigint, out last_day date) language plpgsql as
$$
declare
    today     date := hookpost_today();
    yesterday date := today - 1;
begin
    select e.seq, e.day into last_seq, last_day from events e
    where e.shard = p_shard and e.day >= yesterday order by e.seq desc limit 1;
    if not found then
        select e.seq, e.day into last_seq, last_day from events e where e.shard = p_shard order by e.seq desc limit 1;
    end if;
    if last_seq is null then
        select s.floor_seq into last_seq from shards s where s.shard = p_shard;
        if not found then
            raise exception 'shard % does not exist', p_shard using errcode = 'HP001';
        end if;
    end if;
    last_day := greatest(last_day, today);
end
$$;

-- Append events to one shard: the whole of ingest's work in the database, one call and one implicit transaction.
--   p_tenants, p_versions: the distinct tenants of the call and the config versions the events were matched with
--   p_owed, p_owed_from, p_owed_count: all owed lists in one array, and each event's slice of it
-- Returns `stale` (then nothing was written) or `verdicts`, null when every event is new
-- (0 new, 1 duplicate, 2 conflict, 3 its first one has just expired: try again), with the first event's id and count
-- for the others.
-- Lock order: idempotency keys, then the shard. Numbers are gapless and visible in their order, as the lock is held
-- until the commit.
create function hookpost_append(
    p_shard int, p_keep interval,
    p_tenants uuid[], p_versions bigint[],
    p_ids uuid[], p_of uuid[], p_types text[], p_payloads bytea[],
    p_owed uuid[], p_owed_from int[], p_owed_count int[],
    p_traces uuid[], p_keys text[], p_hashes bytea[],
    out stale uuid[], out verdicts smallint[], out first_ids uuid[], out first_counts int[]
) language plpgsql as
$$
declare
    winners  uuid[];
    meant    int := cardinality(p_ids);
    written  int;
    base_seq bigint;
    d        date;
    moment   timestamptz;
begin
    if p_keys is not null then
        with candidates as (
            select distinct on (u.of, u.key) u.of, u.key, u.id, u.hash, u.cnt
            from unnest(p_of, p_keys, p_ids, p_hashes, p_owed_count) with ordinality u(of, key, id, hash, cnt, ord)
            where u.key is not null
            order by u.of, u.key, u.ord
        ), won as (
            insert into idempotency_keys as k (tenant_id, key, event_id, request_hash, delivery_count, expires_at)
            select c.of, c.key, c.id, c.hash, c.cnt, hookpost_now() + p_keep from candidates c order by c.of, c.key
            on conflict (tenant_id, key) do update
                set event_id = excluded.event_id, request_hash = excluded.request_hash,
                    delivery_count = excluded.delivery_count, expires_at = excluded.expires_at
                where k.expires_at <= hookpost_now()
            returning k.event_id
        )
        select array_agg(won.event_id) into winners from won;
    end if;

    perform pg_advisory_xact_lock(7700, p_shard);

    select array_agg(u.tenant_id) into stale
    from unnest(p_tenants, p_versions) u(tenant_id, version)
    left join tenants t on t.tenant_id = u.tenant_id and t.deleted_at is null
    where t.config_version is distinct from u.version;
    if stale is not null then
        delete from idempotency_keys k using unnest(p_of, p_keys, p_ids) u(of, key, id)
        where k.tenant_id = u.of and k.key = u.key and k.event_id = u.id and u.id = any (winners);
        return;
    end if;

    if p_keys is not null then
        -- The losers: their winner has committed by now, or stands in this very call.
        select array_agg(case when u.key is null or w.id is not null then 0
                              when k.event_id is null then 3
                              when k.request_hash = u.hash then 1 else 2 end::smallint order by u.ord),
               array_agg(k.event_id order by u.ord),
               array_agg(k.delivery_count order by u.ord),
               count(*) filter (where u.key is null or w.id is not null)
        into verdicts, first_ids, first_counts, meant
        from unnest(p_of, p_keys, p_ids, p_hashes) with ordinality u(of, key, id, hash, ord)
        left join unnest(winners) w(id) on w.id = u.id
        left join idempotency_keys k on k.tenant_id = u.of and k.key = u.key;
    end if;

    select l.last_seq, l.last_day into base_seq, d from hookpost_last(p_shard) l;
    moment := hookpost_now();
    insert into events (day, shard, seq, event_id, tenant_id, type, payload, owed, idempotency_key, trace_id, created_at)
    select d, p_shard, base_seq + row_number() over (order by u.ord), u.id, u.of, u.type, u.payload,
           case when u.cnt = 0 then '{}' else p_owed[u.start : u.start + u.cnt - 1] end,
           p_keys[u.ord], p_traces[u.ord], moment
    from unnest(p_ids, p_of, p_types, p_payloads, p_owed_from, p_owed_count)
         with ordinality u(id, of, type, payload, start, cnt, ord)
    where verdicts is null or verdicts[u.ord] = 0;
    get diagnostics written = row_count;
    if written <> meant then
        raise exception 'append wrote % rows of %', written, meant using errcode = 'HP002';
    end if;
end
$$;

-- Owe an event once more. The generation is counted under the shard's lock, so two replays never share one.
create function hookpost_append_replay(
    p_shard int, p_event_id uuid, p_tenant_id uuid, p_type text, p_owed uuid[], out new_seq bigint
) language plpgsql as
$$
declare
    d date;
begin
    perform pg_advisory_xact_lock(7700, p_shard);
    select l.last_seq + 1, l.last_day into new_seq, d from hookpost_last(p_shard) l;
    insert into events (day, shard, seq, kind, event_id, tenant_id, type, owed, generation, created_at)
    select d, p_shard, new_seq, 1, p_event_id, p_tenant_id, p_type, p_owed,
           1 + coalesce(max(e.generation), 0), hookpost_now()
    from events e where e.event_id = p_event_id;
end
$$;

-- Opens a settle: locks and checks the fences, then writes the progress rows. Returns the shards whose fence has moved on
-- (then nothing was written), whether this very settle was committed before, and the day for the attempts.
-- `for no key update` changes no row and leaves no dead one. A commit of unknown end may still be under way when it is
-- repeated: the lock waits for it, and as a settle is one transaction its first shard speaks for all.
create function hookpost_settle(
    p_shards int[], p_fences bigint[], p_settle_nos bigint[], p_cursors bigint[], p_read_tos bigint[],
    p_read_days date[], p_open text[], p_partial text[], p_clean boolean[],
    out lost int[], out already boolean, out today date
) language plpgsql as
$$
declare
    earliest date;
begin
    today := hookpost_today();
    perform 1 from shards s where s.shard = any (p_shards) order by s.shard for no key update;
    select array_agg(u.shard) into lost
    from unnest(p_shards, p_fences) u(shard, fence) left join shards s on s.shard = u.shard
    where s.fence is distinct from u.fence;
    earliest := today - 7;
    already := exists (
        select from progress p
        where p.shard = p_shards[1] and p.settle_no = p_settle_nos[1] and p.fence = p_fences[1] and p.day >= earliest
    );
    if lost is not null or already then
        return;
    end if;
    insert into progress (day, shard, settle_no, fence, cursor, read_to, read_day, open, partial, clean)
    select today, u.shard, u.settle_no, u.fence, u.cursor, u.read_to, u.read_day, u.open::int8multirange, u.partial::jsonb,
           u.clean
    from unnest(p_shards, p_fences, p_settle_nos, p_cursors, p_read_tos, p_read_days, p_open, p_partial, p_clean)
         u(shard, fence, settle_no, cursor, read_to, read_day, open, partial, clean);
end
$$;

-- Take free shards. An owner silent since before the database was started had no way to renew: it keeps its shards for
-- one lease from the start. A shard taken from a silent owner is not quiet before that owner's last request must have
-- ended. Claims go one after the other, each with a look of its own: a claim that looked before another one committed
-- would take the same shards again, as the recheck behind a row lock does not look at the leases anew. A shard that is
-- being settled is passed over.
create function hookpost_claim(p_node uuid, p_pool text, p_limit int, p_lease interval)
returns table (shard int, fence bigint) language plpgsql as
$$
begin
    perform pg_advisory_xact_lock(7703, 0);
    return query
        update shards s
        set owner = p_node, fence = s.fence + 1,
            quiet_until = case when s.owner is null then s.quiet_until else clock_timestamp() + interval '30 s' end
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

select hookpost_make_partitions(hookpost_today() - 1, hookpost_today() + 3);
