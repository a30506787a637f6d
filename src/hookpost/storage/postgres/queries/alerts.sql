-- name: gather_turn
-- One gathers, the others have nothing to do. Ends with the transaction.
select pg_try_advisory_xact_lock(7705, 0)

-- name: now
select hookpost_now()

-- name: take_notices
-- Out of the outbox, the oldest first.
delete from outbox where notice_id in (select notice_id from outbox order by notice_id limit $1) returning *

-- name: untold_deaths
-- Endpoints with deaths that may be told by now ($1: the last time they may have been told at).
select a.endpoint_id from alert_states a join endpoints e using (endpoint_id) join tenants t using (tenant_id)
where a.deaths > 0 and (a.deaths_told_at is null or a.deaths_told_at <= $1)
  and e.deleted_at is null and t.deleted_at is null
order by a.deaths_told_at nulls first limit $2

-- name: standings
-- How endpoints that still exist stand (policy/alerts.Standing, in its order).
select e.endpoint_id, e.tenant_id, e.url, e.status = 'disabled' as disabled, coalesce(a.failing_told, false),
       a.failing_told_at, coalesce(a.deaths, 0), a.deaths_since, coalesce(a.event_ids, '{}'), a.deaths_told_at
from endpoints e join tenants t using (tenant_id) left join alert_states a using (endpoint_id)
where e.endpoint_id = any ($1) and e.deleted_at is null and t.deleted_at is null

-- name: write_standing
insert into alert_states (endpoint_id, failing_told, failing_told_at, deaths, deaths_since, event_ids, deaths_told_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (endpoint_id) do update
    set failing_told = excluded.failing_told, failing_told_at = excluded.failing_told_at, deaths = excluded.deaths,
        deaths_since = excluded.deaths_since, event_ids = excluded.event_ids, deaths_told_at = excluded.deaths_told_at

-- name: tell_health
-- The workers that deliver to these hear of it. Locked in the order in which workers write health.
with known as (
    select e.endpoint_id from endpoints e where e.endpoint_id = any ($1) order by e.endpoint_id for no key update
)
update endpoints e set health_at = clock_timestamp() from known where e.endpoint_id = known.endpoint_id

-- name: write_alert
-- One row for each channel; by mail only to a tenant that has an address.
insert into alerts (alert_id, channel, tenant_id, endpoint_id, type, payload, due_at)
select $1, c.channel, $3, $4, $5, $6, hookpost_now() from unnest($2::text[]) c (channel)
where c.channel <> 'mail' or exists (select from tenants t where t.tenant_id = $3 and t.alert_email is not null)

-- name: claim_alerts
-- What is due of one channel, for so long ours: whoever takes it and dies lets it fall due again.
with due as (
    select a.alert_id, a.channel from alerts a where a.channel = $1 and a.due_at <= hookpost_now()
    order by a.due_at limit $2 for update skip locked
)
update alerts a set tries = a.tries + 1, due_at = hookpost_now() + make_interval(secs => $3)
from due, tenants t
where a.alert_id = due.alert_id and a.channel = due.channel and t.tenant_id = a.tenant_id
returning a.alert_id, a.channel, a.tenant_id, a.endpoint_id, a.type, a.payload, a.tries, t.alert_email

-- name: finish_alert
delete from alerts where alert_id = $1 and channel = $2

-- name: postpone_alert
update alerts set due_at = hookpost_now() + make_interval(secs => $3) where alert_id = $1 and channel = $2
