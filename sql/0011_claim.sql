-- min_worker: 0.1.0
-- Claims with lanes and limits. A queue that uses none of them is claimed by the same statement as before.

-- Candidates by priority, then by due time. Each level is probed for itself, so that what is delayed or in flight is
-- never walked past. Locks what it returns.
create function queue_worker_data.pick_priority(queue text, read_at timestamptz, max_count int) returns tid[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    name constant text := 'q_' || pick_priority.queue;
    prio constant text := queue_worker_data.priority_expression();
    level smallint := 101;
    found_here tid[];
    picked tid[] := '{}';
begin
    loop
        execute pg_catalog.format(
            'select %1$s from pgmq.%2$I m where m.headers ? ''priority'' and %1$s < $1 order by %1$s desc limit 1',
            prio, name) into level using level;
        exit when level is null or level = 0 or pg_catalog.cardinality(picked) >= max_count;
        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid) from (
                 select m.ctid from pgmq.%2$I m where m.headers ? ''priority'' and %1$s = $1 and m.vt <= $2
                 order by m.vt limit $3 for update skip locked) x', prio, name)
            into found_here using level, read_at, max_count - pg_catalog.cardinality(picked);
        picked := picked || coalesce(found_here, '{}');
    end loop;
    if pg_catalog.cardinality(picked) < max_count then
        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid) from (
                 select m.ctid from pgmq.%I m where m.vt <= $1 and m.ctid <> all ($2)
                 order by m.vt limit $3 for update skip locked) x', name)
            into found_here using read_at, picked, max_count - pg_catalog.cardinality(picked);
        picked := picked || coalesce(found_here, '{}');
    end if;
    return nullif(picked, '{}');
end $$;

-- Whether a message says that it is of no use any more; false where what it says is no time.
create function queue_worker_data.expired(headers jsonb, read_at timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return coalesce((headers ->> 'expires_at')::timestamptz <= read_at, false);
exception when others then
    return false;
end $$;

-- Moves one leased message to the dead letters; false when the receipt is stale. One that expired did not run, so it is
-- charged nothing for that.
create or replace function queue_worker_data.bury(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, kind text, reason text, error text, worker text)
returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    ran constant int := case when bury.reason = 'expired' then 0 else 1 end;
    body jsonb;
    head jsonb;
    charged int;
    found_id bigint;
begin
    execute pg_catalog.format(
        'delete from pgmq.%I m where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3
         returning m.msg_id, m.message, m.headers', 'q_' || bury.queue)
        into found_id, body, head using bury.msg_id, bury.read_ct, bury.enqueued_at;
    if found_id is null then
        return false;
    end if;
    delete from queue_worker_data.trouble t
        where t.queue = bury.queue and t.msg_id = bury.msg_id and t.enqueued_at = bury.enqueued_at
        returning case when bury.kind = 'lost' then t.lost else t.failures + ran end into charged;
    charged := coalesce(charged, ran);
    insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, worker)
        values (bury.queue, bury.msg_id, charged, bury.kind, bury.error, bury.worker);
    insert into queue_worker_data.dead_letters
        (queue, msg_id, payload, headers, attempts, reason, error, enqueued_at, redriven_from)
        values (bury.queue, bury.msg_id, body, head, charged, bury.reason, bury.error, bury.enqueued_at,
                case when pg_catalog.jsonb_typeof(head -> 'redriven_from') = 'number'
                          and head ->> 'redriven_from' ~ '^[0-9]{1,18}$'
                     then (head ->> 'redriven_from')::bigint end);
    return true;
end $$;

drop function queue_worker_data.claim_troubled(text, tid[], timestamptz, int, double precision, int, int, text);

-- The rare half of a claim: some candidate was claimed before. Clean ones are taken; of the suspects at most one,
-- if the worker takes one (suspects 1: beside its other work, 2: its process is empty). max_count: up to so many, others
-- in order of due time take the places of suspects that must wait; of an ordered queue only those without a group, its
-- groups take turns by themselves.
create function queue_worker_data.claim_troubled(
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
        'with u as (
             update pgmq.%I m set vt = $2 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
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

-- The claim of a queue that uses lanes or limits; `state` is its row. Rows as those of `claim`, and 'limited': nothing
-- may start now, for another detail seconds where that is known.
create function queue_worker_data.claim_lanes(
    state queue_worker_data.queues, read_at timestamptz, max_count int, lease_seconds double precision,
    suspects int, max_lost int, worker text)
returns setof queue_worker_data.turn
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    limited constant boolean := state.rate_count is not null or state.fleet is not null;
    granted record;
    candidates tid[];
    item queue_worker_data.turn;
    ids bigint[] := '{}';
    read_cts int[] := '{}';
    enqueued_ats timestamptz[] := '{}';
    troubled boolean := false;
begin
    -- Before any row of ours is locked: whoever empties or drops the queue locks its table first and those rows last.
    execute pg_catalog.format('lock table pgmq.%I in row exclusive mode', 'q_' || state.queue);
    if limited then
        granted := queue_worker_data.allowance(state.queue, state.rate_count, state.rate_seconds, state.fleet);
        if granted.allowed = 0 then
            item.kind := 'limited';
            item.detail := granted.wait_seconds::text;
            return next item;
            return;
        end if;
        max_count := least(max_count, granted.allowed);
        read_at := pg_catalog.clock_timestamp();
    end if;
    candidates := case when state.ordered
        then queue_worker_data.pick_ordered(state.queue, read_at, max_count, coalesce(state.per_group, 1),
                 claim_lanes.lease_seconds)
        else queue_worker_data.pick_priority(state.queue, read_at, max_count) end;
    if candidates is null then
        return;
    end if;
    for item in select * from queue_worker_data.claim_troubled(state.queue, candidates, read_at, max_count,
                   claim_lanes.lease_seconds, suspects, max_lost, claim_lanes.worker, state.ordered)
    loop
        troubled := troubled or item.lost > 0 or item.kind in ('suspect', 'alone');
        if limited and item.kind = 'job' then
            ids := ids || item.msg_id;
            read_cts := read_cts || item.read_ct;
            enqueued_ats := enqueued_ats || item.enqueued_at;
        end if;
        return next item;
    end loop;
    if pg_catalog.cardinality(ids) > 0 then
        perform queue_worker_data.note_started(state.queue, state.rate_seconds, state.fleet, ids, read_cts,
            enqueued_ats);
    end if;
    if state.ordered and troubled then
        -- Suspects that must wait, and what must wait for one: their groups were entered as if they ran.
        execute pg_catalog.format(
            'insert into queue_worker_data.bells (queue, key)
             select distinct $1, %s from pgmq.%I where ctid = any ($2) and vt <= $3 and headers ? ''group_key''',
            queue_worker_data.group_expression(), 'q_' || state.queue) using state.queue, candidates, read_at;
    end if;
end $$;

-- When something of a queue will be due that is not due now, null where nothing is known of.
create function queue_worker_data.next_due(queue text, read_at timestamptz, ordered boolean) returns timestamptz
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    rings bigint;
    due timestamptz;
begin
    if next_due.ordered then
        execute 'select b.bell_id from queue_worker_data.bells b where b.queue = $1 order by b.bell_id limit 1'
            into rings using next_due.queue;
        if rings is not null then
            -- Whoever claims at this moment has missed them, or holds their groups.
            return read_at + interval '50 ms';
        end if;
        execute pg_catalog.format(
            'with recursive levels (priority) as (
                 (select %1$s from pgmq.%2$I where (headers ? ''group_key'') is not true order by 1 desc limit 1)
                 union all
                 select (select %1$s from pgmq.%2$I
                         where (headers ? ''group_key'') is not true and %1$s < l.priority order by 1 desc limit 1)
                 from levels l where l.priority is not null)
             select least(
                 (select min(g.due_at) from queue_worker_data.groups g
                  where g.queue = $1 and g.due_at > $2 and g.due_at < ''infinity''),
                 (select min(f.vt) from levels l cross join lateral (
                      select vt from pgmq.%2$I
                      where (headers ? ''group_key'') is not true and %1$s = l.priority and vt > $2 and vt < ''infinity''
                      order by vt limit 1) f))',
            queue_worker_data.priority_expression(), 'q_' || next_due.queue) into due using next_due.queue, read_at;
        return due;
    end if;
    execute pg_catalog.format('select m.vt from pgmq.%I m where m.vt > $1 and m.vt < ''infinity'' order by m.vt limit 1',
        'q_' || next_due.queue) into due using read_at;
    return due;
end $$;

-- Claims up to max_count due messages for lease_seconds, in order of due time (priority, group: where the queue uses
-- them). Rows by kind: 'job' a message; 'expired' one that is too late to run; 'dead' one that was given up here
-- (detail: reason); 'suspect' | 'alone' one waits for a worker that takes it; 'paused' (detail: for how many seconds,
-- if it ends by itself); 'probe' the breaker is open and this is its trial; 'limited' nothing may start (detail: for how
-- many seconds); 'next' nothing is due before detail seconds. `sleep`: if nothing is due, ask for a NOTIFY.
create or replace function queue_worker.claim(
    queue text, max_count int, lease_seconds double precision,
    suspects int default 0, max_lost int default 5, worker text default '', sleep boolean default false)
returns setof queue_worker_data.turn
language plpgsql set search_path = '' as $$
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
                 select m.ctid as tid, m.read_ct from pgmq.%1$I m where m.vt <= $1 order by m.vt limit $2
                 for update skip locked)
             update pgmq.%1$I m set vt = $1 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
             where m.ctid = any (array(select c.tid from c where not exists (select from c x where x.read_ct > 0)))
             returning case when m.headers ? ''expires_at'' and queue_worker_data.expired(m.headers, $1)
                            then ''expired'' else ''job'' end,
                       m.msg_id, m.read_ct, m.enqueued_at, m.message::text, m.headers::text, 0, 0, null::text',
            'q_' || claim.queue)
            using read_at, max_count, claim.lease_seconds;
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

call queue_worker_data.lock_down();
