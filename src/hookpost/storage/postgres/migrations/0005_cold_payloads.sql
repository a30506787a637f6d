-- Cold payloads: those of past days lie in segments, objects of the payload store that hold many payloads each.

-- ---- one append ----------------------------------------------------------------------------------------------------

-- Processes of the release before append with fourteen arguments. They are given the one that there is, so that whatever
-- an append sees to (locks, versions, keys) is written down once.
create or replace function hookpost_append(
    p_shard int, p_keep interval,
    p_tenants uuid[], p_versions bigint[],
    p_ids uuid[], p_of uuid[], p_types text[], p_payloads bytea[],
    p_owed uuid[], p_owed_from int[], p_owed_count int[],
    p_traces uuid[], p_keys text[], p_hashes bytea[],
    out stale uuid[], out verdicts smallint[], out first_ids uuid[], out first_counts int[]
) language sql as
$$
    select stale, verdicts, first_ids, first_counts
    from hookpost_append(p_shard, p_keep, p_tenants, p_versions, p_ids, p_of, p_types, p_payloads, p_owed, p_owed_from,
                         p_owed_count, p_traces, p_keys, p_hashes, null::text[], null::timestamptz)
$$;

-- ---- segments ------------------------------------------------------------------------------------------------------

-- A number is given once, also to one that is never committed: no name is written by two.
create sequence segment_number;

create table segments (
    key      text primary key,
    day      date not null,
    payloads int not null,
    bytes    int not null
);
comment on table segments is 'objects that hold the payloads of many events of a day; noted in the transaction that first refers to them';
create index segments_day on segments (day);

create table segment_removals (
    key      text not null,
    start    int not null,
    length   int not null,
    noted_at timestamptz not null default clock_timestamp(),
    primary key (key, start)
);
comment on table segment_removals is 'bytes of segments whose payloads were removed on request: to be written over with zeros';

create table cold_days (
    day       date primary key,
    filled_at timestamptz,
    moved_at  timestamptz
);
comment on table cold_days is 'how far a day is: a partition without payloads is filled beside the one with them (filled_at), then takes its place (moved_at)';

-- What is to be done in the payload store when an event gives its payload up; the caller has locked the event's row.
create function hookpost_note_removal(p_ref text) returns void language plpgsql as
$$
begin
    if p_ref is null or p_ref = 'removed 0 0 00' then
        return;
    elsif p_ref like 'cold/%' then
        insert into segment_removals (key, start, length)
        values (split_part(p_ref, ' ', 1), split_part(p_ref, ' ', 2)::int, split_part(p_ref, ' ', 3)::int)
        on conflict do nothing;
    else
        insert into payload_removals (key) values (split_part(p_ref, ' ', 1)) on conflict do nothing;
    end if;
end
$$;

-- While a day is being moved its events stand in two tables. What is removed from the one, which everybody reads, is
-- removed from the other as well, and from the segment.
create function hookpost_mirror_removal() returns trigger language plpgsql as
$$
declare
    filled text := 'cold_' || right(tg_table_name, 8);
    ref    text;
begin
    execute format('select payload_ref from %I where shard = $1 and seq = $2 for update', filled)
        into ref using new.shard, new.seq;
    perform hookpost_note_removal(ref);
    execute format('update %I set payload = $3, payload_ref = $4 where shard = $1 and seq = $2', filled)
        using new.shard, new.seq, new.payload, new.payload_ref;
    return null;
end
$$;

-- Begins to move a day: its events will be copied, without their payloads, into a table that has all that the partition has.
-- The constraint spares the scan when it takes the partition's place. A day without payloads is moved already.
create function hookpost_begin_cold(p_day date) returns void language plpgsql as
$$
declare
    part   text := 'events_' || to_char(p_day, 'YYYYMMDD');
    filled text := 'cold_' || to_char(p_day, 'YYYYMMDD');
    any_of boolean;
    col    text;
begin
    execute format('select exists (select from %I where kind = 0 and payload is not null)', part) into any_of;
    insert into cold_days (day, moved_at) values (p_day, case when not any_of then clock_timestamp() end);
    if not any_of then
        return;
    end if;
    execute format('create table %I (like events including all)', filled);
    for col in select attname from pg_attribute where attrelid = part::regclass and attstattarget = 0 and attnum > 0 loop
        execute format('alter table %I alter column %I set statistics 0', filled, col);
    end loop;
    execute format('alter table %I add constraint of_its_day check (day >= %L and day < %L)', filled, p_day, p_day + 1);
    execute format('create trigger mirror_removal after update on %I for each row execute function hookpost_mirror_removal()',
                   part);
end
$$;

-- Ends moving a day without a result: the partition stays as it is, and the objects are to be removed.
create function hookpost_abandon_cold(p_day date) returns void language plpgsql as
$$
declare
    part   text := 'events_' || to_char(p_day, 'YYYYMMDD');
    filled text := 'cold_' || to_char(p_day, 'YYYYMMDD');
begin
    if to_regclass(part) is not null then
        execute format('drop trigger if exists mirror_removal on %I', part);
    end if;
    execute format('drop table if exists %I', filled);
    perform hookpost_forget_segments(p_day);
    delete from cold_days where day = p_day;
end
$$;

-- The segments of a day are to be removed whole.
create function hookpost_forget_segments(p_day date) returns void language sql as
$$
    insert into payload_removals (key) select s.key from segments s where s.day = p_day on conflict do nothing;
    delete from segment_removals r using segments s where s.day = p_day and r.key = s.key;
    delete from segments where day = p_day;
$$;

-- The columns of a table of events that are copied as they are. Whatever columns are added to events later go along.
create function hookpost_cold_columns(p_table text) returns text stable language sql as
$$
    select string_agg(quote_ident(attname), ', ' order by attname) from pg_attribute
    where attrelid = p_table::regclass and attnum > 0 and not attisdropped and attname not in ('payload', 'payload_ref')
$$;

-- Is the table that is being filled made like events still are? A migration may have added a column meanwhile.
create function hookpost_cold_fits(p_day date) returns boolean stable language sql as
$$
    select to_regclass('cold_' || to_char(p_day, 'YYYYMMDD')) is not null
       and hookpost_cold_columns('cold_' || to_char(p_day, 'YYYYMMDD')) = hookpost_cold_columns('events')
$$;

-- The last row that was copied; the next one is behind it.
create function hookpost_cold_last(p_day date, out last_shard int, out last_seq bigint) language plpgsql as
$$
begin
    execute format('select shard, seq from %I order by shard desc, seq desc limit 1', 'cold_' || to_char(p_day, 'YYYYMMDD'))
        into last_shard, last_seq;
    last_shard := coalesce(last_shard, -1);
    last_seq := coalesce(last_seq, 0);
end
$$;

-- The next rows of a day behind those that are copied, in the order of the primary key, at most p_rows and p_bytes of
-- payload (one always fits): up to where they go (null: there are none), which of them have a payload to move, its length
-- and hash, and these payloads as one. Control rows keep theirs: a worker reads them in place. Of a hash 16 bytes are
-- enough to tell that a payload was altered, and a place of that length costs half as much in each row.
create function hookpost_cold_rows(
    p_day date, p_rows int, p_bytes bigint,
    out to_shard int, out to_seq bigint, out shards int[], out seqs bigint[], out lengths int[], out hashes text[],
    out body bytea
) language plpgsql as
$$
declare
    l record;
begin
    select * into l from hookpost_cold_last(p_day);
    execute format(
        'with numbered as (
             select r.shard, r.seq, r.payload, octet_length(r.payload) as length, row_number() over w as place,
                    sum(coalesce(octet_length(r.payload), 0)) over w - coalesce(octet_length(r.payload), 0) as bytes_before
             from (
                 select e.shard, e.seq, case when e.kind = 0 then e.payload end as payload from %I e
                 where (e.shard, e.seq) > ($1, $2) order by e.shard, e.seq limit $3
             ) r window w as (order by r.shard, r.seq)
         ), kept as (
             select * from numbered where bytes_before < $4
         )
         select (array_agg(shard order by place desc))[1], (array_agg(seq order by place desc))[1],
                array_agg(shard order by place) filter (where length > 0),
                array_agg(seq order by place) filter (where length > 0),
                array_agg(length order by place) filter (where length > 0),
                array_agg(left(encode(sha256(payload), ''hex''), 32) order by place) filter (where length > 0),
                string_agg(payload, null order by place)
         from kept', 'events_' || to_char(p_day, 'YYYYMMDD')
    ) into to_shard, to_seq, shards, seqs, lengths, hashes, body using l.last_shard, l.last_seq, p_rows, p_bytes;
end
$$;

-- Copies the rows up to (p_to_shard, p_to_seq) behind those that are copied. Those of p_shards and p_seqs refer to their
-- places in the segment p_key, one behind the other, instead of having their payload. Whoever removes payloads waits
-- meanwhile, and what was removed after it was read for the segment is noted. A segment that was put long ago may be
-- swept already.
create function hookpost_copy_cold(
    p_day date, p_to_shard int, p_to_seq bigint, p_shards int[], p_seqs bigint[], p_lengths int[], p_hashes text[],
    p_key text, p_put_at timestamptz
) returns void language plpgsql as
$$
declare
    part text := 'events_' || to_char(p_day, 'YYYYMMDD');
    cols text := hookpost_cold_columns('events');
    l    record;
    refs text[];
begin
    execute format('lock table %I in share mode', part);
    if p_put_at < clock_timestamp() - interval '10 min' then
        raise exception 'a segment was put into the payload store too long ago' using errcode = 'HP003';
    end if;
    select * into l from hookpost_cold_last(p_day);
    select array_agg(concat_ws(' ', p_key, u.before, u.length, u.hash) order by u.place) into refs from (
        select p.*, sum(p.length) over (order by p.place) - p.length as before
        from unnest(p_lengths, p_hashes) with ordinality p (length, hash, place)
    ) u;
    execute format(
        'with places as (
             select * from unnest($5::int[], $6::bigint[], $7::text[]) p (of_shard, of_seq, place)
         )
         insert into %1$I (%2$s, payload, payload_ref)
         select %2$s, case when p.place is null then e.payload end,
                case when p.place is not null and e.payload is not null then p.place else e.payload_ref end
         from %3$I e left join places p on p.of_shard = e.shard and p.of_seq = e.seq
         where (e.shard, e.seq) > ($1, $2) and (e.shard, e.seq) <= ($3, $4)
         order by e.shard, e.seq', 'cold_' || to_char(p_day, 'YYYYMMDD'), cols, part
    ) using l.last_shard, l.last_seq, p_to_shard, p_to_seq, p_shards, p_seqs, refs;
    if p_key is null then
        return;
    end if;
    insert into segments (key, day, payloads, bytes)
    select p_key, p_day, count(*), sum(u.length) from unnest(p_lengths) u (length);
    execute format(
        'select hookpost_note_removal(p.place) from unnest($1::int[], $2::bigint[], $3::text[]) p (of_shard, of_seq, place)
         join %I e on e.shard = p.of_shard and e.seq = p.of_seq where e.payload is null', part
    ) using p_shards, p_seqs, refs;
end
$$;

-- Puts the table that was filled into the place of the partition, in one transaction. Returns false when rows have come
-- since (the database's clock went back): they are to be copied first. Numbers are gapless, so the last ones tell.
create function hookpost_swap_cold(p_day date) returns boolean language plpgsql as
$$
declare
    part   text := 'events_' || to_char(p_day, 'YYYYMMDD');
    filled text := 'cold_' || to_char(p_day, 'YYYYMMDD');
    late   boolean;
begin
    lock table only events in access exclusive mode;
    execute format(
        'select exists (
             select from shards s where (select max(e.seq) from %I e where e.shard = s.shard)
                           is distinct from (select max(e.seq) from %I e where e.shard = s.shard))', part, filled
    ) into late;
    if late then
        update cold_days set filled_at = null where day = p_day;
        return false;
    end if;
    execute format('alter table events detach partition %I', part);
    execute format('drop table %I', part);
    execute format('alter table %I rename to %I', filled, part);
    execute format('alter table events attach partition %I for values from (%L) to (%L)', part, p_day, p_day + 1);
    execute format('alter table %I drop constraint of_its_day', part);
    update cold_days set moved_at = clock_timestamp() where day = p_day;
    return true;
end
$$;

-- As before, but for segments: these leave by their day, not by the rows that refer to them.
create or replace function hookpost_partition_objects(p_partition text, p_after text, p_limit int) returns text[]
language plpgsql as
$$
declare
    names text[];
begin
    execute format(
        'select array_agg(name) from (
             select distinct split_part(payload_ref, '' '', 1) as name from %I
             where payload_ref is not null and payload_ref <> ''removed 0 0 00'' and payload_ref not like ''cold/%%''
               and split_part(payload_ref, '' '', 1) > $1
             order by name limit $2
         ) n', p_partition
    ) into names using p_after, p_limit;
    return coalesce(names, '{}');
end
$$;
