-- Rollups of several grains beside one another, each whole as far as it is built, so that a chart of a month is not read by
-- the minute; and deliveries by how long they took from the acceptance of their event to the 2xx, as rows of their own.

-- Processes of the release before read on in rollups, rollup_marks and rollup_state as they are now, up to the moment that
-- rollup_state.complete_until says; a later migration drops them. They may not count on: see the trigger at the end. Whoever
-- counts just now ends first.
select pg_advisory_xact_lock(7709, 0);

create table rollup_counts (like rollups) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
alter table rollup_counts add check (grain in (60, 1800, 3600, 21600, 86400));
comment on table rollup_counts is 'attempts that ended in [bucket, bucket + grain seconds), added up; each grain has all of them';
comment on column rollup_counts.outcome is 'what became of the attempts; arrived: not attempts but first deliveries of events, by the time since acceptance';
comment on column rollup_counts.latency_ms is 'the least latency of its bucket (policy/latency.py)';
comment on column rollup_counts.error_code is 'empty: none';
comment on column rollup_counts.retry is 'attempts that were not the first of their delivery';

-- Until now a row was in one grain only: what is left in the finer one of a time that was being moved belongs to the coarser.
insert into rollup_counts
select r.* from rollups r cross join rollup_state s
where not (r.grain = 60 and r.bucket < s.minutes_from) and not (r.grain = 3600 and r.bucket < s.hours_from)
order by r.grain, r.bucket, r.tenant_id, r.endpoint_id;
alter table rollup_counts
    add primary key (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms);
insert into rollup_counts as r (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms, attempts,
                                total_ms, request_bytes, response_bytes)
select g.grain, date_bin(make_interval(secs => g.grain), l.bucket, timestamptz '2000-01-01 00:00:00Z'), tenant_id,
       endpoint_id, outcome, error_code, retry, latency_ms, sum(attempts), sum(total_ms), sum(request_bytes),
       sum(response_bytes)
from rollups l cross join rollup_state s
cross join lateral (select case when l.bucket < s.hours_from then 86400 else 3600 end as grain) g
where (l.grain = 60 and l.bucket < s.minutes_from) or (l.grain = 3600 and l.bucket < s.hours_from)
group by 1, 2, 3, 4, 5, 6, 7, 8
on conflict (grain, bucket, tenant_id, endpoint_id, outcome, error_code, retry, latency_ms) do update
    set attempts = r.attempts + excluded.attempts, total_ms = r.total_ms + excluded.total_ms,
        request_bytes = r.request_bytes + excluded.request_bytes,
        response_bytes = r.response_bytes + excluded.response_bytes;

-- What fails is rare as a rule, so this holds little.
create index rollup_counts_failed on rollup_counts (tenant_id, grain, bucket)
where outcome in ('retry', 'dead') and endpoint_id <> '00000000-0000-0000-0000-000000000000';

create table rollup_grains (
    grain       int primary key check (grain in (60, 1800, 3600, 21600, 86400)),
    bucket      timestamptz not null,
    tenant_id   uuid not null,
    endpoint_id uuid not null,
    kept_from   timestamptz not null
) with (fillfactor = 50);
comment on table rollup_grains is 'how far each grain of rollup_counts reaches';
comment on column rollup_grains.bucket is 'with the key beside it: built up to and with it; what is counted later of such a time is added at once';
comment on column rollup_grains.kept_from is 'what is older may have been removed';

-- Hours and days begin with what was moved; the builder makes the rest out of the minutes, the oldest first.
insert into rollup_grains (grain, bucket, tenant_id, endpoint_id, kept_from)
select g.grain, g.bucket, 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'ffffffff-ffff-ffff-ffff-ffffffffffff', g.kept_from
from rollup_state s
cross join lateral (values
    (60, 'infinity', s.minutes_from),
    (1800, s.minutes_from - interval '30 min', s.minutes_from),
    (3600, s.minutes_from - interval '1 hour', s.hours_from),
    (21600, s.hours_from - interval '6 hours', s.hours_from),
    (86400, s.hours_from - interval '1 day', '-infinity')
) g (grain, bucket, kept_from);

create table rollup_progress (like rollup_marks including defaults including indexes) with (fillfactor = 50);
insert into rollup_progress select * from rollup_marks;
comment on table rollup_progress is 'up to this settle attempts are counted, up to this seq (of that day) events are';

alter table rollup_state add column counted_until timestamptz not null default '-infinity';
update rollup_state set counted_until = complete_until;
comment on column rollup_state.counted_until is 'what was settled or accepted by then is counted';
comment on column rollup_state.complete_until is 'of rollups, which nobody adds to any more';

-- A builder of the release before moves its marks in every step, so none of its steps commits: what it counted would be
-- counted again.
create function hookpost_counted_elsewhere() returns trigger language plpgsql as
$$
begin
    raise exception 'attempts are counted by processes of a newer release' using errcode = 'HP004';
end
$$;
create trigger rollup_marks_are_kept before insert or update on rollup_marks
for each statement execute function hookpost_counted_elsewhere();

create or replace function hookpost_rolled_up(p_day date) returns boolean stable language sql as
$$
    select not exists (
        select from shards s left join rollup_progress m on m.shard = s.shard
        where (select max(a.settle_no) from attempts a where a.shard = s.shard and a.day = p_day) > coalesce(m.settle_no, 0)
           or (select max(e.seq) from events e where e.shard = s.shard and e.day = p_day) > coalesce(m.seq, 0)
    )
$$;

-- The milliseconds (Unix) of a UUIDv7: when an event was accepted.
create function hookpost_minted_ms(p_id uuid) returns bigint immutable parallel safe language sql as
$$
    select ('x' || encode(substring(uuid_send(p_id) from 1 for 6), 'hex'))::bit(48)::bigint
$$;
