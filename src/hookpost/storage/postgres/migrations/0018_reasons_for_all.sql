-- A bulk replay of what died of one reason says so in its status, 'dead:http_4xx', and not in a column alone. Processes of
-- earlier releases pass the status on to hookpost_replayable and do not know the column: one that went on with such a
-- replay during an upgrade would replay whatever else is dead. So the function reads the reason.

alter table replays drop constraint replays_status_check;
alter table replays add constraint replays_status_check
    check (status in ('dead', 'delivered', 'any') or status like 'dead:_%') not valid;
comment on column replays.status is 'dead, delivered or any; dead:REASON for what died of that alone';

-- As in 0002, but for the reason.
create or replace function hookpost_replayable(
    p_tenant_id uuid, p_endpoint_id uuid, p_type text, p_status text, p_since timestamptz, p_until timestamptz,
    p_moment timestamptz, p_after_at timestamptz, p_after_event uuid, p_after_endpoint uuid, p_limit int
) returns table (at timestamptz, event_id uuid, endpoint_id uuid, type text, owed uuid[]) language plpgsql as
$$
#variable_conflict use_column
declare
    windowed boolean := p_since is not null or p_until is not null;
    since_at timestamptz := coalesce(p_since, '-infinity');
    until_at timestamptz := coalesce(p_until, 'infinity');
    -- An event's day lies at most one beside the day it was accepted.
    first    date := (since_at at time zone 'utc')::date - 1;
    last     date := (least(until_at, p_moment) at time zone 'utc')::date + 1;
    -- null: whatever it died of.
    died_of  text := nullif(split_part(p_status, ':', 2), '');
begin
    if split_part(p_status, ':', 1) = 'dead' then
        -- Only one of the two indexes is walked. What a deleted endpoint was owed stays where it is.
        return query
            select d.died_at, d.event_id, d.endpoint_id, d.type,
                   case when (p_type is null or d.type = p_type)
                         and (died_of is null or d.reason = died_of)
                         and exists (select from endpoints x
                                     where x.endpoint_id = d.endpoint_id and x.deleted_at is null offset 0)
                         and (not windowed or exists (
                             select from events e
                             where e.event_id = d.event_id and e.kind = 0 and e.day between first and last
                               and e.created_at >= since_at and e.created_at < until_at offset 0))
                        then array[d.endpoint_id] else '{}' end
            from (
                (select l.died_at, l.event_id, l.endpoint_id, l.type, l.reason from dead_letters l
                 where p_endpoint_id is null and l.tenant_id = p_tenant_id and l.died_at <= p_moment
                   and (l.died_at, l.event_id, l.endpoint_id) > (p_after_at, p_after_event, p_after_endpoint)
                 order by l.died_at, l.event_id, l.endpoint_id limit p_limit)
                union all
                (select l.died_at, l.event_id, l.endpoint_id, l.type, l.reason from dead_letters l
                 where l.endpoint_id = p_endpoint_id and l.tenant_id = p_tenant_id and l.died_at <= p_moment
                   and (l.died_at, l.event_id) > (p_after_at, p_after_event)
                 order by l.died_at, l.event_id limit p_limit)
            ) d
            order by d.died_at, d.event_id, d.endpoint_id;
    else
        first := (greatest(since_at, p_after_at) at time zone 'utc')::date - 1;
        return query
            select e.created_at, e.event_id, p_after_endpoint, e.type,
                   case when p_type is null or e.type = p_type then array(
                       select o.endpoint_id from unnest(e.owed) with ordinality o(endpoint_id, place)
                       join endpoints x on x.endpoint_id = o.endpoint_id and x.deleted_at is null
                       where (p_endpoint_id is null or o.endpoint_id = p_endpoint_id)
                         and (p_status = 'any' or exists (
                             select from attempts a
                             where a.event_id = e.event_id and a.endpoint_id = o.endpoint_id and a.day >= first
                               and a.outcome = 'delivered' and a.finished_at <= p_moment offset 0))
                       order by o.place) else '{}' end
            from events e
            where e.tenant_id = p_tenant_id and e.kind = 0 and e.day between first and last
              and e.created_at >= since_at and e.created_at < until_at and e.created_at <= p_moment
              and e.created_at >= p_after_at and (e.created_at, e.event_id) > (p_after_at, p_after_event)
            order by e.created_at, e.event_id limit p_limit;
    end if;
end
$$;

-- Those of the release before that run; a process of it reads the column beside it, and finds the same.
update replays set status = 'dead:' || reason where reason is not null and state = 'running';
