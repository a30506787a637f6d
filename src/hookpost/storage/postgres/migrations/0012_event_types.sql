-- Types of events that a tenant describes, with the schema that payloads must satisfy. Processes of the release before do
-- not know the table: what is posted to one of them is not checked, until it is replaced.

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
