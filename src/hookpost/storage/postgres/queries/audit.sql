-- name: lock_head
-- Where the chain ends; held until the change commits, so that rows of a chain are written one after the other.
select chain, seq, hash, sealed from audit_heads where chain = $1 for update

-- name: begin_chain
insert into audit_heads (chain, seq, hash, sealed) values ($1, 0, $2, $3) on conflict (chain) do nothing

-- name: now
select clock_timestamp()

-- name: append
insert into audit_log (chain, seq, at, actor, address, action, target, before, after, previous, hash)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: move_head
update audit_heads set seq = $2, hash = $3, sealed = $4 where chain = $1

-- name: list_of_chain
-- Newest first, behind seq.
select chain, seq, at, actor, address, action, target, before, after, previous, hash from audit_log
where chain = $1 and seq < coalesce($2::bigint, 9223372036854775807) and ($3::text is null or action = $3)
  and at >= coalesce($4::timestamptz, '-infinity') and at < coalesce($5::timestamptz, 'infinity')
order by seq desc limit $6

-- name: list_of_all
-- Across chains, newest first, behind (at, chain, seq).
select chain, seq, at, actor, address, action, target, before, after, previous, hash from audit_log
where ($4::text is null or action = $4)
  and at >= coalesce($5::timestamptz, '-infinity') and at < coalesce($6::timestamptz, 'infinity')
  and (at, chain, seq) < (coalesce($1::timestamptz, 'infinity'),
                          coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'), coalesce($3::bigint, 9223372036854775807))
order by at desc, chain desc, seq desc limit $7

-- name: refused_sign_ins
-- How long ago the newest $3 sign-ins from an address were refused, within the last $2 seconds and since one that was not. By
-- the index of times: what was entered within those seconds is read.
with entered as materialized (
    select a.at, a.action from audit_log a
    where a.at > now() - make_interval(secs => $2) and a.address = $1
      and a.action in ('dashboard.sign_in', 'dashboard.sign_in_refused')
)
select extract(epoch from clock_timestamp() - e.at)::double precision as age_s from entered e
where e.action = 'dashboard.sign_in_refused'
  and e.at > coalesce((select max(s.at) from entered s where s.action = 'dashboard.sign_in'), '-infinity')
order by e.at desc limit $3

-- name: old_chains
-- Chains that begin a day or more before what is kept, so that retention writes a row a day at most.
select h.chain, f.seq as first from audit_heads h
cross join lateral (select a.seq, a.at from audit_log a where a.chain = h.chain order by a.seq limit 1) f
where f.at < clock_timestamp() - make_interval(days => $1 + 1)
limit $2

-- name: kept_from
-- The first row of a chain that stays: the first young one, or as far as one step goes.
select least(
    coalesce((select min(a.seq) from audit_log a where a.chain = $1 and a.seq < $2 + $4::bigint
              and a.at >= clock_timestamp() - make_interval(days => $3)), $2 + $4::bigint),
    (select h.seq + 1 from audit_heads h where h.chain = $1))

-- name: let_retention
select set_config('hookpost.audit_retention', 'on', true)

-- name: retire
delete from audit_log where chain = $1 and seq < $2

-- name: heads
select h.chain, h.seq, h.hash, h.sealed, d.key_id, d.wrapped
from audit_heads h left join data_keys d on d.tenant_id = h.chain order by h.chain

-- name: chains
-- Every chain that has rows, by jumping from one to the next in the index.
with recursive found as (
    (select a.chain from audit_log a order by a.chain limit 1)
    union all
    select (select a.chain from audit_log a where a.chain > f.chain order by a.chain limit 1) from found f where f.chain is not null
)
select f.chain, d.key_id, d.wrapped from found f left join data_keys d on d.tenant_id = f.chain where f.chain is not null

-- name: rows
-- A chain in its order, behind seq.
select chain, seq, at, actor, address, action, target, before, after, previous, hash from audit_log
where chain = $1 and seq > $2 order by seq limit $3
