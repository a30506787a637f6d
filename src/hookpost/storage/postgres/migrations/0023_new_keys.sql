-- Where every key of an append is new, as nearly always, nobody has to look who came first, and the answer is that of an append
-- without keys. But for that the function is what it was.
create or replace function hookpost_append_lot(
    p_shards int[], p_places int[], p_keep interval,
    p_tenants uuid[], p_versions bigint[],
    p_ids uuid[], p_of uuid[], p_types text[], p_payloads bytea[],
    p_owed uuid[], p_owed_from int[], p_owed_count int[],
    p_traces uuid[], p_keys text[], p_hashes bytea[], p_refs text[], p_put_at timestamptz, p_spans bytea[],
    out stale uuid[], out verdicts smallint[], out first_ids uuid[], out first_counts int[],
    out placed_after bigint[], out placed_days int[], out placed_at double precision
) language plpgsql set enable_seqscan = off as
$$
declare
    winners  uuid[];
    lost     boolean := false;
    meant    int := cardinality(p_ids);
    written  int;
    home     int;
    days     date[];
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
        lost := cardinality(winners) is distinct from (select count(key) from unnest(p_keys) key);
    end if;

    foreach home in array p_shards loop
        perform pg_advisory_xact_lock(7700, home);
    end loop;

    if p_put_at < clock_timestamp() - interval '10 min' then
        raise exception 'a payload was put into the payload store too long ago' using errcode = 'HP003';
    end if;

    select array_agg(u.tenant_id) into stale
    from unnest(p_tenants, p_versions) u(tenant_id, version)
    left join lateral (
        select s.config_version from tenants s where s.tenant_id = u.tenant_id and s.deleted_at is null offset 0
    ) t on true
    where t.config_version is distinct from u.version;
    if stale is not null then
        delete from idempotency_keys k using unnest(p_of, p_keys, p_ids) u(of, key, id)
        where k.tenant_id = u.of and k.key = u.key and k.event_id = u.id and u.id = any (winners);
        return;
    end if;

    if lost then
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
        left join lateral (
            select s.event_id, s.request_hash, s.delivery_count from idempotency_keys s
            where s.tenant_id = u.of and s.key = u.key offset 0
        ) k on true;
    end if;

    select array_agg(l.last_seq order by s.place), array_agg(l.last_day order by s.place) into placed_after, days
    from unnest(p_shards) with ordinality s(shard, place) cross join lateral hookpost_last(s.shard) l;
    moment := hookpost_now();
    insert into events (day, shard, seq, event_id, tenant_id, type, payload, payload_ref, owed, idempotency_key, trace_id,
                        trace_span, created_at)
    select days[u.place], p_shards[u.place],
           placed_after[u.place] + row_number() over (partition by u.place order by u.ord), u.id, u.of, u.type, u.payload,
           p_refs[u.ord], case when u.cnt = 0 then '{}' else p_owed[u.start : u.start + u.cnt - 1] end,
           p_keys[u.ord], p_traces[u.ord], p_spans[u.ord], moment
    from (
        select v.*, coalesce(v.given, 1) as place
        from unnest(p_ids, p_of, p_types, p_payloads, p_owed_from, p_owed_count, p_places)
             with ordinality v(id, of, type, payload, start, cnt, given, ord)
    ) u
    where verdicts is null or verdicts[u.ord] = 0;
    get diagnostics written = row_count;
    if written <> meant then
        raise exception 'append wrote % rows of %', written, meant using errcode = 'HP002';
    end if;
    select array_agg(u.d - date '2000-01-01' order by u.place) into placed_days
    from unnest(days) with ordinality u(d, place);
    placed_at := date_part('epoch', moment);
end
$$;
