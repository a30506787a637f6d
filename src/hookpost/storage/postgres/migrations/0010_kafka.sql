-- What a journal in Kafka needs (docs/adr/0024): how far each partition was taken over, and idempotency keys that are only
-- reserved. Without Kafka the table stays empty; processes of the release before go on writing, as the new column has a default.

alter table idempotency_keys add column reserved boolean not null default false;
comment on column idempotency_keys.reserved is 'its event was sent to Kafka, or was about to be, and is not in events yet';

create table journal_offsets (
    shard       int not null,
    next_offset bigint not null,
    reached_at  timestamptz not null,
    primary key (shard, next_offset)
);
comment on table journal_offsets is 'append-only: all records of the shard''s partition below the greatest next_offset are in events; the owner trims older rows';
comment on column journal_offsets.reached_at is 'when the last of these records was accepted: those behind it are hardly older';

-- Reserve the idempotency keys of events that are about to be sent to Kafka. Verdicts: 0 reserved by this very call, 1 its
-- event is in the journal already, 2 another request has the key, 3 its first one has just expired: try again, 4 reserved
-- before by the same request: send the event of first_ids once more, it is taken over once.
create function hookpost_reserve(
    p_keep interval, p_of uuid[], p_keys text[], p_ids uuid[], p_hashes bytea[], p_counts int[],
    out verdicts smallint[], out first_ids uuid[], out first_counts int[]
) language plpgsql as
$$
declare
    winners uuid[];
begin
    with candidates as (
        select distinct on (u.of, u.key) u.of, u.key, u.id, u.hash, u.cnt
        from unnest(p_of, p_keys, p_ids, p_hashes, p_counts) with ordinality u(of, key, id, hash, cnt, ord)
        order by u.of, u.key, u.ord
    ), won as (
        insert into idempotency_keys as k (tenant_id, key, event_id, request_hash, delivery_count, expires_at, reserved)
        select c.of, c.key, c.id, c.hash, c.cnt, hookpost_now() + p_keep, true from candidates c order by c.of, c.key
        on conflict (tenant_id, key) do update
            set event_id = excluded.event_id, request_hash = excluded.request_hash, reserved = true,
                delivery_count = excluded.delivery_count, expires_at = excluded.expires_at
            where k.expires_at <= hookpost_now()
        returning k.event_id
    )
    select array_agg(won.event_id) into winners from won;

    select array_agg(case when u.id = any (winners) then 0
                          when k.event_id is null then 3
                          when k.request_hash <> u.hash then 2
                          when k.reserved then 4 else 1 end::smallint order by u.ord),
           array_agg(k.event_id order by u.ord),
           array_agg(k.delivery_count order by u.ord)
    into verdicts, first_ids, first_counts
    from unnest(p_of, p_keys, p_ids, p_hashes) with ordinality u(of, key, id, hash, ord)
    left join idempotency_keys k on k.tenant_id = u.of and k.key = u.key;
end
$$;

-- Take records of a partition over into the journal: rows of events, keys from reserved to appended and the partition's
-- offset, all in one transaction behind the fence of the shard whose partition it is.
--   p_homes: where each event goes, as a rule p_shard; a tenant that moved meanwhile has its events in its present home
--   p_accepted: when each was accepted
-- Returns `stale` (then nothing was written: match the events of these tenants anew) or how many rows were written. Raises
-- HP020 when the fence is another one's and HP021 when the partition was taken over to another offset than p_from.
-- An event whose id is in the journal already is left out: a record may lie in Kafka twice, if its idempotency key was
-- used again before the first one was taken over. (An event without a key is sent under its id once.)
-- Lock order: idempotency keys, then shards, then the fence, each sorted.
create function hookpost_pump(
    p_shard int, p_fence bigint, p_from bigint, p_to bigint, p_reached timestamptz, p_homes int[],
    p_tenants uuid[], p_versions bigint[],
    p_ids uuid[], p_of uuid[], p_types text[], p_payloads bytea[],
    p_owed uuid[], p_owed_from int[], p_owed_count int[], p_accepted timestamptz[],
    p_traces uuid[], p_keys text[], p_refs text[], p_spans bytea[],
    out stale uuid[], out written int
) language plpgsql as
$$
declare
    known    uuid[];
    target   int;
    base_seq bigint;
    d        date;
    rows_in  int;
    reached  bigint;
begin
    written := 0;
    if p_keys is not null then
        perform 1 from idempotency_keys k
        where (k.tenant_id, k.key) in (select u.of, u.key from unnest(p_of, p_keys) u(of, key) where u.key is not null)
        order by k.tenant_id, k.key for no key update;
    end if;

    for target in select distinct h from unnest(p_homes || p_shard) h order by h loop
        perform pg_advisory_xact_lock(7700, target);
    end loop;

    select array_agg(u.tenant_id) into stale
    from unnest(p_tenants, p_versions) u(tenant_id, version)
    left join tenants t on t.tenant_id = u.tenant_id and t.deleted_at is null
    where t.config_version is distinct from u.version;
    if stale is not null then
        return;
    end if;

    perform 1 from shards s where s.shard = p_shard and s.fence = p_fence for share;
    if not found then
        raise exception 'shard % has another owner', p_shard using errcode = 'HP020';
    end if;
    select o.next_offset into reached from journal_offsets o where o.shard = p_shard order by o.next_offset desc limit 1;
    if coalesce(reached, 0) <> p_from then
        raise exception 'partition % was taken over to %, not to %', p_shard, coalesce(reached, 0), p_from
            using errcode = 'HP021';
    end if;

    if p_keys is not null then
        select array_agg(u.id) into known
        from unnest(p_ids, p_of, p_keys) u(id, of, key)
        left join idempotency_keys k on k.tenant_id = u.of and k.key = u.key and k.event_id = u.id
        where u.key is not null
          and case when k.event_id is not null then not k.reserved
                   else exists (select from events e where e.event_id = u.id and e.kind = 0) end;
    end if;

    for target in select distinct h from unnest(p_homes) h order by h loop
        select l.last_seq, l.last_day into base_seq, d from hookpost_last(target) l;
        insert into events (day, shard, seq, event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id,
                            trace_span, created_at)
        select d, target, base_seq + row_number() over (order by u.ord), u.id, u.of, u.type, u.payload, p_refs[u.ord],
               case when u.cnt = 0 then '{}' else p_owed[u.start : u.start + u.cnt - 1] end,
               p_keys[u.ord], p_traces[u.ord], p_spans[u.ord], p_accepted[u.ord]
        from (
            -- Twice in one call: the first one.
            select distinct on (v.id) v.* from unnest(p_ids, p_of, p_types, p_payloads, p_owed_from, p_owed_count, p_homes)
                 with ordinality v(id, of, type, payload, start, cnt, home, ord)
            where known is null or v.id <> all (known)
            order by v.id, v.ord
        ) u
        where u.home = target;
        get diagnostics rows_in = row_count;
        written := written + rows_in;
    end loop;

    if p_keys is not null then
        update idempotency_keys k set reserved = false, delivery_count = u.cnt
        from unnest(p_ids, p_of, p_keys, p_owed_count) u(id, of, key, cnt)
        where k.tenant_id = u.of and k.key = u.key and k.event_id = u.id and k.reserved;
    end if;
    insert into journal_offsets values (p_shard, p_to, p_reached);
end
$$;
