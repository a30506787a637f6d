-- A change that something waits for (barriers, departures) waits, with a journal in Kafka, for what was accepted before it and
-- not taken over yet (docs/adr/0024). Without Kafka all is as it was; processes of the release before lift nothing with
-- Kafka, as they look at no ends, and the first one of this release does.

create table journal_ends (
    shard      int primary key,
    end_offset bigint not null,
    covers     timestamptz not null
);
comment on table journal_ends is 'with Kafka: all that was accepted by a configuration older than covers lies in the shard''s partition below end_offset';

-- Was all taken over that was accepted for this shard before a change of that time? `stable`, as hookpost_cursor is.
create function hookpost_taken_over(p_shard int, p_changed timestamptz) returns boolean stable language sql as
$$
    select not exists (select from platform where name = 'journal') or exists (
        select from journal_ends j
        where j.shard = p_shard and j.covers >= p_changed and j.end_offset <= coalesce((
            select o.next_offset from journal_offsets o where o.shard = p_shard order by o.next_offset desc limit 1
        ), 0)
    )
$$;

-- Lifts what has been waited for (as in 0002, and with Kafka not before the partition was taken over); returns how many barriers and departures. One call does it at a time, the others have
-- nothing to do. A tenant whose configuration is just being changed has its turn with the next call. Workers hear of it
-- by way of changed_at. `offset 0` keeps each look an index's: joined, a whole backlog might be read.
create or replace function hookpost_lift() returns int language plpgsql as
$$
declare
    lifted int;
begin
    if not exists (select from barriers) and not exists (select from departures)
       or not pg_try_advisory_xact_lock(7705, 0) then
        return 0;
    end if;
    with done as (
        select b.tenant_id, b.endpoint_id, b.shard, b.seq from barriers b
        where hookpost_cursor(b.shard) >= b.seq and hookpost_taken_over(b.shard, b.created_at) and not exists (
            select from backlog w
            where w.shard = b.shard and w.endpoint_id = b.endpoint_id and w.position <= b.seq offset 0
        )
        union all
        select d.tenant_id, null, d.shard, d.seq from departures d
        where hookpost_cursor(d.shard) >= d.seq and hookpost_taken_over(d.shard, d.created_at) and not exists (
            select from endpoints e
            where e.tenant_id = d.tenant_id and exists (
                select from backlog w where w.shard = d.shard and w.endpoint_id = e.endpoint_id and w.position <= d.seq offset 0
            ) offset 0
        )
    ), held as (
        select t.tenant_id from tenants t where t.tenant_id in (select d.tenant_id from done d)
        order by t.tenant_id for no key update skip locked
    ), free as (
        select d.* from done d join held h on h.tenant_id = d.tenant_id
    ), gone as (
        delete from barriers b using free f where (b.endpoint_id, b.shard, b.seq) = (f.endpoint_id, f.shard, f.seq)
        returning b.tenant_id
    ), left_behind as (
        delete from departures d using free f
        where f.endpoint_id is null and (d.tenant_id, d.shard, d.seq) = (f.tenant_id, f.shard, f.seq)
        returning d.tenant_id
    ), all_gone as (
        select g.tenant_id from gone g union all select l.tenant_id from left_behind l
    ), told as (
        update tenants t set changed_at = clock_timestamp() where t.tenant_id in (select g.tenant_id from all_gone g)
    )
    select count(*) into lifted from all_gone;
    return lifted;
end
$$;

-- With p_left; a call without it, as the release before makes it, is answered by the same function.
drop function hookpost_pump;

-- Take records of a partition over into the journal: rows of events, keys from reserved to appended and the partition's
-- offset, all in one transaction behind the fence of the shard whose partition it is.
--   p_homes: where each event goes, as a rule p_shard; a tenant that moved meanwhile has its events in its present home
--   p_accepted: when each was accepted
--   p_left: tenants whose events stay in p_shard although new ones go elsewhere, which waits for p_shard: it waits for
--   these, too. Whoever does not wait any more is stale. (Their rows are locked behind the shard, as by a change, which
--   seals it; hookpost_lift, which locks no shard, looks at the numbers once more.)
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
    p_traces uuid[], p_keys text[], p_refs text[], p_spans bytea[], p_left uuid[] default null,
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
    waiting  uuid[];
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

    if p_left is not null then
        with b as (
            select tenant_id from barriers where tenant_id = any (p_left) and shard = p_shard order by endpoint_id for no key update
        ), d as (
            select tenant_id from departures where tenant_id = any (p_left) and shard = p_shard order by tenant_id for no key update
        )
        select array_agg(w.tenant_id) into waiting from (select tenant_id from b union all select tenant_id from d) w;
        select array_agg(u) into stale from unnest(p_left) u where waiting is null or u <> all (waiting);
        if stale is not null then
            return;
        end if;
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

    if p_left is not null then
        select l.last_seq into base_seq from hookpost_last(p_shard) l;
        update barriers b set seq = base_seq where b.tenant_id = any (p_left) and b.shard = p_shard and b.seq < base_seq;
        update departures t set seq = base_seq where t.tenant_id = any (p_left) and t.shard = p_shard and t.seq < base_seq;
    end if;

    if p_keys is not null then
        update idempotency_keys k set reserved = false, delivery_count = u.cnt
        from unnest(p_ids, p_of, p_keys, p_owed_count) u(id, of, key, cnt)
        where k.tenant_id = u.of and k.key = u.key and k.event_id = u.id and k.reserved;
    end if;
    insert into journal_offsets values (p_shard, p_to, p_reached);
end
$$;
