-- name: retire_turn
-- One lets partitions go, the others have nothing to do. Held by the session.
select pg_try_advisory_lock(7706, hashtext($1))

-- name: end_turn
-- The end of the session would do it, a moment later.
select pg_advisory_unlock(7706, hashtext($1))

-- name: leaving
-- Partitions of $1 whose day is more than $2 days ago, oldest first, with those that were detached by half or detached and
-- not yet dropped.
select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day, i.inhrelid is not null as attached,
       coalesce(i.inhdetachpending, false) as pending
from pg_class c left join pg_inherits i on i.inhrelid = c.oid
where c.relkind = 'r' and pg_table_is_visible(c.oid) and c.relname ~ ('^' || $1::text || '_\d{8}$')
  and to_date(right(c.relname, 8), 'YYYYMMDD') < hookpost_today() - $2::int
order by c.relname

-- name: needed
select hookpost_partition_needed($1, $2)

-- name: begin_leaving
-- Nobody owes an event once more (keep_events) from before it is asked whether a day is needed until it is out of sight.
select pg_advisory_lock(7710, 0)

-- name: end_leaving
select pg_advisory_unlock(7710, 0)

-- name: counted
select hookpost_rolled_up($1)

-- name: raise_floors
select hookpost_raise_floors($1)

-- name: forget_dead_letters
select hookpost_forget_dead_letters($1, $2, $3)

-- name: partition_objects
select hookpost_partition_objects($1, $2, $3)

-- name: abandon_cold
-- Its segments are to be removed, and what is left of an attempt to move it.
select hookpost_abandon_cold($1)

-- name: forget_replays
-- Bulk replays that ended before anything that is still kept.
delete from replays
where replay_id = any (array(
    select replay_id from replays where state <> 'running' and finished_at < hookpost_now() - make_interval(days => $1)
    order by replay_id limit $2 for update skip locked
))
