-- min_worker: 0.1.0
-- Ordered queues: what keeps the order, and which messages of them are candidates of a claim. See docs/limits.md.

-- A group is the messages of an ordered queue that share a group_key. due_at: when to look at it next ('infinity': it
-- was empty); priority: that of its first message; held: those that were started and are not known to have ended, which
-- stay the first: a message with a smaller id may be committed while they run. The queue's rows are the truth, this is
-- an order to look at them.
create table queue_worker_data.groups (
    queue    text not null,
    key      text not null,
    priority smallint not null default 0,
    due_at   timestamptz not null,
    held     bigint[] not null default '{}',
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

alter table queue_worker_data.groups enable row level security;
alter table queue_worker_data.bells enable row level security;

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

-- The first messages of group k.key of a queue, as a subquery: those of `held`, and of the others at most `most`. Both are
-- SQL text.
create function queue_worker_data.heads_expression(queue text, held text, most text) returns text
language sql immutable set search_path = '' as $$
    select pg_catalog.format(
        '(select x.* from (
             select m.ctid as tid, m.msg_id, m.vt, %1$s as priority, true as begun from pgmq.%2$I m
             where m.headers ? ''group_key'' and %3$s = k.key and m.msg_id = any (%4$s)
             union all
             (select m.ctid, m.msg_id, m.vt, %1$s, false from pgmq.%2$I m
              where m.headers ? ''group_key'' and %3$s = k.key and m.msg_id <> all (%4$s)
              order by m.msg_id limit %5$s)) x
         order by x.begun desc, x.msg_id)',
        queue_worker_data.priority_expression(), 'q_' || heads_expression.queue, queue_worker_data.group_expression(),
        held, most);
$$;

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
    -- What stands there already; those that run are what their groups wait for.
    execute pg_catalog.format(
        'insert into queue_worker_data.bells (queue, key)
         select distinct $1, %s from pgmq.%I where headers ? ''group_key''',
        queue_worker_data.group_expression(), name) using equip_ordered.queue;
    execute pg_catalog.format(
        'insert into queue_worker_data.groups (queue, key, due_at, held)
         select $1, %1$s, $2, pg_catalog.array_agg(msg_id order by msg_id) from pgmq.%2$I
         where headers ? ''group_key'' and vt > $2 and read_ct > 0 group by 2
         on conflict do nothing',
        queue_worker_data.group_expression(), name) using equip_ordered.queue, pg_catalog.clock_timestamp();
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
    perform queue_worker_data.note_now();
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
    rings boolean;
    last_bell bigint;
    rung text[];
    busy text[];
begin
    -- EXECUTE: there may be more dead bells than a plan made for the empty table can bear.
    execute 'select true from queue_worker_data.bells b where b.queue = $1 order by b.bell_id limit 1'
        into rings using answer_bells.queue;
    if rings is null or not pg_catalog.pg_try_advisory_xact_lock(1903522, pg_catalog.hashtext(answer_bells.queue)) then
        return;
    end if;
    execute 'select max(x.bell_id), pg_catalog.array_agg(distinct x.key) from (
                 select b.bell_id, b.key from queue_worker_data.bells b where b.queue = $1
                 order by b.bell_id limit $2) x'
        into last_bell, rung using answer_bells.queue, most_bells;
    -- Here and below, LIMIT keeps the plan at the primary key, whatever the planner believes of the table.
    with known as materialized (
        select g.tid, g.key from pg_catalog.unnest(rung) k (key)
        cross join lateral (select x.ctid as tid, x.key from queue_worker_data.groups x
                            where x.queue = answer_bells.queue and x.key = k.key limit 1) g),
    mine as materialized (
        select g.key from queue_worker_data.groups g
        where g.ctid = any (array(select known.tid from known)) for update skip locked)
    select pg_catalog.array_agg(known.key) into busy from known where known.key not in (select mine.key from mine);
    -- The bells go before the look: what was committed with them is then visible to it.
    execute 'delete from queue_worker_data.bells b
             where b.queue = $1 and b.bell_id <= $2 and b.key = any ($3) and b.key <> all ($4)'
        using answer_bells.queue, last_bell, rung, coalesce(busy, '{}');
    execute pg_catalog.format(
        'insert into queue_worker_data.groups as g (queue, key, priority, due_at)
         select $1, k.key, coalesce(h.priority, 0),
                case when h.vt is null then ''infinity'' else greatest(h.vt, $3) end
         from (select u.key, coalesce(e.held, ''{}'') as held from unnest($2) u (key)
               left join lateral (select x.held from queue_worker_data.groups x
                                  where x.queue = $1 and x.key = u.key limit 1) e on true
               where u.key <> all ($5)) k
         left join lateral (
             select min(y.vt) as vt, (pg_catalog.array_agg(y.priority))[1] as priority
             from (select x.vt, x.priority from %s x limit $4) y) h on true
         order by k.key
         on conflict (queue, key) do update set priority = excluded.priority,
             due_at = case when excluded.due_at = $3 then least(g.due_at, $3) else excluded.due_at end',
        queue_worker_data.heads_expression(answer_bells.queue, 'k.held', '$4'))
        using answer_bells.queue, rung, read_at, at_once, coalesce(busy, '{}');
end $$;

-- Of these due rows of groups, which the caller has locked, and of these messages without a group, the first `wanted` by how
-- long they wait: locked, and their groups entered as if they ran. Groups that are not due after all, or not at this
-- level, are entered for when they are. Looks in a statement of its own, after the groups were locked: its snapshot has
-- all that was settled.
create function queue_worker_data.open_groups(
    queue text, due tid[], free tid[], read_at timestamptz, level smallint, wanted int, at_once int,
    lease_seconds double precision)
returns tid[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    busy_pause constant interval := '0.5 s';
    picked tid[];
begin
    execute pg_catalog.format(
        'with seen as materialized (
             select k.ctid as tid, k.due_at, h.tids, h.ids, h.vts, h.held, h.first_priority,
                    (select i from unnest(h.vts) with ordinality v (vt, i) where v.vt <= $3 and i <= $4
                     order by i limit 1) as at
             from queue_worker_data.groups k
             cross join lateral (
                 select pg_catalog.array_agg(x.tid) as tids, pg_catalog.array_agg(x.msg_id) as ids,
                        pg_catalog.array_agg(x.vt) as vts, count(*) filter (where x.begun) as held,
                        (pg_catalog.array_agg(x.priority))[1] as first_priority from %1$s x) h
             where k.ctid = any (array(select unnest($2)))),
         looked as materialized (
             select seen.*, case when first_priority >= $5 then tids[at] end as offer from seen),
         chosen as (
             select x.tid from (
                 select l.offer as tid, l.due_at from looked l where l.offer is not null
                 union all
                 select m.ctid, m.vt from pgmq.%2$I m where m.ctid = any ($6)) x
             order by x.due_at limit $7),
         mine as materialized (
             select m.ctid as tid from pgmq.%2$I m
             where m.ctid = any (array(select c.tid from chosen c)) and m.vt <= $3 for update skip locked),
         fate as materialized (
             select l.*, l.offer = any (array(select c.tid from chosen c)) is true as is_chosen,
                    l.offer = any (array(select mine.tid from mine)) is true as is_mine from looked l),
         filed as (
             update queue_worker_data.groups g set priority = coalesce(f.first_priority, 0),
                 due_at = case
                     when f.tids is null then ''infinity''
                     when f.at is null then (select min(v) from unnest(f.vts[:$4]) v)
                     when not f.is_chosen then g.due_at
                     when not f.is_mine then $3 + $9
                     when (select count(*) from unnest(f.vts[:$4]) v where v <= $3) > 1 then $3
                     else least($8, (select min(v) from unnest(f.vts[:$4]) v where v > $3)) end,
                 held = case when f.tids is null then ''{}''
                             when f.is_mine and f.at > f.held then f.ids[:f.held] || f.ids[f.at]
                             else f.ids[:f.held] end
             from fate f where g.ctid = f.tid and g.ctid = any (array(select unnest($2))))
         select pg_catalog.array_agg(mine.tid) from mine',
        queue_worker_data.heads_expression(open_groups.queue, 'k.held', '$4'), 'q_' || open_groups.queue)
        into picked using open_groups.queue, due, read_at, at_once, level, free, wanted,
            read_at + pg_catalog.make_interval(secs => lease_seconds), busy_pause;
    return coalesce(picked, '{}');
end $$;

-- Candidates of an ordered queue: of each due group the first message that is due among its first `at_once`, and
-- messages without a group; by priority, then by how long they wait. Locks what it returns.
create function queue_worker_data.pick_ordered(
    queue text, read_at timestamptz, max_count int, at_once int, lease_seconds double precision)
returns tid[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    name constant text := 'q_' || pick_ordered.queue;
    prio constant text := queue_worker_data.priority_expression();
    most_looks constant int := 1000;
    most_rounds constant int := 20;
    level smallint := 101;
    looks int;
    keys text[];
    due tid[];
    seen text[];
    free tid[];
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

        execute pg_catalog.format(
            'select pg_catalog.array_agg(x.ctid order by x.vt) from (
                 select m.ctid, m.vt from pgmq.%2$I m
                 where (m.headers ? ''group_key'') is not true and %1$s = $1 and m.vt <= $2
                 order by m.vt limit $3 for update skip locked) x', prio, name)
            into free using level, read_at, max_count - pg_catalog.cardinality(picked);
        looks := max_count - pg_catalog.cardinality(picked);
        seen := '{}';
        -- Again, where groups were not due after all (leases were extended, heads deleted): those behind them are.
        for n in 1 .. most_rounds loop
            execute 'select pg_catalog.array_agg(x.key), pg_catalog.array_agg(x.ctid) from (
                         select g.key, g.ctid from queue_worker_data.groups g
                         where g.queue = $1 and g.priority = $2 and g.due_at <= $3 and g.key <> all ($4)
                         order by g.due_at limit $5 for update skip locked) x'
                into keys, due using pick_ordered.queue, level, read_at, seen, looks;
            if keys is null then
                picked := picked || free;
                exit;
            end if;
            picked := picked || queue_worker_data.open_groups(pick_ordered.queue, due, coalesce(free, '{}'), read_at,
                level, max_count - pg_catalog.cardinality(picked), at_once, lease_seconds);
            exit when pg_catalog.cardinality(keys) < looks or pg_catalog.cardinality(picked) >= max_count;
            free := null;
            seen := seen || keys;
            looks := least(looks * 2, most_looks);
        end loop;
    end loop;
    return nullif(picked, '{}');
end $$;

-- Forgets groups that have been empty, and rings for groups that nobody has rung for (say, after a restore that left
-- our tables out); returns how many it forgot. Housekeeping calls it.
create function queue_worker_data.prune_groups(queue text, max_count int) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    gone bigint;
begin
    if not exists (select from queue_worker_data.queues q where q.queue = prune_groups.queue and q.ordered) then
        return 0;
    end if;
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
    -- The lock of answer_bells: nobody enters groups meanwhile. Taken last, claims would miss it.
    if not pg_catalog.pg_try_advisory_xact_lock(1903522, pg_catalog.hashtext(prune_groups.queue)) then
        return 0;
    end if;
    delete from queue_worker_data.groups g where g.ctid = any (array(
        select x.ctid from queue_worker_data.groups x where x.queue = prune_groups.queue and x.due_at = 'infinity'
        limit max_count for update skip locked));
    get diagnostics gone = row_count;
    return gone;
end $$;

call queue_worker_data.lock_down();
