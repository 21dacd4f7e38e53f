-- min_worker: 0.1.0
-- Claims with lanes and limits: priority, strict order per group, rate and concurrency across the fleet, the breaker.
-- A queue that uses none of them is claimed by the same statement as before; see docs/limits.md.

-- A group is the messages of an ordered queue that share a group_key. due_at: when to look at it next ('infinity': it
-- was empty); priority: that of its first message. The queue's rows are the truth, this is an order to look at them.
create table queue_worker_data.groups (
    queue    text not null,
    key      text not null,
    priority smallint not null default 0,
    due_at   timestamptz not null,
    primary key (queue, key)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, fillfactor = 70);
create index groups_due_idx on queue_worker_data.groups (queue, priority desc, due_at);

-- "Look at this group": written by whoever inserts or settles, read by claims, so that neither waits for the other.
create table queue_worker_data.bells (
    bell_id bigint generated always as identity primary key,
    queue   text not null,
    key     text not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
create index bells_queue_idx on queue_worker_data.bells (queue, bell_id);

-- When a queue with a rate limit started messages, and how many; locked by every claim of such a queue.
create table queue_worker_data.limits (
    queue   text primary key,
    used_at timestamptz[] not null default '{}',
    used    int[] not null default '{}'
);

-- Receipts of what runs in a queue with a fleet limit. A receipt that no row of the queue matches any more is spent.
create table queue_worker_data.slots (
    queue       text not null,
    msg_id      bigint not null,
    read_ct     int not null,
    enqueued_at timestamptz not null,
    primary key (queue, msg_id, read_ct, enqueued_at)
);

alter table queue_worker_data.groups enable row level security;
alter table queue_worker_data.bells enable row level security;
alter table queue_worker_data.limits enable row level security;
alter table queue_worker_data.slots enable row level security;


-- ---------------------------------------------------------------------------------------------------- ordered queues

-- The group of a message, as the index has it: total, whatever stands in the headers.
create function queue_worker_data.group_expression() returns text
language sql immutable set search_path = '' as $$
    select 'coalesce("left"(headers ->> ''group_key'', 200), '''')';
$$;

-- Rings for the groups of inserted or deleted rows. SECURITY DEFINER: it runs as whoever changes the queue.
create function queue_worker_data.ring() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    insert into queue_worker_data.bells (queue, key)
        select distinct tg_argv[0], coalesce("left"(c.headers ->> 'group_key', 200), '')
        from changed c where c.headers ? 'group_key';
    -- A message that became free by a settle is news to whoever sleeps, like one that was sent.
    if tg_op = 'DELETE' and found
       and exists (select from queue_worker_data.sleepers s
                   where s.queue = tg_argv[0] and s.until > pg_catalog.clock_timestamp()) then
        perform pg_catalog.pg_notify('queue_worker', tg_argv[0]);
    end if;
    return null;
end $$;

-- The same for a row that is due sooner than before, or belongs to another group now.
create function queue_worker_data.ring_row() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    insert into queue_worker_data.bells (queue, key)
        select distinct tg_argv[0], coalesce("left"(c.headers ->> 'group_key', 200), '')
        from (values (old.headers), (new.headers)) c (headers) where c.headers ? 'group_key';
    return null;
end $$;

create function queue_worker_data.equip_ordered(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    name constant text := 'q_' || equip_ordered.queue;
begin
    execute pg_catalog.format(
        'create index if not exists %I on pgmq.%I (%s, msg_id) where headers ? ''group_key''',
        name || '_group_idx', name, queue_worker_data.group_expression());
    execute pg_catalog.format(
        'create index if not exists %I on pgmq.%I (%s desc, vt) where (headers ? ''group_key'') is not true',
        name || '_free_idx', name, queue_worker_data.priority_expression());
    execute pg_catalog.format(
        'create or replace trigger queue_worker_ring after insert on pgmq.%I referencing new table as changed
         for each statement execute function queue_worker_data.ring(%L)', name, equip_ordered.queue);
    execute pg_catalog.format(
        'create or replace trigger queue_worker_ring_gone after delete on pgmq.%I referencing old table as changed
         for each statement execute function queue_worker_data.ring(%L)', name, equip_ordered.queue);
    execute pg_catalog.format(
        'create or replace trigger queue_worker_ring_row after update on pgmq.%I for each row
         when (new.vt < old.vt or new.headers is distinct from old.headers)
         execute function queue_worker_data.ring_row(%L)', name, equip_ordered.queue);
    -- What stands there already.
    execute pg_catalog.format(
        'insert into queue_worker_data.bells (queue, key)
         select distinct $1, %s from pgmq.%I where headers ? ''group_key''',
        queue_worker_data.group_expression(), name) using equip_ordered.queue;
end $$;

-- Makes a queue, or takes over one that pgmq made; does nothing for one that is ready. `ordered`: messages that share a
-- group_key run one after the other; a queue can become ordered later, and stays it.
create or replace function queue_worker.create_queue(queue text, ordered boolean default false) returns void
language plpgsql set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    name constant text := pg_catalog.format('pgmq.%I', 'q_' || coalesce(create_queue.queue, ''));
    state record;
begin
    perform queue_worker_data.check_queue_name(create_queue.queue);
    -- A claim addresses rows by ctid, which is unique within one partition only.
    if exists (select from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass(name) and c.relkind = 'p') then
        raise exception 'queue "%": partitioned queues are not available in this version', create_queue.queue
            using errcode = '0A000';
    end if;
    select q.ordered into state from queue_worker_data.queues q where q.queue = create_queue.queue;
    if state is not null and (state.ordered or not create_queue.ordered)
       and exists (select from pg_catalog.pg_trigger g
                   where g.tgrelid = pg_catalog.to_regclass(name) and g.tgname = 'queue_worker_priority')
       and (not state.ordered or exists (select from pg_catalog.pg_trigger g
                   where g.tgrelid = pg_catalog.to_regclass(name) and g.tgname = 'queue_worker_ring_row')) then
        return;
    end if;
    -- Several workers start at once; a transaction lock also works behind a transaction pooler.
    perform pg_catalog.pg_advisory_xact_lock(1903520, pg_catalog.hashtext(create_queue.queue));
    -- The table too: pgmq keeps the name of a queue whose table was dropped by hand.
    if not exists (select from pgmq.meta m where m.queue_name = create_queue.queue)
       or pg_catalog.to_regclass(name) is null then
        perform pgmq.create(queue_name => create_queue.queue);
    end if;
    perform queue_worker_data.equip(create_queue.queue);
    perform queue_worker_data.tune(create_queue.queue);
    if create_queue.ordered or state.ordered then
        perform queue_worker_data.equip_ordered(create_queue.queue);
    end if;
    insert into queue_worker_data.queues as q (queue, ordered) values (create_queue.queue, create_queue.ordered)
        on conflict (queue) do update set ordered = true where create_queue.ordered and not q.ordered;
end $$;

-- Looks at the groups that somebody rang for, and enters when they are due. One claim at a time does it: the others
-- find what it has entered. Waits for nobody: a group that another claim holds is looked at next time.
create function queue_worker_data.answer_bells(queue text, read_at timestamptz, at_once int) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    most_bells constant int := 5000;
    last_bell bigint;
    rung text[];
    busy text[];
begin
    if not exists (select from queue_worker_data.bells b where b.queue = answer_bells.queue)
       or not pg_catalog.pg_try_advisory_xact_lock(1903522, pg_catalog.hashtext(answer_bells.queue)) then
        return;
    end if;
    select max(x.bell_id), pg_catalog.array_agg(distinct x.key) into last_bell, rung from (
        select b.bell_id, b.key from queue_worker_data.bells b where b.queue = answer_bells.queue
        order by b.bell_id limit most_bells) x;
    with mine as (
        select g.key from queue_worker_data.groups g where g.queue = answer_bells.queue and g.key = any (rung)
        order by g.key for update skip locked)
    select pg_catalog.array_agg(g.key) into busy from queue_worker_data.groups g
        where g.queue = answer_bells.queue and g.key = any (rung) and g.key not in (select mine.key from mine);
    -- The bells go before the look: what was committed with them is then visible to it.
    delete from queue_worker_data.bells b
        where b.queue = answer_bells.queue and b.bell_id <= last_bell and b.key = any (rung)
          and b.key <> all (coalesce(busy, '{}'));
    execute pg_catalog.format(
        'insert into queue_worker_data.groups as g (queue, key, priority, due_at)
         select $1, k.key, coalesce(h.priority, 0),
                case when h.vt is null then ''infinity'' else greatest(h.vt, $3) end
         from unnest($2) k (key) left join lateral (
             select min(x.vt) as vt, (pg_catalog.array_agg(x.priority))[1] as priority from (
                 select m.vt, %1$s as priority from pgmq.%2$I m
                 where m.headers ? ''group_key'' and %3$s = k.key order by m.msg_id limit $4) x) h on true
         where k.key <> all ($5) order by k.key
         on conflict (queue, key) do update set priority = excluded.priority,
             due_at = case when excluded.due_at = $3 then least(g.due_at, $3) else excluded.due_at end',
        queue_worker_data.priority_expression(), 'q_' || answer_bells.queue, queue_worker_data.group_expression())
        using answer_bells.queue, rung, read_at, at_once, coalesce(busy, '{}');
end $$;

-- Candidates of an ordered queue: of each due group the first message that is due among its first `at_once`, and
-- messages without a group; by priority, then by how long they wait. Locks what it returns.
create function queue_worker_data.pick_ordered(
    queue text, read_at timestamptz, max_count int, at_once int, lease_seconds double precision)
returns tid[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    busy_pause constant interval := '0.5 s';
    name constant text := 'q_' || pick_ordered.queue;
    prio constant text := queue_worker_data.priority_expression();
    grp constant text := queue_worker_data.group_expression();
    level smallint := 101;
    keys text[];
    heads record;
    free tid[];
    found_here tid[];
    picked tid[] := '{}';
begin
    perform queue_worker_data.answer_bells(pick_ordered.queue, read_at, at_once);
    loop
        execute pg_catalog.format(
            'select max(x.priority) from (
                 (select g.priority from queue_worker_data.groups g where g.queue = $1 and g.priority < $2
                  order by g.priority desc limit 1)
                 union all
                 (select %1$s from pgmq.%2$I m where (m.headers ? ''group_key'') is not true and %1$s < $2
                  order by %1$s desc limit 1)) x (priority)', prio, name)
            into level using pick_ordered.queue, level;
        exit when level is null or pg_catalog.cardinality(picked) >= max_count;

        select pg_catalog.array_agg(x.key order by x.due_at) into keys from (
            select g.key, g.due_at from queue_worker_data.groups g
            where g.queue = pick_ordered.queue and g.priority = level and g.due_at <= read_at
            order by g.due_at limit max_count - pg_catalog.cardinality(picked) for update skip locked) x;
        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid order by x.vt) from (
                 select m.ctid, m.vt from pgmq.%2$I m
                 where (m.headers ? ''group_key'') is not true and %1$s = $1 and m.vt <= $2
                 order by m.vt limit $3 for update skip locked) x', prio, name)
            into free using level, read_at, max_count - pg_catalog.cardinality(picked);
        if keys is null then
            picked := picked || coalesce(free, '{}');
            continue;
        end if;
        -- Looked at in a statement of its own, after the groups were locked: its snapshot has all that was settled.
        execute pg_catalog.format(
            'with looked as materialized (
                 select k.key, k.n, g.due_at, h.tids, h.vts, h.first_priority,
                        (select i from unnest(h.vts) with ordinality v (vt, i) where v.vt <= $3 order by i limit 1) as at
                 from unnest($2) with ordinality k (key, n)
                 join queue_worker_data.groups g on g.queue = $1 and g.key = k.key
                 cross join lateral (
                     select pg_catalog.array_agg(x.ctid) as tids, pg_catalog.array_agg(x.vt) as vts,
                            (pg_catalog.array_agg(x.priority))[1] as first_priority from (
                         select m.ctid, m.vt, %1$s as priority from pgmq.%2$I m
                         where m.headers ? ''group_key'' and %3$s = k.key order by m.msg_id limit $4) x) h),
             offered as (
                 select l.key, l.due_at, l.tids[l.at] as tid from looked l
                 where l.at is not null and l.first_priority >= $5),
             chosen as (
                 select x.key, x.tid from (
                     select o.key, o.tid, o.due_at from offered o
                     union all
                     select null, f.tid, f.vt from (select m.ctid as tid, m.vt from pgmq.%2$I m where m.ctid = any ($6)) f
                     ) x order by x.due_at limit $7),
             mine as materialized (
                 select m.ctid as tid from pgmq.%2$I m
                 where m.ctid = any (array(select c.tid from chosen c)) and m.vt <= $3 for update skip locked),
             filed as (
                 update queue_worker_data.groups g set priority = coalesce(l.first_priority, 0),
                     due_at = case
                         when l.tids is null then ''infinity''
                         when l.at is null then (select min(v) from unnest(l.vts) v)
                         when l.first_priority < $5 or c.key is null then g.due_at
                         when c.tid not in (select mine.tid from mine) then $3 + $9
                         when (select count(*) from unnest(l.vts) v where v <= $3) > 1 then $3
                         else least($8, (select min(v) from unnest(l.vts) v where v > $3)) end
                 from looked l left join chosen c on c.key = l.key
                 where g.queue = $1 and g.key = l.key)
             select pg_catalog.array_agg(mine.tid) from mine', prio, name, grp)
            into found_here using pick_ordered.queue, keys, read_at, at_once, level, coalesce(free, '{}'),
                max_count - pg_catalog.cardinality(picked),
                read_at + pg_catalog.make_interval(secs => lease_seconds), busy_pause;
        picked := picked || coalesce(found_here, '{}');
    end loop;
    return nullif(picked, '{}');
end $$;


-- ---------------------------------------------------------------------------------------------------- priority

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


-- ---------------------------------------------------------------------------------------------------- claim

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
-- if the worker takes one (suspects 1: beside its other work, 2: its process is empty). refill: up to so many others in
-- order of due time take the places of suspects that must wait.
create function queue_worker_data.claim_troubled(
    queue text, candidates tid[], read_at timestamptz, refill int, lease_seconds double precision,
    suspects int, max_lost int, worker text)
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

    if dropped > 0 and pg_catalog.cardinality(take) < refill and chosen_lost < alone_from then
        -- Suspects that must wait stand in front of the order of due time; what is behind them must not wait too.
        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid) from (
                 select m.ctid from pgmq.%I m
                 where m.vt <= $1 and m.ctid <> all ($2)
                   and (m.read_ct = 0 or exists (select from queue_worker_data.trouble t
                            where t.queue = $3 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
                              and t.settled_ct = m.read_ct))
                 order by m.vt limit $4 for update skip locked) x', 'q_' || claim_troubled.queue)
            into others using read_at, candidates, claim_troubled.queue, refill - pg_catalog.cardinality(take);
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

-- How many messages a queue with limits may start now. The row that it locks stays locked until the claim has written
-- what it started. Sets wait_seconds where there is nothing to be had: when the rate allows the next, or null.
create function queue_worker_data.allowance(
    queue text, rate_count int, rate_seconds int, fleet int, out allowed int, out wait_seconds double precision)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    l record;
    read_at timestamptz;
    running int;
    free int;
begin
    allowed := 2147483647;
    select x.used_at, x.used into l from queue_worker_data.limits x where x.queue = allowance.queue for update;
    if not found then
        insert into queue_worker_data.limits (queue) values (allowance.queue) on conflict do nothing;
        select x.used_at, x.used into l from queue_worker_data.limits x where x.queue = allowance.queue for update;
    end if;
    -- Read after the lock was had: what another claim wrote lies before it.
    read_at := pg_catalog.clock_timestamp();
    if allowance.fleet is not null then
        execute pg_catalog.format(
            'with d as (
                 delete from queue_worker_data.slots s where s.queue = $1 and not exists (
                     select from pgmq.%1$I m where m.msg_id = s.msg_id and m.read_ct = s.read_ct
                         and m.enqueued_at = s.enqueued_at and m.vt > $2)
                 returning 1)
             select (select count(*) from queue_worker_data.slots s where s.queue = $1) - (select count(*) from d)',
            'q_' || allowance.queue) into running using allowance.queue, read_at;
        allowed := greatest(allowance.fleet - running, 0);
    end if;
    if allowance.rate_count is not null then
        select allowance.rate_count - coalesce(sum(u.used), 0),
               pg_catalog.date_part('epoch', min(u.at) - read_at) + allowance.rate_seconds
            into free, wait_seconds
            from unnest(l.used_at, l.used) u (at, used)
            where u.at > read_at - pg_catalog.make_interval(secs => allowance.rate_seconds);
        allowed := least(allowed, greatest(free, 0));
        if free > 0 then
            wait_seconds := null;
        end if;
    end if;
end $$;

-- Writes down what a queue with limits has started.
create function queue_worker_data.note_started(
    queue text, rate_seconds int, fleet int, ids bigint[], read_cts int[], enqueued_ats timestamptz[])
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    now_at constant timestamptz := pg_catalog.clock_timestamp();
    -- Starts of one 250th of the window are one entry, dated to its end, so that the row stays small and no window ever
    -- holds more than is allowed.
    grain constant double precision := note_started.rate_seconds / 250.0;
    entry_at constant timestamptz := pg_catalog.to_timestamp(
        pg_catalog.ceil(pg_catalog.date_part('epoch', now_at) / grain) * grain);
begin
    if note_started.fleet is not null then
        insert into queue_worker_data.slots (queue, msg_id, read_ct, enqueued_at)
            select note_started.queue, r.msg_id, r.read_ct, r.enqueued_at
            from unnest(ids, read_cts, enqueued_ats) r (msg_id, read_ct, enqueued_at)
            on conflict do nothing;
    end if;
    if note_started.rate_seconds is not null then
        update queue_worker_data.limits l set (used_at, used) = (
            select pg_catalog.array_agg(x.at order by x.at), pg_catalog.array_agg(x.used order by x.at) from (
                select u.at, sum(u.used)::int as used from (
                    select p.at, p.used from unnest(l.used_at, l.used) p (at, used)
                        where p.at > now_at - pg_catalog.make_interval(secs => note_started.rate_seconds)
                    union all
                    select entry_at, pg_catalog.cardinality(ids)) u
                group by u.at) x)
            where l.queue = note_started.queue;
    end if;
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
    answered int := 0;
begin
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
    for item in select * from queue_worker_data.claim_troubled(state.queue, candidates, read_at,
                   case when state.ordered then 0 else max_count end, claim_lanes.lease_seconds, suspects, max_lost,
                   claim_lanes.worker)
    loop
        answered := answered + (item.msg_id is not null)::int;
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
    if state.ordered and answered < pg_catalog.cardinality(candidates) then
        -- Suspects that must wait: their groups were entered as if they ran.
        execute pg_catalog.format(
            'insert into queue_worker_data.bells (queue, key)
             select distinct $1, %s from pgmq.%I where ctid = any ($2) and vt <= $3 and headers ? ''group_key''',
            queue_worker_data.group_expression(), 'q_' || state.queue) using state.queue, candidates, read_at;
    end if;
end $$;

-- Of a queue whose breaker is open: true if this claim may try one message.
create function queue_worker_data.may_probe(queue text, read_at timestamptz) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    update queue_worker_data.queues q
        set broken_until = read_at + pg_catalog.make_interval(secs => coalesce(q.broken_seconds, 10))
        where q.ctid = any (array(select x.ctid from queue_worker_data.queues x
                                  where x.queue = may_probe.queue and x.broken_until <= read_at
                                  for update skip locked));
    return found;
end $$;

-- When something of a queue will be due that is not due now, null where nothing is known of.
create function queue_worker_data.next_due(queue text, read_at timestamptz, ordered boolean) returns timestamptz
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    due timestamptz;
begin
    if next_due.ordered then
        select min(g.due_at) into due from queue_worker_data.groups g
            where g.queue = next_due.queue and g.due_at > read_at and g.due_at < 'infinity';
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
        max_count := 1;
        item.kind := 'probe';
        return next item;
    end if;
    if state.ordered or state.has_priority or state.rate_count is not null or state.fleet is not null then
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
    if not claimed and state.broken_until is not null then
        -- The trial found nothing to try: the next message is it.
        update queue_worker_data.queues q set broken_until = read_at where q.queue = claim.queue;
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


-- ---------------------------------------------------------------------------------------------------- operators

-- At most `count` starts in any `per_seconds` of the queue, by all workers together; null, null lifts the limit.
create function queue_worker.set_rate_limit(queue text, count int, per_seconds int default 1) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(set_rate_limit.queue);
    if set_rate_limit.count not between 1 and 1000000 then
        raise exception 'count must be 1 to 1000000, or null for no limit' using errcode = '22023';
    elsif set_rate_limit.count is not null and coalesce(per_seconds, 0) not between 1 and 86400 then
        raise exception 'per_seconds must be 1 to 86400' using errcode = '22023';
    end if;
    insert into queue_worker_data.queues as q (queue, rate_count, rate_seconds)
        values (set_rate_limit.queue, set_rate_limit.count, case when set_rate_limit.count is not null then per_seconds end)
        on conflict (queue) do update set rate_count = excluded.rate_count, rate_seconds = excluded.rate_seconds;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('set_rate_limit', set_rate_limit.queue,
                pg_catalog.jsonb_build_object('count', set_rate_limit.count, 'per_seconds', per_seconds));
    perform pg_catalog.pg_notify('queue_worker', set_rate_limit.queue);
end $$;

-- At most `fleet` messages of the queue run at a time, in all workers together; null lifts the limit. per_group: of an
-- ordered queue, how many messages of one group (null: 1, strict order; more: they start in order and may overlap).
create function queue_worker.set_concurrency(queue text, fleet int default null, per_group int default null)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(set_concurrency.queue);
    if set_concurrency.fleet not between 1 and 100000 then
        raise exception 'fleet must be 1 to 100000, or null for no limit' using errcode = '22023';
    elsif set_concurrency.per_group not between 1 and 1000 then
        raise exception 'per_group must be 1 to 1000, or null for strict order' using errcode = '22023';
    elsif set_concurrency.per_group is not null and not exists (
            select from queue_worker_data.queues q where q.queue = set_concurrency.queue and q.ordered) then
        raise exception 'queue "%" has no groups, so per_group says nothing', set_concurrency.queue
            using errcode = '22023',
                  hint = pg_catalog.format('select queue_worker.create_queue(%L, ordered => true);',
                                           set_concurrency.queue);
    end if;
    insert into queue_worker_data.queues as q (queue, fleet, per_group)
        values (set_concurrency.queue, set_concurrency.fleet, set_concurrency.per_group)
        on conflict (queue) do update set fleet = excluded.fleet, per_group = excluded.per_group;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('set_concurrency', set_concurrency.queue,
                pg_catalog.jsonb_build_object('fleet', set_concurrency.fleet, 'per_group', set_concurrency.per_group));
    perform pg_catalog.pg_notify('queue_worker', set_concurrency.queue);
end $$;

-- The lanes and limits of a queue; always one row.
create function queue_worker.limits(queue text)
returns table (ordered boolean, rate_count int, rate_seconds int, fleet int, per_group int)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(limits.queue);
    return query select coalesce(q.ordered, false), q.rate_count, q.rate_seconds, q.fleet, q.per_group
        from (select) x left join queue_worker_data.queues q on q.queue = limits.queue;
end $$;

-- Opens the breaker: nothing of the queue is claimed for `seconds`, then one message per `probe_seconds` until one
-- succeeds. Workers call it; it never shortens a pause under way.
create function queue_worker.trip(
    queue text, seconds double precision, probe_seconds double precision, reason text, worker text default '')
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := pg_catalog.clock_timestamp();
    first_time boolean;
begin
    perform queue_worker_data.check_queue(trip.queue);
    insert into queue_worker_data.queues as q (queue, broken_at, broken_until, broken_seconds, broken_reason)
        values (trip.queue, read_at, read_at + pg_catalog.make_interval(secs => least(greatest(seconds, 1), 86400)),
                least(greatest(probe_seconds, 1), 86400), trip.reason)
        on conflict (queue) do update set broken_at = coalesce(q.broken_at, excluded.broken_at),
            broken_until = greatest(q.broken_until, excluded.broken_until),
            broken_seconds = excluded.broken_seconds, broken_reason = excluded.broken_reason
        returning q.broken_at = read_at into first_time;
    if first_time then
        insert into queue_worker_data.audit (action, queue, detail)
            values ('trip', trip.queue, pg_catalog.jsonb_build_object(
                'reason', trip.reason, 'seconds', trip.seconds, 'worker', trip.worker));
    end if;
end $$;

-- Closes the breaker; true if it was open. Workers call it after a trial that succeeded.
create function queue_worker.close_breaker(queue text, worker text default '') returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(close_breaker.queue);
    update queue_worker_data.queues q
        set broken_at = null, broken_until = null, broken_seconds = null, broken_reason = null
        where q.queue = close_breaker.queue and q.broken_at is not null;
    if not found then
        return false;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('close_breaker', close_breaker.queue, pg_catalog.jsonb_build_object('worker', close_breaker.worker));
    perform pg_catalog.pg_notify('queue_worker', close_breaker.queue);
    return true;
end $$;

-- Ends a pause, whether a person or the breaker made it.
create or replace function queue_worker.resume(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(resume.queue);
    update queue_worker_data.queues q set paused_at = null, pause_reason = null, broken_at = null, broken_until = null,
            broken_seconds = null, broken_reason = null
        where q.queue = resume.queue;
    insert into queue_worker_data.audit (action, queue) values ('resume', resume.queue);
    perform pg_catalog.pg_notify('queue_worker', resume.queue);
end $$;

-- Forgets groups that have been empty, and rings for groups that nobody has rung for (say, after a restore that left
-- our tables out); returns how many it forgot. Housekeeping calls it.
create function queue_worker_data.prune_groups(queue text, max_count int) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    gone bigint;
begin
    -- The lock of answer_bells: nobody enters groups meanwhile.
    if not exists (select from queue_worker_data.queues q where q.queue = prune_groups.queue and q.ordered)
       or not pg_catalog.pg_try_advisory_xact_lock(1903522, pg_catalog.hashtext(prune_groups.queue)) then
        return 0;
    end if;
    delete from queue_worker_data.groups g where g.ctid = any (array(
        select x.ctid from queue_worker_data.groups x where x.queue = prune_groups.queue and x.due_at = 'infinity'
        limit max_count for update skip locked));
    get diagnostics gone = row_count;
    execute pg_catalog.format(
        'insert into queue_worker_data.bells (queue, key)
         with recursive k (key) as (
             (select %1$s from pgmq.%2$I where headers ? ''group_key'' order by 1 limit 1)
             union all
             select (select %1$s from pgmq.%2$I where headers ? ''group_key'' and %1$s > k.key order by 1 limit 1)
             from k where k.key is not null)
         select $1, k.key from k where k.key is not null
             and not exists (select from queue_worker_data.groups g
                             where g.queue = $1 and g.key = k.key and g.due_at < ''infinity'')',
        queue_worker_data.group_expression(), 'q_' || prune_groups.queue) using prune_groups.queue;
    return gone;
end $$;

call queue_worker_data.lock_down();
