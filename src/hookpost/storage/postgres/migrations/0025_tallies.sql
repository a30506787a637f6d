-- Rollups with one row for each endpoint, tenant or the platform and bucket, with tallies in it: where many endpoints have an
-- attempt now and then, rollup_counts had two rows for each of them and two for its tenant.

-- Processes of the release before read on in rollup_counts and rollup_grains as they are now, up to the moment that
-- rollup_state.counted_until says; a later migration drops them. They may not count on: see the triggers at the end.
-- Whoever counts just now ends first.
select pg_advisory_xact_lock(7709, 0);

create type rollup_tally as (
    outcome    text,
    error_code text,
    retry      boolean,
    latency_ms int,
    arrived_ms int,
    attempts   bigint
);
comment on type rollup_tally is 'so many attempts of a kind; without an outcome: not attempts but first deliveries of events';
comment on column rollup_tally.error_code is 'empty: none';
comment on column rollup_tally.retry is 'attempts that were not the first of their delivery';
comment on column rollup_tally.latency_ms is 'the least latency of its bucket (policy/latency.py)';
comment on column rollup_tally.arrived_ms is 'of first deliveries of events: the least of the bucket of the time since acceptance';

-- Many tallies in few: each kind once, and how long attempts took apart from how long deliveries did.
create function hookpost_add_up(p_tallies rollup_tally[]) returns rollup_tally[] immutable parallel safe language sql as
$$
    select array_agg(row(outcome, error_code, retry, latency_ms, arrived_ms, attempts)::rollup_tally)
    from (
        select outcome, error_code, retry, latency_ms, null::int as arrived_ms, sum(attempts)::bigint as attempts
        from unnest(p_tallies) where outcome is not null group by 1, 2, 3, 4
        union all
        select null, null, null, null, arrived_ms, sum(attempts)::bigint
        from unnest(p_tallies) where arrived_ms is not null group by 5
    ) t
$$;

-- So few of them that to add them up costs more than to keep them stay as they are.
create function hookpost_tallied(p_tallies rollup_tally[]) returns rollup_tally[] immutable parallel safe language sql as
$$
    select case when cardinality(p_tallies) <= 32 then p_tallies else hookpost_add_up(p_tallies) end
$$;

-- The key begins with time, so what is written lies together, however many endpoints there are.
create table rollup_tallies (
    grain       int not null check (grain in (60, 1800, 3600, 21600, 86400)),
    bucket      timestamptz not null,
    tenant_id   uuid not null,
    endpoint_id uuid not null,
    failed      bigint not null,
    tallies     rollup_tally[] not null
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table rollup_tallies is 'attempts that ended in [bucket, bucket + grain seconds); each grain has all of them';
comment on column rollup_tallies.tenant_id is 'nil: the platform';
comment on column rollup_tallies.endpoint_id is 'nil: all of the tenant';
comment on column rollup_tallies.failed is 'attempts that were to be retried, or the last of a dead letter';
comment on column rollup_tallies.tallies is 'a kind of attempt may be there several times';
-- No plan turns on what is in them, and to analyze them is to read them all.
alter table rollup_tallies alter tallies set statistics 0;

insert into rollup_tallies
select grain, bucket, tenant_id, endpoint_id, coalesce(sum(attempts) filter (where outcome in ('retry', 'dead')), 0)::bigint,
       array_agg(case when outcome = 'arrived' then row(null, null, null, null, latency_ms, attempts)::rollup_tally
                 else row(outcome, error_code, retry, latency_ms, null, attempts)::rollup_tally end)
from rollup_counts group by 1, 2, 3, 4 order by 1, 2, 3, 4;
alter table rollup_tallies add primary key (grain, bucket, tenant_id, endpoint_id);
-- What fails is rare as a rule, so this holds little.
create index rollup_tallies_failed on rollup_tallies (tenant_id, grain, bucket)
where failed > 0 and endpoint_id <> '00000000-0000-0000-0000-000000000000';

create table rollup_reach (like rollup_grains including all) with (fillfactor = 50);
insert into rollup_reach select * from rollup_grains;
comment on table rollup_reach is 'how far each grain of rollup_tallies reaches';

alter table rollup_state add column tallied_until timestamptz not null default '-infinity';
update rollup_state set tallied_until = counted_until;
comment on column rollup_state.tallied_until is 'what was settled or accepted by then is counted';
comment on column rollup_state.counted_until is 'of rollup_counts, which nobody adds to any more';

-- A builder of the release before writes to one of these in each of its turns.
create trigger rollup_counts_are_kept before insert or update or delete on rollup_counts
for each statement execute function hookpost_counted_elsewhere();
create trigger rollup_grains_are_kept before insert or update on rollup_grains
for each statement execute function hookpost_counted_elsewhere();
create trigger rollup_state_is_kept before update of counted_until on rollup_state
for each statement execute function hookpost_counted_elsewhere();
