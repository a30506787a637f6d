-- name: make_partitions
select hookpost_make_partitions(hookpost_today() - 1, hookpost_today() + $1::int)

-- name: expire_keys
delete from idempotency_keys where ctid = any (array(
    select ctid from idempotency_keys where expires_at < hookpost_now() order by expires_at limit $1
))

-- name: old_progress
-- Partitions of past days, oldest first.
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'progress'::regclass and c.relname < 'progress_' || to_char(hookpost_today() - 1, 'YYYYMMDD')
order by c.relname
