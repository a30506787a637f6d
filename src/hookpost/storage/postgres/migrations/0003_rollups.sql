-- Rollups: what became of attempts, by endpoint and minute (later hour, then day), kept after the attempts are dropped;
-- and what is metered of each tenant and day. Both are built by maintenance from the append-only attempts and events.

-- A settle's attempts are found by its number. Neighbours in time are neighbours here, so the index costs little.
create index attempts_settle on attempts (shard, settle_no);

-- The nil UUID stands for "all": endpoint_id nil is the total of a tenant, both nil that of the platform.
-- The key begins with time, so that what is written lies together: at the end, however many endpoints there are.
create table rollups (
    grain          int not null check (grain in (60, 3600, 86400)),
    bucket         timestamptz not null,
    tenant_id      uuid not null,
    endpoint_id    uuid not null,
    outcome        text not null,
    error_code     text not null,
    retry          boolean not null,
    latency_ms     int not null,
    attempts       bigint not null,
    total_ms       bigint not null,
    request_bytes  bigint not null,
    response_bytes bigint not null,
    primary key (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table rollups is 'attempts that ended in [bucket, bucket + grain seconds), added up; a row is in one grain only';
comment on column rollups.latency_ms is 'the least latency of its bucket (policy/latency.py)';
comment on column rollups.error_code is 'empty: none';
comment on column rollups.retry is 'attempts that were not the first of their delivery';

create table metering (
    day                        date not null,
    tenant_id                  uuid not null,
    accepted                   bigint not null default 0,
    attempts                   bigint not null default 0,
    delivered                  bigint not null default 0,
    dead                       bigint not null default 0,
    total_ms                   bigint not null default 0,
    request_bytes              bigint not null default 0,
    response_bytes             bigint not null default 0,
    retries                    bigint not null default 0,
    retries_ms                 bigint not null default 0,
    retries_request_bytes      bigint not null default 0,
    retries_response_bytes     bigint not null default 0,
    rate_limited               bigint not null default 0,
    rate_limited_ms            bigint not null default 0,
    rate_limited_request_bytes bigint not null default 0,
    rate_limited_response_bytes bigint not null default 0,
    primary key (day, tenant_id)
) with (fillfactor = 70);
comment on table metering is 'what a tenant had on a day (UTC): events accepted by then, attempts that ended then; each counted once';
create index metering_tenant on metering (tenant_id, day);

create table rollup_marks (
    shard     int primary key,
    settle_no bigint not null default 0,
    seq       bigint not null default 0,
    day       date not null default '-infinity'
) with (fillfactor = 50);
comment on table rollup_marks is 'up to this settle attempts are rolled up, up to this seq (of that day) events are counted';

create table rollup_state (
    single         boolean primary key default true check (single),
    complete_until timestamptz not null default '-infinity',
    minutes_from   timestamptz not null default '-infinity',
    hours_from     timestamptz not null default '-infinity'
) with (fillfactor = 50);
comment on column rollup_state.complete_until is 'what was settled or accepted by then is counted';
comment on column rollup_state.minutes_from is 'what is older may have been added up to hours';
comment on column rollup_state.hours_from is 'what is older may have been added up to days';
insert into rollup_state default values;

-- Is all that is kept of a day counted? Until then neither its attempts nor its events may be dropped.
create function hookpost_rolled_up(p_day date) returns boolean stable language sql as
$$
    select not exists (
        select from shards s left join rollup_marks m on m.shard = s.shard
        where (select max(a.settle_no) from attempts a where a.shard = s.shard and a.day = p_day) > coalesce(m.settle_no, 0)
           or (select max(e.seq) from events e where e.shard = s.shard and e.day = p_day) > coalesce(m.seq, 0)
    )
$$;
