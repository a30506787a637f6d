-- Types of events that a tenant describes, with the schema that payloads must satisfy; alerts before certificates end.
-- Processes of the release before do not know the table: what is posted to one of them is not checked, until it is replaced.

create table event_types (
    tenant_id   uuid not null references tenants,
    name        text not null,
    description text,
    schema      text,
    created_at  timestamptz not null default clock_timestamp(),
    updated_at  timestamptz not null default clock_timestamp(),
    primary key (tenant_id, name)
);
comment on table event_types is 'what tenants say of the types of their events; a type need not stand here to be posted';
comment on column event_types.schema is 'JSON Schema as JSON text; null: any payload will do';
create index event_types_tenant on event_types (tenant_id, created_at, name);
create index event_types_created on event_types (created_at, tenant_id, name);

-- ---- certificates that end -------------------------------------------------------------------------------------------

alter table endpoints add column tls_look_at timestamptz;
alter table endpoints add column tls_told text[] not null default '{}';
comment on column endpoints.tls_look_at is 'when to look whether its certificates end soon; null: now';
comment on column endpoints.tls_told is 'of which of them it was told, and at which distance (policy/expiry)';
create index endpoints_certificates on endpoints (tls_look_at nulls first)
    where deleted_at is null and (tls_ca is not null or tls_cert is not null);
