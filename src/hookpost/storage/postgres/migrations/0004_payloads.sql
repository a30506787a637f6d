-- Payloads outside of the database. Every new column may be null: processes of the release before go on writing.

alter table events add column payload_ref text;
comment on column events.payload_ref is 'where the payload lies when it is not here: object, offset, length, SHA-256 (model.PayloadRef); removed 0 0 00: it was removed on request';

-- As before, with payloads that lie in the payload store: p_refs names their places (null when there are none), p_put_at is
-- when the first of them was begun to be put there. A sweep removes what nobody refers to an hour later; a process that
-- was frozen between putting and appending must not refer to what is swept away meanwhile.
create function hookpost_append(
    p_shard int, p_keep interval,
    p_tenants uuid[], p_versions bigint[],
    p_ids uuid[], p_of uuid[], p_types text[], p_payloads bytea[],
    p_owed uuid[], p_owed_from int[], p_owed_count int[],
    p_traces uuid[], p_keys text[], p_hashes bytea[], p_refs text[], p_put_at timestamptz,
    out stale uuid[], out verdicts smallint[], out first_ids uuid[], out first_counts int[]
) language plpgsql as
$$
declare
    winners  uuid[];
    meant    int := cardinality(p_ids);
    written  int;
    base_seq bigint;
    d        date;
    moment   timestamptz;
begin
    if p_keys is not null then
        with candidates as (
            select distinct on (u.of, u.key) u.of, u.key, u.id, u.hash, u.cnt
            from unnest(p_of, p_keys, p_ids, p_hashes, p_owed_count) with ordinality u(of, key, id, hash, cnt, ord)
            where u.key is not null
            order by u.of, u.key, u.ord
        ), won as (
            insert into idempotency_keys as k (tenant_id, key, event_id, request_hash, delivery_count, expires_at)
            select c.of, c.key, c.id, c.hash, c.cnt, hookpost_now() + p_keep from candidates c order by c.of, c.key
            on conflict (tenant_id, key) do update
                set event_id = excluded.event_id, request_hash = excluded.request_hash,
                    delivery_count = excluded.delivery_count, expires_at = excluded.expires_at
                where k.expires_at <= hookpost_now()
            returning k.event_id
        )
        select array_agg(won.event_id) into winners from won;
    end if;

    perform pg_advisory_xact_lock(7700, p_shard);

    if p_put_at < clock_timestamp() - interval '10 min' then
        raise exception 'a payload was put into the payload store too long ago' using errcode = 'HP003';
    end if;

    select array_agg(u.tenant_id) into stale
    from unnest(p_tenants, p_versions) u(tenant_id, version)
    left join tenants t on t.tenant_id = u.tenant_id and t.deleted_at is null
    where t.config_version is distinct from u.version;
    if stale is not null then
        delete from idempotency_keys k using unnest(p_of, p_keys, p_ids) u(of, key, id)
        where k.tenant_id = u.of and k.key = u.key and k.event_id = u.id and u.id = any (winners);
        return;
    end if;

    if p_keys is not null then
        -- The losers: their winner has committed by now, or stands in this very call.
        select array_agg(case when u.key is null or w.id is not null then 0
                              when k.event_id is null then 3
                              when k.request_hash = u.hash then 1 else 2 end::smallint order by u.ord),
               array_agg(k.event_id order by u.ord),
               array_agg(k.delivery_count order by u.ord),
               count(*) filter (where u.key is null or w.id is not null)
        into verdicts, first_ids, first_counts, meant
        from unnest(p_of, p_keys, p_ids, p_hashes) with ordinality u(of, key, id, hash, ord)
        left join unnest(winners) w(id) on w.id = u.id
        left join idempotency_keys k on k.tenant_id = u.of and k.key = u.key;
    end if;

    select l.last_seq, l.last_day into base_seq, d from hookpost_last(p_shard) l;
    moment := hookpost_now();
    insert into events (day, shard, seq, event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id,
                        created_at)
    select d, p_shard, base_seq + row_number() over (order by u.ord), u.id, u.of, u.type, u.payload, p_refs[u.ord],
           case when u.cnt = 0 then '{}' else p_owed[u.start : u.start + u.cnt - 1] end,
           p_keys[u.ord], p_traces[u.ord], moment
    from unnest(p_ids, p_of, p_types, p_payloads, p_owed_from, p_owed_count)
         with ordinality u(id, of, type, payload, start, cnt, ord)
    where verdicts is null or verdicts[u.ord] = 0;
    get diagnostics written = row_count;
    if written <> meant then
        raise exception 'append wrote % rows of %', written, meant using errcode = 'HP002';
    end if;
end
$$;

-- ---- partitions that leave -----------------------------------------------------------------------------------------

-- Does anything still have to be delivered that lies in a partition of events, attached or not? That is: a row of it, or
-- a replay of an event in it, that is not done, or waits in the backlog. What is done up to where is asked of the progress
-- alone, as floors are raised for rows that leave.
create function hookpost_partition_needed(p_partition text, p_day date) returns boolean language plpgsql as
$$
declare
    s      record;
    needed boolean;
begin
    if exists (select from backlog b where b.day = p_day) then
        return true;
    end if;
    execute format(
        'select exists (select from backlog b where b.generation > 0
                        and exists (select from %I e where e.event_id = b.event_id and e.kind = 0 offset 0))', p_partition
    ) into needed;
    if needed then
        return true;
    end if;
    for s in
        select h.shard, coalesce((select p.cursor from progress p where p.shard = h.shard
                                  order by p.settle_no desc limit 1), 0) as done_to
        from shards h
    loop
        execute format(
            'select exists (select from %1$I e where e.shard = $1 and e.seq > $2)
                 or exists (select from events r where r.shard = $1 and r.seq > $2 and r.kind = 1
                            and exists (select from %1$I e where e.event_id = r.event_id and e.kind = 0 offset 0))',
            p_partition
        ) into needed using s.shard, s.done_to;
        if needed then
            return true;
        end if;
    end loop;
    return false;
end
$$;

-- The last numbers of a partition that leaves stay known, so that a shard whose rows are all gone goes on behind them.
create function hookpost_raise_floors(p_partition text) returns void language plpgsql as
$$
declare
    home     int;
    last_seq bigint;
begin
    for home in select shard from shards order by shard loop
        execute format('select max(seq) from %I where shard = $1', p_partition) into last_seq using home;
        update shards set floor_seq = last_seq where shard = home and floor_seq < last_seq;
    end loop;
end
$$;

-- Dead letters of the events of a partition that leaves: they could not be replayed any more. At most so many in a call;
-- returns how many. The ids of its events were minted that day or a day beside it.
create function hookpost_forget_dead_letters(p_partition text, p_day date, p_limit int) returns int language plpgsql as
$$
declare
    forgotten int;
begin
    execute format(
        'with gone as (
             select d.event_id, d.endpoint_id from dead_letters d
             where d.event_id >= hookpost_first_id($1 - 1) and d.event_id < hookpost_first_id($1 + 2)
               and exists (select from %I e where e.event_id = d.event_id and e.kind = 0 offset 0)
             order by d.event_id, d.endpoint_id limit $2 for update of d
         )
         delete from dead_letters d using gone g where d.event_id = g.event_id and d.endpoint_id = g.endpoint_id', p_partition
    ) using p_day, p_limit;
    get diagnostics forgotten = row_count;
    return forgotten;
end
$$;

-- The least id that can be minted on a day.
create function hookpost_first_id(p_day date) returns uuid immutable language sql as
$$
    select (lpad(to_hex((extract(epoch from p_day) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- The objects that the events of a partition lie in, by name, behind one of them.
create function hookpost_partition_objects(p_partition text, p_after text, p_limit int) returns text[] language plpgsql as
$$
declare
    names text[];
begin
    execute format(
        'select array_agg(name) from (
             select distinct split_part(payload_ref, '' '', 1) as name from %I
             where payload_ref is not null and payload_ref <> ''removed 0 0 00'' and split_part(payload_ref, '' '', 1) > $1
             order by name limit $2
         ) n', p_partition
    ) into names using p_after, p_limit;
    return coalesce(names, '{}');
end
$$;

-- ---- payloads removed on request -----------------------------------------------------------------------------------

create table payload_removals (
    key        text primary key,
    created_at timestamptz not null default clock_timestamp()
);
comment on table payload_removals is 'objects whose events have lost their payload: to be removed from the payload store';

alter table tenants add column payloads_removed_at timestamptz;
comment on column tenants.payloads_removed_at is 'a deleted tenant''s payloads are gone';
create index tenants_to_empty on tenants (deleted_at) where deleted_at is not null and payloads_removed_at is null;
