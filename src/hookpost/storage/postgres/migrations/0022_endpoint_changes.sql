-- Workers look which endpoints have changed, instead of loading all of a tenant that have one that did: a tenant may have a
-- hundred thousand, and a breaker counts as a change of its tenant. Written by triggers, so that nobody can forget it; how an
-- endpoint is doing is no change of it (see health_at).
alter table endpoints add column changed_at timestamptz not null default 'epoch';
alter table endpoints alter column changed_at set default clock_timestamp();
comment on column endpoints.changed_at is 'when what workers know of the endpoint has last changed: its row, its secrets, its barriers';
create index endpoints_changed on endpoints (tenant_id, changed_at);

create function hookpost_endpoint_changed() returns trigger language plpgsql as
$$
begin
    new.changed_at := clock_timestamp();
    return new;
end
$$;
-- Not `pinned`, but what it is made of: a generated column counts as updated wherever a table has triggers like this one.
create trigger endpoint_changed before update of
    tenant_id, url, status, deleted_at, base_s, cap_s, max_attempts, deadline_s, connect_s, first_byte_s, total_s,
    max_in_flight, hold_until, rate_limit, ordered, spread, on_dead, ack, forward_trace, ordered_shard, ordered_seq, headers,
    sealed_headers, tls_ca, tls_cert, sealed_tls_key
on endpoints for each row execute function hookpost_endpoint_changed();

-- What hangs on endpoints. In one order, as workers lock many of them to write their health.
create function hookpost_endpoints_touched() returns trigger language plpgsql as
$$
begin
    update endpoints set changed_at = clock_timestamp() where endpoint_id = any (array(
        select e.endpoint_id from endpoints e where e.endpoint_id in (select t.endpoint_id from touched t)
        order by e.endpoint_id for no key update
    ));
    return null;
end
$$;
create trigger endpoint_changed_i after insert on endpoint_secrets referencing new table as touched
    for each statement execute function hookpost_endpoints_touched();
create trigger endpoint_changed_u after update on endpoint_secrets referencing new table as touched
    for each statement execute function hookpost_endpoints_touched();
create trigger endpoint_changed_d after delete on endpoint_secrets referencing old table as touched
    for each statement execute function hookpost_endpoints_touched();
create trigger endpoint_changed_i after insert on barriers referencing new table as touched
    for each statement execute function hookpost_endpoints_touched();
create trigger endpoint_changed_d after delete on barriers referencing old table as touched
    for each statement execute function hookpost_endpoints_touched();
