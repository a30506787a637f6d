-- Ingest hears which endpoints' routes changed, instead of loading all of a tenant's with every edit: a tenant may have a
-- hundred thousand, and a breaker that disables one counts as a change of its tenant. Written by a trigger, so that nobody
-- can forget it. Each change of a tenant's configuration raises its version first, and holds the tenant's row until it is
-- committed: whoever knows all at one version misses nothing when it asks for what was routed in that one or later.
alter table endpoints add column routed_in bigint not null default 0;
comment on column endpoints.routed_in is 'the config_version of its tenant in which what ingest knows of the endpoint has last changed';
create index endpoints_routed on endpoints (tenant_id, routed_in);

create function hookpost_endpoint_routed() returns trigger language plpgsql as
$$
begin
    if tg_op = 'UPDATE'
        and (new.tenant_id, new.events, new.max_in_flight, new.ordered, new.rate_limit, new.spread, new.deleted_at)
        is not distinct from
            (old.tenant_id, old.events, old.max_in_flight, old.ordered, old.rate_limit, old.spread, old.deleted_at)
    then
        return new;
    end if;
    new.routed_in := (select t.config_version from tenants t where t.tenant_id = new.tenant_id);
    return new;
end
$$;
-- Not `pinned`, but what it is made of (see 0022).
create trigger endpoint_routed before insert or update of
    tenant_id, events, max_in_flight, ordered, rate_limit, spread, deleted_at
on endpoints for each row execute function hookpost_endpoint_routed();
