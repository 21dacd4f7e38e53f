-- min_worker: 0.1.0
-- How long messages wait and run: each claim notes for how long its messages had been due, by the clock of the server;
-- workers bring the durations of their handlers with the heartbeat.

-- The rare half of a claim, see 0011.
create or replace function queue_worker_data.claim_troubled(
    queue text, candidates tid[], read_at timestamptz, max_count int, lease_seconds double precision,
    suspects int, max_lost int, worker text, ordered boolean default false)
returns setof queue_worker_data.turn
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    alone_from constant int := 3;
    -- Somebody wrote read_ct by hand: one more would overflow, and no claim of this queue would ever succeed.
    most_reads constant int := 2147483000;
    c record;
    item queue_worker_data.turn;
    take tid[] := '{}';
    chosen_id bigint;
    chosen_tid tid;
    chosen_at timestamptz;
    chosen_lost int := 0;
    waiting text;
    dropped int := 0;
    others tid[];
begin
    for c in execute pg_catalog.format(
        'select m.ctid as tid, m.msg_id, m.read_ct, m.enqueued_at, coalesce(t.lost, 0) as lost,
                (m.read_ct = 0 or t.settled_ct = m.read_ct) is true as clean
         from pgmq.%I m left join queue_worker_data.trouble t
             on t.queue = $2 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
         where m.ctid = any ($1) order by m.vt', 'q_' || claim_troubled.queue)
        using candidates, claim_troubled.queue
    loop
        if c.clean then
            take := take || c.tid;
            continue;
        end if;
        dropped := dropped + 1;
        if c.lost + 1 >= max_lost or c.read_ct > most_reads then
            update queue_worker_data.trouble t set lost = t.lost + 1
                where t.queue = claim_troubled.queue and t.msg_id = c.msg_id;
            perform queue_worker_data.bury(claim_troubled.queue, c.msg_id, c.read_ct, c.enqueued_at, 'lost', 'lost',
                pg_catalog.format('its process ended %s times while it ran', c.lost + 1), claim_troubled.worker);
            item := ('dead', c.msg_id, c.read_ct, c.enqueued_at, null, null, 0, c.lost + 1, 'lost');
            return next item;
        elsif chosen_id is null and (case when c.lost >= alone_from then 2 else 1 end) <= suspects then
            chosen_id := c.msg_id;
            chosen_tid := c.tid;
            chosen_at := c.enqueued_at;
            chosen_lost := c.lost;
        elsif c.lost >= alone_from then
            waiting := 'alone';
        else
            waiting := coalesce(waiting, 'suspect');
        end if;
    end loop;

    if chosen_id is not null then
        insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, lost)
            values (claim_troubled.queue, chosen_id, chosen_at, 1)
            on conflict (queue, msg_id) do update set
                lost = case when t.enqueued_at = excluded.enqueued_at then t.lost + 1 else 1 end,
                failures = case when t.enqueued_at = excluded.enqueued_at then t.failures else 0 end,
                settled_ct = case when t.enqueued_at = excluded.enqueued_at then t.settled_ct end,
                enqueued_at = excluded.enqueued_at, updated_at = pg_catalog.clock_timestamp();
        take := case when chosen_lost >= alone_from then array[chosen_tid] else take || chosen_tid end;
    elsif waiting is not null then
        item := (waiting, null, null, null, null, null, null, null, null);
        return next item;
    end if;

    if dropped > 0 and pg_catalog.cardinality(take) < max_count and chosen_lost < alone_from then
        -- Suspects that must wait stand in front of the order of due time; what is behind them must not wait too.
        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid) from (
                 select m.ctid from pgmq.%I m
                 where m.vt <= $1 and m.ctid <> all ($2)
                   and (m.read_ct = 0 or exists (select from queue_worker_data.trouble t
                            where t.queue = $3 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
                              and t.settled_ct = m.read_ct))
                   %s m.vt limit $4 for update skip locked) x', 'q_' || claim_troubled.queue,
            case when ordered then pg_catalog.format('and (m.headers ? ''group_key'') is not true order by %s desc,',
                                                     queue_worker_data.priority_expression()) else 'order by' end)
            into others using read_at, candidates, claim_troubled.queue, max_count - pg_catalog.cardinality(take);
        take := take || coalesce(others, '{}');
    end if;

    return query execute pg_catalog.format(
        'with p as (
             insert into queue_worker_data.tally (queue, pickups)
             select $4, pg_catalog.array_agg(pg_catalog.date_part(''epoch'', $2 - m.vt)::real)
             from pgmq.%1$I m where m.ctid = any ($1) and pg_catalog.isfinite(m.vt) having count(*) > 0),
         u as (
             update pgmq.%1$I m set vt = $2 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
             where m.ctid = any ($1)
             returning m.msg_id, m.read_ct, m.enqueued_at, m.message, m.headers)
         select case when u.headers ? ''expires_at'' and queue_worker_data.expired(u.headers, $2)
                     then ''expired'' else ''job'' end,
                u.msg_id, u.read_ct, u.enqueued_at, u.message::text, u.headers::text,
                coalesce(t.failures, 0), case when u.msg_id = $5 then coalesce(t.lost, 0) else 0 end, null::text
         from u left join queue_worker_data.trouble t
             on t.queue = $4 and t.msg_id = u.msg_id and t.enqueued_at = u.enqueued_at',
        'q_' || claim_troubled.queue)
        using take, read_at, lease_seconds, claim_troubled.queue, chosen_id;
end $$;

-- Claims what is due, see 0011.
create or replace function queue_worker_data.claim(
    queue text, max_count int, lease_seconds double precision,
    suspects int default 0, max_lost int default 5, worker text default '', sleep boolean default false)
returns setof queue_worker_data.turn
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
    -- One reading of the clock: vt <= clock_timestamp() could not use the index, the function is volatile.
    read_at timestamptz := pg_catalog.clock_timestamp();
    state queue_worker_data.queues;
    candidates tid[];
    claimed boolean;
    tried boolean := false;
    last_id bigint;
    item queue_worker_data.turn;
    due timestamptz;
begin
    perform queue_worker_data.check_queue_name(claim.queue);
    select q.* into state from queue_worker_data.queues q where q.queue = claim.queue;
    if state.paused_at is not null or state.broken_until > read_at then
        item.kind := 'paused';
        item.detail := case when state.paused_at is null
                            then pg_catalog.date_part('epoch', state.broken_until - read_at)::text end;
        return next item;
        return;
    elsif state.broken_until is not null then
        if not queue_worker_data.may_probe(claim.queue, read_at) then
            item.kind := 'paused';
            item.detail := '1';
            return next item;
            return;
        end if;
        item.kind := 'probe';
        return next item;
        claimed := false;
        -- What has expired or is given up here was no trial; none of it may cost the queue another pause.
        for n in 1 .. max_count loop
            last_id := null;
            for item in select * from queue_worker_data.claim_lanes(state, read_at, 1, claim.lease_seconds, suspects,
                           max_lost, claim.worker)
            loop
                last_id := item.msg_id;
                claimed := true;
                tried := item.kind = 'job';
                return next item;
            end loop;
            exit when tried or last_id is null;
        end loop;
        if not tried then
            -- The next message is it.
            update queue_worker_data.queues q set broken_until = read_at where q.queue = claim.queue;
        end if;
    elsif state.ordered or state.has_priority or state.rate_count is not null or state.fleet is not null then
        return query select * from queue_worker_data.claim_lanes(state, read_at, max_count, claim.lease_seconds,
            suspects, max_lost, claim.worker);
        claimed := found;
    else
        -- One statement for the healthy case: it updates nothing if a candidate was claimed before. The array of ctid
        -- keeps the update on the rows that were locked, in index order, whatever the planner believes of the table.
        return query execute pg_catalog.format(
            'with c as materialized (
                 select m.ctid as tid, m.read_ct, m.vt from pgmq.%1$I m where m.vt <= $1 order by m.vt limit $2
                 for update skip locked),
             p as (
                 insert into queue_worker_data.tally (queue, pickups)
                 select $4, pg_catalog.array_agg(pg_catalog.date_part(''epoch'', $1 - c.vt)::real)
                 from c where pg_catalog.isfinite(c.vt) having coalesce(pg_catalog.max(c.read_ct), 1) = 0)
             update pgmq.%1$I m set vt = $1 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
             where m.ctid = any (array(select c.tid from c where not exists (select from c x where x.read_ct > 0)))
             returning case when m.headers ? ''expires_at'' and queue_worker_data.expired(m.headers, $1)
                            then ''expired'' else ''job'' end,
                       m.msg_id, m.read_ct, m.enqueued_at, m.message::text, m.headers::text, 0, 0, null::text',
            'q_' || claim.queue)
            using read_at, max_count, claim.lease_seconds, claim.queue;
        claimed := found;
        if not claimed then
            execute pg_catalog.format(
                'select pg_catalog.array_agg(c.ctid) from (
                     select m.ctid from pgmq.%I m where m.vt <= $1 order by m.vt limit $2 for update skip locked) c',
                'q_' || claim.queue)
                into candidates using read_at, max_count;
            if candidates is not null then
                return query select * from queue_worker_data.claim_troubled(claim.queue, candidates, read_at, max_count,
                    claim.lease_seconds, suspects, max_lost, claim.worker);
                claimed := true;
            end if;
        end if;
    end if;
    if claimed and claim.sleep then
        delete from queue_worker_data.sleepers s where s.queue = claim.queue and s.worker = claim.worker;
    elsif claim.sleep then
        insert into queue_worker_data.sleepers as s (queue, worker, until)
            values (claim.queue, claim.worker, read_at + interval '90 seconds')
            on conflict (queue, worker) do update set until = excluded.until
                where s.until < excluded.until - interval '45 seconds';
        due := queue_worker_data.next_due(claim.queue, read_at, state.ordered);
        if due is not null then
            item.kind := 'next';
            item.detail := pg_catalog.date_part('epoch', due - read_at)::text;
            return next item;
        end if;
    end if;
end $$;

-- Adds what a worker has measured since the last time: [{"queue", "bounds", "counts", "total"}], durations of handlers in
-- seconds by bucket.
create function queue_worker_data.record_timings(timings jsonb) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
    one record;
    taken bigint := 0;
begin
    for one in select t.* from pg_catalog.jsonb_to_recordset(record_timings.timings) t (
                   queue text, bounds double precision[], counts bigint[], total double precision)
               -- In one order, or two workers could wait for each other.
               order by t.queue
    loop
        if pg_catalog.cardinality(one.counts) is distinct from pg_catalog.cardinality(one.bounds) + 1 then
            raise exception 'counts must be one more than bounds' using errcode = '22023';
        end if;
        perform queue_worker_data.add_timings(one.queue, 'duration', one.bounds, one.counts, one.total);
        taken := taken + 1;
    end loop;
    return taken;
end $$;

create function queue_worker_data.list_timings()
returns table (queue text, kind text, bounds double precision[], counts bigint[], total double precision)
language sql stable security definer set search_path = '' as $$
    with b as (select queue_worker_data.pickup_bounds() as bounds),
    picked as (
        select t.queue, pg_catalog.width_bucket(p.seconds, b.bounds) + 1 as place, count(*) as n,
               sum(p.seconds::double precision) as total
        from b, queue_worker_data.tally t, pg_catalog.unnest(t.pickups) p (seconds) group by t.queue, 2),
    -- By bucket, folded or not.
    counted as (
        select t.queue, t.kind, t.bounds, u.place, u.n, case when u.place = 1 then t.total else 0 end as total
        from queue_worker_data.timings t, pg_catalog.unnest(t.counts) with ordinality u (n, place)
        union all
        select q.queue, 'pickup', b.bounds, s.place, coalesce(p.n, 0), coalesce(p.total, 0)
        from b cross join (select distinct p.queue from picked p) q
        cross join pg_catalog.generate_series(1, pg_catalog.cardinality(b.bounds) + 1) s (place)
        left join picked p on p.place = s.place and p.queue = q.queue),
    summed as (
        select c.queue, c.kind, c.bounds, c.place, sum(c.n)::bigint as n, sum(c.total) as total
        from counted c group by c.queue, c.kind, c.bounds, c.place)
    select s.queue, s.kind, s.bounds, pg_catalog.array_agg(s.n order by s.place), sum(s.total)
    from summed s where queue_worker_data.other_environment(s.queue) is null
    group by s.queue, s.kind, s.bounds order by s.queue, s.kind;
$$;

create function queue_worker_data.record_counts(counts jsonb) returns bigint
language sql security definer set search_path = '' as $$
    with c as (
        insert into queue_worker_data.counts as c (name, queue, count)
        select t.name, t.queue, sum(t.count)
        from pg_catalog.jsonb_to_recordset(record_counts.counts) t (name text, queue text, count bigint)
        group by t.name, t.queue order by t.name, t.queue
        on conflict (name, queue) do update set count = c.count + excluded.count
        returning 1)
    select count(*) from c;
$$;

create function queue_worker_data.list_counts() returns table (name text, queue text, count bigint)
language sql stable security definer set search_path = '' as $$
    select c.name, c.queue, c.count from queue_worker_data.counts c order by c.name, c.queue;
$$;

create function queue_worker.record_timings(timings jsonb, counts jsonb default '[]') returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.record_timings(record_timings.timings)
           + queue_worker_data.record_counts(record_timings.counts);
$$;
create function queue_worker.list_timings()
returns table (queue text, kind text, bounds double precision[], counts bigint[], total double precision)
language sql set search_path = '' as $$
    select * from queue_worker_data.list_timings();
$$;
create function queue_worker.list_counts() returns table (name text, queue text, count bigint)
language sql set search_path = '' as $$
    select * from queue_worker_data.list_counts();
$$;

call queue_worker_data.allow('queue_worker', array['record_timings', 'record_counts']);
do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['list_timings', 'list_counts']);
    end loop;
end $$;

call queue_worker_data.lock_down();
call queue_worker_data.remember();
