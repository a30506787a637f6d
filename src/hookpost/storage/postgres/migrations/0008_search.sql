-- What people look for: an event by its producer's trace or by its idempotency key, an endpoint by its receiver's host.

-- Only events that have one are in the index: a producer that sends neither pays nothing. Keys are remembered for a day
-- elsewhere; here they are found as long as the event is kept.
create index events_trace on events (trace_id) where trace_id is not null;
create index events_key on events (idempotency_key) where idempotency_key is not null;

-- The host of a stored (normalised) URL: no user, lower case, IPv6 in brackets.
create function hookpost_url_host(p_url text) returns text immutable parallel safe language sql as
$$
    select substring(p_url from '^https?://(\[[^]]*\]|[^/:?#]*)')
$$;

-- Backwards, so that a domain finds its subdomains, too.
create index endpoints_host on endpoints (reverse(hookpost_url_host(url)) text_pattern_ops) where deleted_at is null;

-- What fails is rare as a rule, so this holds little.
create index rollups_failed on rollups (tenant_id, bucket)
where outcome <> 'delivered' and endpoint_id <> '00000000-0000-0000-0000-000000000000';
