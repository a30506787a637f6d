-- A worker whose lease has run out between its look at who owns what and its claim was given its own shards anew, as if a
-- silent owner were replaced: under a new fence, what it had under way in doubt. Its next renewal keeps them, unless
-- another one took them first; what it has lost track of it disowns. Otherwise as before.
create or replace function hookpost_claim(p_node uuid, p_pool text, p_limit int, p_lease interval, p_longest interval)
returns table (shard int, fence bigint) language plpgsql as
$$
begin
    perform pg_advisory_xact_lock(7703, 0);
    return query
        update shards s
        set owner = p_node, fence = s.fence + 1,
            quiet_until = case when s.owner is null then s.quiet_until
                               else greatest(s.quiet_until, clock_timestamp() + p_longest) end,
            doubtful_to = greatest(s.doubtful_to, (select n.clock_to from nodes n where n.node_id = s.owner))
        where s.shard in (
            select f.shard from shards f left join nodes n on n.node_id = f.owner
            where f.pool = p_pool
              and (f.owner is null
                   or (f.owner <> p_node
                       and coalesce(n.expires_at, '-infinity') < clock_timestamp()
                       and pg_postmaster_start_time() + p_lease < clock_timestamp()))
            order by f.shard limit p_limit
            for update of f skip locked
        )
        returning s.shard, s.fence;
end
$$;
