-- name: count_types
-- How many types a tenant has, and the bytes of their schemas but for that of the type named.
select count(*) as types, coalesce(sum(octet_length(schema)) filter (where name <> $2), 0) as bytes
from event_types where tenant_id = $1

-- name: create_type
insert into event_types (tenant_id, name, description, schema) values ($1, $2, $3, $4)
on conflict (tenant_id, name) do nothing
returning *

-- name: get_type
select * from event_types where tenant_id = $1 and name = $2

-- name: list_types
-- Newest first, behind (created_at, name).
select * from event_types
where tenant_id = $1 and created_at <= coalesce($2::timestamptz, 'infinity')
  and ($2::timestamptz is null or (created_at, name) < ($2, $3::text))
order by created_at desc, name desc limit $4

-- name: list_types_of_all
-- Across tenants, behind (created_at, tenant_id, name).
select * from event_types
where created_at <= coalesce($1::timestamptz, 'infinity')
  and ($1::timestamptz is null or (created_at, tenant_id, name) < ($1, $2::uuid, $3::text))
order by created_at desc, tenant_id desc, name desc limit $4

-- name: update_type
update event_types set description = $3, schema = $4, updated_at = clock_timestamp()
where tenant_id = $1 and name = $2
returning *

-- name: delete_type
delete from event_types where tenant_id = $1 and name = $2 returning name
