-- name: shards
-- Entries of each shard's journal that are not done, since when the oldest of them is there and the oldest that was not even
-- read (null: there is none), and whether a living worker owns it.
select s.shard, s.pool, coalesce(n.expires_at > clock_timestamp(), false) as owned, d.depth,
       case when d.depth > 0 then (
           select extract(epoch from clock_timestamp() - e.created_at)::double precision from events e
           where e.shard = s.shard and e.seq = least(lower(p.open), coalesce(p.read_to, s.floor_seq) + 1)
       ) end as age_s,
       case when l.last_seq > coalesce(p.read_to, s.floor_seq) then (
           select extract(epoch from clock_timestamp() - e.created_at)::double precision from events e
           where e.shard = s.shard and e.seq = coalesce(p.read_to, s.floor_seq) + 1
       ) end as unread_s
from shards s
left join nodes n on n.node_id = s.owner
cross join lateral hookpost_last(s.shard) l
left join lateral (
    select q.read_to, q.open from progress q where q.shard = s.shard order by q.settle_no desc limit 1
) p on true
cross join lateral (
    select l.last_seq - coalesce(p.read_to, s.floor_seq)
           + coalesce((select sum(upper(r) - lower(r)) from unnest(p.open) r), 0)::bigint as depth
) d
order by s.shard

-- name: backlog
-- What waits, by reason; of so many rows at most.
select b.reason, count(*) as deliveries from (select reason from backlog limit $1) b group by b.reason

-- name: tenants
-- The tenants with the most attempts today.
select m.tenant_id, m.accepted, m.attempts, m.delivered, m.dead from metering m
where m.day = hookpost_today() order by m.attempts desc, m.tenant_id limit $1

-- name: rollups_behind
-- Null: nothing was counted yet.
select extract(epoch from clock_timestamp() - tallied_until)::double precision from rollup_state where tallied_until > '-infinity'
