-- name: cold_turn
-- One moves payloads or lets partitions of events go, the others have nothing to do (as `retire_turn`). Held by the session.
select pg_try_advisory_lock(7706, hashtext('events'))

-- name: cold_end_turn
select pg_advisory_unlock(7706, hashtext('events'))

-- name: cold_day
-- The day whose turn it is, of those that ended more than $1 seconds ago and are not moved: one that is filled (for $2
-- seconds, as a dump takes its locks a moment behind its snapshot), else one that is begun, else the last one.
select p.day, d.day is not null as begun, d.filled_at is not null as filled
from (
    select to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'events'::regclass and not i.inhdetachpending and c.relname ~ '^events_\d{8}$'
) p
left join cold_days d on d.day = p.day
where d.moved_at is null and p.day + 1 < (hookpost_now() - make_interval(secs => $1)) at time zone 'utc'
  and (d.filled_at is null or d.filled_at <= clock_timestamp() - make_interval(secs => $2))
order by d.filled_at is null, d.day is null, p.day desc limit 1

-- name: cold_fits
select hookpost_cold_fits($1)

-- name: abandon_cold
select hookpost_abandon_cold($1)

-- name: begin_cold
select hookpost_begin_cold($1)

-- name: cold_rows
select r.*, nextval('segment_number') as number, clock_timestamp() as moment from hookpost_cold_rows($1, $2, $3) r

-- name: copy_cold
select hookpost_copy_cold($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: cold_filled
update cold_days set filled_at = clock_timestamp() where day = $1

-- name: swap_cold
select hookpost_swap_cold($1)
