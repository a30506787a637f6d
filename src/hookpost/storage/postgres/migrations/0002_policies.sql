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
