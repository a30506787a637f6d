-- name: make_partitions
select hookpost_make_partitions(hookpost_today() - 1, hookpost_today() + $1::int)

-- name: expire_keys
-- The clock is asked once, so that the index ends the search. A key that an append holds is left alone: it may just be
-- given to a new event.
delete from idempotency_keys where ctid = any (array(
    select ctid from idempotency_keys where expires_at < (select hookpost_now()) order by expires_at limit $1
    for update skip locked
))

-- name: prune_turn
-- One prunes, the others have nothing to do. Held by the session.
select pg_try_advisory_lock(7704, 0)

-- name: old_progress
-- Partitions of past days, oldest first, with those that were detached by half or detached and not yet dropped.
select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day, i.inhrelid is not null as attached,
       coalesce(i.inhdetachpending, false) as pending
from pg_class c left join pg_inherits i on i.inhrelid = c.oid
where c.relkind = 'r' and pg_table_is_visible(c.oid) and c.relname ~ '^progress_\d{8}$'
  and to_date(right(c.relname, 8), 'YYYYMMDD') < hookpost_today() - 1
order by c.relname

-- name: progress_needed
-- Is the last row of some shard of that day? It is the shard's memory. The number tells which is the last, not the day:
-- clocks may have gone back.
select exists (
    select from shards s
    where (select max(p.settle_no) from progress p where p.shard = s.shard and p.day = $1)
        = (select max(p.settle_no) from progress p where p.shard = s.shard)
)
