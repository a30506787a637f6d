-- name: to_look_at
-- Endpoints whose certificates may end soon, those never looked at first; what another node looks at is passed over.
select e.endpoint_id, e.tenant_id, e.tls_ca, e.tls_cert, e.tls_told, hookpost_now() as now
from endpoints e
where e.deleted_at is null and (e.tls_ca is not null or e.tls_cert is not null)
  and (e.tls_look_at is null or e.tls_look_at <= hookpost_now())
order by e.tls_look_at nulls first limit $1
for no key update skip locked

-- name: note_look
update endpoints set tls_look_at = $2, tls_told = $3 where endpoint_id = $1

-- name: write_notice
insert into outbox (type, tenant_id, endpoint_id, at, since, reason) values ($1, $2, $3, $4, $5, $6)
