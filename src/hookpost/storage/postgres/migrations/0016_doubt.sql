-- What a worker that died may have sent without recording it is told by time: by what was stored, or due, when it died. Its
-- clock follows the database's and never goes back, so where that was set back it had shown more than the database does
-- now. Workers of the release before do not say how much; behind one of those all is as it was.

alter table nodes add column clock_to timestamptz;
comment on column nodes.clock_to is 'the latest end that its lease ever had: its own clock shows no more while it holds the lease';

alter table shards add column doubtful_to timestamptz;
comment on column shards.doubtful_to is 'an owner that may have left something unrecorded may have seen this time';

-- As before, and what the silent owner's clock may have shown is kept.
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
                   or (coalesce(n.expires_at, '-infinity') < clock_timestamp()
                       and pg_postmaster_start_time() + p_lease < clock_timestamp()))
            order by f.shard limit p_limit
            for update of f skip locked
        )
        returning s.shard, s.fence;
end
$$;
