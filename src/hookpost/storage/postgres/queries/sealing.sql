-- name: get_data_keys
select tenant_id, key_id, wrapped from data_keys where tenant_id = any ($1)

-- name: add_data_keys
-- Two that make a tenant's first one at once agree on that of the first; of several tenants in the order of their ids.
insert into data_keys (tenant_id, key_id, wrapped)
select u.tenant_id, $2, u.wrapped from unnest($1::uuid[], $3::bytea[]) u (tenant_id, wrapped)
on conflict (tenant_id) do nothing

-- name: needed_keys
-- The encryption keys that data keys need, by jumping from one to the next in the index.
with recursive used as (
    (select d.key_id from data_keys d order by d.key_id limit 1)
    union all
    select (select d.key_id from data_keys d where d.key_id > u.key_id order by d.key_id limit 1)
    from used u where u.key_id is not null
)
select key_id from used where key_id is not null

-- name: sample_data_key
-- One data key of an encryption key: if it opens, the key is the right one.
select tenant_id, wrapped from data_keys where key_id = $1 order by tenant_id limit 1

-- name: held_keys
-- The encryption keys of each living process, null for those of a release before sealed secrets.
select n.name, n.key_ids from nodes n where n.expires_at > clock_timestamp()
union all
select 'an API process', i.key_ids from ingest_nodes i where i.expires_at > clock_timestamp()

-- name: data_keys_of_others
-- Data keys that another encryption key than $1 wraps. What another rotation holds is passed by.
select tenant_id, key_id, wrapped from data_keys where key_id <> $1 order by tenant_id limit $2 for update skip locked

-- name: rewrap
update data_keys d set key_id = $2, wrapped = u.wrapped, wrapped_at = clock_timestamp()
from unnest($1::uuid[], $3::bytea[]) u (tenant_id, wrapped) where d.tenant_id = u.tenant_id

-- name: count_others
select count(*) from data_keys where key_id <> $1

-- name: now
select clock_timestamp()

-- name: add_secret
-- The plain key stands beside it only while a process lives that cannot read the sealed one.
insert into endpoint_secrets (endpoint_id, created_at, sealed, key)
select $1, $2, $3, case when exists (
    select from nodes n where n.expires_at > clock_timestamp() and n.key_ids is null
    union all
    select from ingest_nodes i where i.expires_at > clock_timestamp() and i.key_ids is null
) then $4::bytea end

-- name: valid_secrets
-- The secrets that sign now, newest first.
select s.key, s.sealed, s.created_at, s.expires_at
from endpoint_secrets s
join endpoints e on e.endpoint_id = s.endpoint_id
where s.endpoint_id = $1 and e.tenant_id = $2 and (s.expires_at is null or s.expires_at > clock_timestamp())
order by s.created_at desc

-- name: forget_all_secrets
-- Of a deleted endpoint: its keys are of no use to anyone but a thief.
delete from endpoint_secrets s using endpoints e
where e.endpoint_id = s.endpoint_id and e.tenant_id = $1 and (e.endpoint_id = $2 or $2::uuid is null)

-- name: forget_sealed_columns
update endpoints set sealed_headers = null, sealed_tls_key = null
where tenant_id = $1 and (endpoint_id = $2 or $2::uuid is null)
  and (sealed_headers is not null or sealed_tls_key is not null)

-- name: set_headers
update endpoints set headers = $3, sealed_headers = $4 where endpoint_id = $1 and tenant_id = $2 returning *

-- name: set_tls
-- What is new is looked at anew (policy/expiry).
update endpoints set tls_ca = $3, tls_cert = $4, sealed_tls_key = $5, tls_look_at = null where endpoint_id = $1 and tenant_id = $2 returning *

-- name: older_processes
-- Living processes of a release that cannot read sealed secrets.
select exists (
    select from nodes n where n.expires_at > clock_timestamp() and n.key_ids is null
    union all
    select from ingest_nodes i where i.expires_at > clock_timestamp() and i.key_ids is null
)

-- name: plain_secrets
-- Some secrets that stand in the clear. What a change of the configuration holds is passed by.
select s.endpoint_id, e.tenant_id, s.created_at, s.key, s.sealed
from endpoint_secrets s join endpoints e on e.endpoint_id = s.endpoint_id
where s.key is not null order by s.endpoint_id limit $1 for update of s skip locked

-- name: seal_secrets
update endpoint_secrets s set sealed = u.sealed, key = null
from unnest($1::uuid[], $2::timestamptz[], $3::bytea[]) u (endpoint_id, created_at, sealed)
where s.endpoint_id = u.endpoint_id and s.created_at = u.created_at
