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
