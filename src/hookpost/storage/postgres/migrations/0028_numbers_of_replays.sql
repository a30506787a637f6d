-- A day of events stays as long as something of it waits, and a replay's own day may leave before that: the next replay of
-- the event was numbered as the one that had left, and with it what was recorded of the two was one. A number is new if
-- nothing that is recorded of the event bears it: no row of the journal, no attempt, no dead letter. Otherwise as before.
create or replace function hookpost_append_replays(
    p_tenant_id uuid, p_first_day date, p_shards int[], p_event_ids uuid[], p_types text[], p_owed uuid[],
    p_owed_from int[], p_owed_count int[]
) returns void language plpgsql as
$$
declare
    generations int[];
    home        int;
    base_seq    bigint;
    d           date;
    moment      timestamptz;
begin
    -- Before any shard is locked, as old partitions are looked into.
    select array_agg(1 + coalesce(greatest(g.appended, g.tried, g.died), 0) order by u.ord) into generations
    from unnest(p_event_ids) with ordinality u(id, ord)
    cross join lateral (
        select (select max(e.generation) from events e where e.event_id = u.id and e.day >= p_first_day) as appended,
               (select max(a.generation) from attempts a where a.event_id = u.id and a.day >= p_first_day) as tried,
               (select max(l.generation) from dead_letters l where l.event_id = u.id) as died
    ) g;
    for home in select distinct s from unnest(p_shards) s order by s loop
        perform pg_advisory_xact_lock(7700, home);
        select l.last_seq, l.last_day into base_seq, d from hookpost_last(home) l;
        moment := hookpost_now();
        insert into events (day, shard, seq, kind, event_id, tenant_id, type, owed, generation, created_at)
        select d, home, base_seq + row_number() over (order by u.ord), 1, u.id, p_tenant_id, u.type,
               p_owed[u.start : u.start + u.cnt - 1], generations[u.ord], moment
        from unnest(p_shards, p_event_ids, p_types, p_owed_from, p_owed_count)
             with ordinality u(shard, id, type, start, cnt, ord)
        where u.shard = home;
    end loop;
end
$$;
