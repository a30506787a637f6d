-- Secrets sealed at rest, headers of endpoints, the audit log. Every new column may be null or has a default, and what was
-- not null may be null now: processes of the release before go on writing.

-- ---- secrets ---------------------------------------------------------------------------------------------------------

create table data_keys (
    tenant_id  uuid primary key,
    key_id     text not null,
    wrapped    bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    wrapped_at timestamptz not null default clock_timestamp()
);
comment on table data_keys is 'each tenant''s data key, wrapped with the encryption key key_id; the nil UUID is the platform''s own';
create index data_keys_key on data_keys (key_id, tenant_id);

alter table endpoint_secrets alter column key drop not null;
alter table endpoint_secrets add column sealed bytea;
alter table endpoint_secrets add constraint endpoint_secrets_kept check (key is not null or sealed is not null) not valid;
comment on column endpoint_secrets.key is 'plain: of a release before 0006, or written while one of its processes lives; sealed as soon as none does';
comment on column endpoint_secrets.sealed is 'sealed with the tenant''s data key, bound to tenant, endpoint and created_at (policy/sealing)';
create index endpoint_secrets_plain on endpoint_secrets (endpoint_id) where key is not null;

-- Who holds which encryption keys; null: a process of a release that knows nothing of sealed secrets.
alter table nodes add column key_ids text[];
alter table ingest_nodes add column key_ids text[];

-- ---- headers ---------------------------------------------------------------------------------------------------------

alter table endpoints add column headers jsonb not null default '{}';
alter table endpoints add column sealed_headers bytea;
comment on column endpoints.headers is 'the endpoint''s own headers by lower-case name; null: the value is a secret, in sealed_headers';

-- ---- the audit log ---------------------------------------------------------------------------------------------------

create table audit_log (
    chain    uuid not null,
    seq      bigint not null check (seq > 0),
    at       timestamptz not null,
    actor    text not null,
    address  text not null,
    action   text not null,
    target   text not null,
    before   text,
    after    text,
    previous bytea not null,
    hash     bytea not null,
    primary key (chain, seq)
);
comment on table audit_log is 'append-only: who changed what. One chain a tenant (the nil UUID: the platform''s); hash covers the row and the hash before it (policy/audit)';
create index audit_log_at on audit_log (at, chain, seq);

create table audit_heads (
    chain  uuid primary key,
    seq    bigint not null default 0,
    hash   bytea not null,
    sealed bytea not null
);
comment on table audit_heads is 'where each chain ends, so that a tail that was cut off is missed';

-- Rows are written once. Retention alone takes the oldest away, and says so for its own transaction.
create function hookpost_audit_kept() returns trigger language plpgsql as
$$
begin
    if tg_op = 'DELETE' and current_setting('hookpost.audit_retention', true) = 'on' then
        return old;
    end if;
    raise exception 'the audit log is append-only: % is refused', lower(tg_op) using errcode = 'HP010';
end
$$;
create trigger audit_log_kept before update or delete on audit_log for each row execute function hookpost_audit_kept();
create trigger audit_log_not_emptied before truncate on audit_log for each statement execute function hookpost_audit_kept();
