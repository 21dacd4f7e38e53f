-- min_worker: 0.1.0
-- The engine: what a worker calls. Argument names are public; see docs/sql.md and docs/architecture.md.

create schema if not exists queue_worker;
create schema if not exists queue_worker_data;

create table queue_worker_data.queues (
    queue        text primary key,
    paused_at    timestamptz,
    pause_reason text,
    created_at   timestamptz not null default now()
);

-- A row exists only for messages in trouble: the happy path neither reads nor writes here.
-- settled_ct: the read_ct that the last recorded outcome left behind; a message found with another read_ct was
-- started and never settled, which makes it a suspect.
create table queue_worker_data.trouble (
    queue       text not null,
    msg_id      bigint not null,
    enqueued_at timestamptz not null,
    failures    int not null default 0,
    lost        int not null default 0,
    settled_ct  int,
    last_error  text,
    updated_at  timestamptz not null default now(),
    primary key (queue, msg_id)
);

create table queue_worker_data.failures (
    failure_id  bigint generated always as identity primary key,
    queue       text not null,
    msg_id      bigint not null,
    attempt     int not null,
    kind        text not null,
    error       text not null,
    retry_at    timestamptz,
    worker      text not null default '',
    failed_at   timestamptz not null default now()
);
create index failures_message_idx on queue_worker_data.failures (queue, msg_id);
create index failures_failed_at_idx on queue_worker_data.failures (failed_at);

create table queue_worker_data.dead_letters (
    dead_id       bigint generated always as identity primary key,
    queue         text not null,
    msg_id        bigint not null,
    payload       jsonb,
    headers       jsonb,
    attempts      int not null,
    reason        text not null,
    error         text not null,
    enqueued_at   timestamptz not null,
    dead_at       timestamptz not null default now(),
    redriven_from bigint
);
create index dead_letters_queue_idx on queue_worker_data.dead_letters (queue, dead_id);
create index dead_letters_message_idx on queue_worker_data.dead_letters (queue, msg_id);

create table queue_worker_data.workers (
    worker     text primary key,
    host       text not null,
    pid        int not null,
    version    text not null,
    queues     text[] not null,
    slots      int not null,
    busy       int not null,
    started_at timestamptz not null default now(),
    last_seen  timestamptz not null default now()
);

-- Who wants a NOTIFY. Unlogged: after a crash it is empty, and workers poll anyway.
create unlogged table queue_worker_data.sleepers (
    queue  text not null,
    worker text not null,
    until  timestamptz not null,
    primary key (queue, worker)
);

create table queue_worker_data.audit (
    audit_id bigint generated always as identity primary key,
    at       timestamptz not null default now(),
    actor    text not null default session_user,
    action   text not null,
    queue    text not null,
    detail   jsonb not null default '{}'
);

-- Rows that a best_effort trigger could not send; the worker sends them when the queue is there again.
create table queue_worker_data.unsent (
    unsent_id bigint generated always as identity primary key,
    queue     text not null,
    payload   jsonb not null,
    error     text not null,
    at        timestamptz not null default now()
);

alter table queue_worker_data.queues enable row level security;
alter table queue_worker_data.trouble enable row level security;
alter table queue_worker_data.failures enable row level security;
alter table queue_worker_data.dead_letters enable row level security;
alter table queue_worker_data.workers enable row level security;
alter table queue_worker_data.sleepers enable row level security;
alter table queue_worker_data.audit enable row level security;
alter table queue_worker_data.unsent enable row level security;


-- ---------------------------------------------------------------------------------------------------- names

create function queue_worker_data.check_queue_name(queue text) returns text
language plpgsql immutable set search_path = '' as $$
begin
    if queue is null or queue !~ '^[a-z_][a-z0-9_-]{0,46}$' or queue ~ '--' then
        raise exception 'queue name % is not allowed', coalesce(pg_catalog.quote_literal(left(queue, 60)), 'null')
            using errcode = '22023',
                  hint = 'Use 1 to 47 of a-z, 0-9, _ and -, starting with a letter or _, without "--".';
    end if;
    return queue;
end $$;

create function queue_worker_data.missing_queue(queue text) returns void
language plpgsql set search_path = '' as $$
begin
    raise exception 'queue "%" does not exist', queue
        using errcode = '42P01', hint = pg_catalog.format('select queue_worker.create_queue(%L);', queue);
end $$;

-- Refuses a bad name and a queue that is not there. A look-up: an exception block would cost every send a
-- subtransaction.
create function queue_worker_data.check_queue(queue text) returns void
language plpgsql set search_path = '' as $$
begin
    perform queue_worker_data.check_queue_name(queue);
    if pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || queue)) is null then
        perform queue_worker_data.missing_queue(queue);
    end if;
end $$;


-- ---------------------------------------------------------------------------------------------------- settle

-- Moves one leased message to the dead letters; false when the receipt is stale.
create function queue_worker_data.bury(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, kind text, reason text, error text, worker text)
returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
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
        returning case when bury.kind = 'lost' then t.lost else t.failures + 1 end into charged;
    charged := coalesce(charged, 1);
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

-- Deletes or archives a set of leased messages; returns the ids that were really held.
create function queue_worker_data.settle_done(
    queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[], on_success text)
returns bigint[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    done bigint[];
    troubled boolean;
begin
    -- EXECUTE: a static plan would keep the shape of the empty table it was first planned on. `= any ($1)` says the
    -- same as the join once more, and keeps the primary key in the plan where a hash join would read the table.
    if on_success = 'delete' then
        execute pg_catalog.format(
            'with d as (
                 delete from pgmq.%1$I m using unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
                 where m.msg_id = any ($1)
                   and m.msg_id = r.msg_id and m.read_ct = r.read_ct and m.enqueued_at = r.enqueued_at
                 returning m.msg_id, m.read_ct)
             select pg_catalog.array_agg(d.msg_id), coalesce(pg_catalog.bool_or(d.read_ct > 1), false) from d',
            'q_' || settle_done.queue)
            into done, troubled using ids, read_cts, enqueued_ats;
    else
        execute pg_catalog.format(
            'with d as (
                 delete from pgmq.%1$I m using unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
                 where m.msg_id = any ($1)
                   and m.msg_id = r.msg_id and m.read_ct = r.read_ct and m.enqueued_at = r.enqueued_at
                 returning m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers),
             a as (
                 insert into pgmq.%2$I (msg_id, read_ct, enqueued_at, vt, message, headers)
                 select d.msg_id, d.read_ct, d.enqueued_at, d.vt, d.message, d.headers from d)
             select pg_catalog.array_agg(d.msg_id), coalesce(pg_catalog.bool_or(d.read_ct > 1), false) from d',
            'q_' || settle_done.queue, 'a_' || settle_done.queue)
            into done, troubled using ids, read_cts, enqueued_ats;
    end if;
    if troubled then
        delete from queue_worker_data.trouble t
            where t.queue = settle_done.queue and t.msg_id = any (done);
    end if;
    return coalesce(done, '{}');
end $$;

-- Settles one message that is not done. Returns 'done' or null when the receipt did not match.
create function queue_worker_data.settle_other(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz,
    kind text, delay_seconds double precision, reason text, error text, worker text)
returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    due timestamptz;
    charged int;
begin
    if kind = 'dead' then
        return case when queue_worker_data.bury(settle_other.queue, settle_other.msg_id, settle_other.read_ct,
            settle_other.enqueued_at, 'dead', reason, error, settle_other.worker) then 'done' end;
    end if;
    -- read_ct + 1 spends the receipt: a late extend or a resent settle with it must change nothing.
    execute pg_catalog.format(
        'update pgmq.%I m set vt = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4),
                read_ct = m.read_ct + 1
         where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3 returning m.vt', 'q_' || settle_other.queue)
        into due using settle_other.msg_id, settle_other.read_ct, settle_other.enqueued_at,
            least(greatest(delay_seconds, 0), 31536000);
    if due is null then
        return null;
    end if;
    if kind = 'release' then
        -- A start that a living worker gives back was no kill, so a suspect gets its recorded start back.
        insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, settled_ct)
            values (settle_other.queue, settle_other.msg_id, settle_other.enqueued_at, settle_other.read_ct + 1)
            on conflict (queue, msg_id) do update set
                failures = case when t.enqueued_at = excluded.enqueued_at then t.failures else 0 end,
                lost = case when t.enqueued_at <> excluded.enqueued_at then 0
                            when t.settled_ct = excluded.settled_ct - 2 then t.lost
                            else greatest(t.lost - 1, 0) end,
                enqueued_at = excluded.enqueued_at, settled_ct = excluded.settled_ct,
                updated_at = pg_catalog.clock_timestamp();
        return 'done';
    end if;
    insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, failures, settled_ct, last_error)
        values (settle_other.queue, settle_other.msg_id, settle_other.enqueued_at, 1, settle_other.read_ct + 1,
                settle_other.error)
        on conflict (queue, msg_id) do update set
            failures = case when t.enqueued_at = excluded.enqueued_at then t.failures + 1 else 1 end,
            lost = 0, enqueued_at = excluded.enqueued_at, settled_ct = excluded.settled_ct,
            last_error = excluded.last_error, updated_at = pg_catalog.clock_timestamp()
        returning t.failures into charged;
    insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, retry_at, worker)
        values (settle_other.queue, settle_other.msg_id, charged, settle_other.kind, settle_other.error, due,
                settle_other.worker);
    return 'done';
end $$;

-- For a receipt that did not match: 'gone' (no such message any more, or this very receipt was settled before) or
-- 'stale' (the message belongs to somebody else).
create function queue_worker_data.settle_missed(queue text, msg_id bigint, read_ct int, enqueued_at timestamptz)
returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    there boolean;
    settled int;
begin
    execute pg_catalog.format('select exists (select from pgmq.%I m where m.msg_id = $1 and m.enqueued_at = $2)',
        'q_' || settle_missed.queue) into there using settle_missed.msg_id, settle_missed.enqueued_at;
    if not there then
        return 'gone';
    end if;
    -- The worker that reports late is alive, so what looked like a kill was none; an outcome that was recorded since
    -- has forgotten it already.
    update queue_worker_data.trouble t
        set lost = case when t.settled_ct > settle_missed.read_ct then t.lost else greatest(t.lost - 1, 0) end
        where t.queue = settle_missed.queue and t.msg_id = settle_missed.msg_id
          and t.enqueued_at = settle_missed.enqueued_at
        returning t.settled_ct into settled;
    return case when settled = settle_missed.read_ct + 1 then 'gone' else 'stale' end;
end $$;

create type queue_worker_data.turn as (
    kind text, msg_id bigint, read_ct int, enqueued_at timestamptz,
    payload text, headers text, failures int, lost int, detail text);

-- Settles one message by itself; an error is its answer, so that one bad item never loses its neighbours.
create function queue_worker_data.settle_one(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, on_success text,
    kind text, delay_seconds double precision, reason text, error text, worker text)
returns queue_worker_data.turn
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    item queue_worker_data.turn;
begin
    item.msg_id := settle_one.msg_id;
    if kind = 'done' then
        item.kind := case when pg_catalog.cardinality(queue_worker_data.settle_done(settle_one.queue,
            array[settle_one.msg_id], array[settle_one.read_ct], array[settle_one.enqueued_at], on_success)) > 0
            then 'done' end;
    else
        item.kind := queue_worker_data.settle_other(settle_one.queue, settle_one.msg_id, settle_one.read_ct,
            settle_one.enqueued_at, settle_one.kind, delay_seconds, reason, error, settle_one.worker);
    end if;
    if item.kind is null then
        item.kind := queue_worker_data.settle_missed(
            settle_one.queue, settle_one.msg_id, settle_one.read_ct, settle_one.enqueued_at);
    end if;
    return item;
exception when others then
    item.kind := 'error';
    item.detail := sqlstate || ': ' || sqlerrm;
    return item;
end $$;

-- Settles leased messages. Answers a row only for those that were not settled as asked:
-- kind 'gone' | 'stale' | 'error' (detail: SQLSTATE and text).
create function queue_worker.settle(
    queue text,
    done_ids bigint[] default '{}', done_cts int[] default '{}', done_ats timestamptz[] default '{}',
    on_success text default 'archive',
    other_ids bigint[] default '{}', other_cts int[] default '{}', other_ats timestamptz[] default '{}',
    kinds text[] default '{}', delays double precision[] default '{}', reasons text[] default '{}',
    errors text[] default '{}', worker text default '')
returns setof queue_worker_data.turn
-- A row that a handler's own transaction or an operator keeps locked is answered as an error of its own (55P03): it
-- must not stop the whole queue.
language plpgsql set search_path = '' set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
    -- Once a wait was in vain, the other locked rows of the call are not waited for as long again. In force until
    -- the function ends, which has a lock_timeout of its own.
    short_wait constant text := '10ms';
    done_count constant int := coalesce(pg_catalog.cardinality(done_ids), 0);
    done bigint[];
    item queue_worker_data.turn;
begin
    perform queue_worker_data.check_queue_name(settle.queue);
    if done_count > 0 then
        begin
            done := queue_worker_data.settle_done(settle.queue, done_ids, done_cts, done_ats, on_success);
        exception
            when lock_not_available then
                perform pg_catalog.set_config('lock_timeout', short_wait, true);
            when others then
                null;
        end;
    end if;
    -- The happy path ends here: all done, nothing else.
    if pg_catalog.cardinality(done) = done_count and pg_catalog.cardinality(other_ids) = 0 then
        return;
    end if;
    for i in 1 .. done_count + pg_catalog.cardinality(other_ids) loop
        if i <= done_count then
            continue when done_ids[i] = any (done);
            item := queue_worker_data.settle_one(settle.queue, done_ids[i], done_cts[i], done_ats[i], on_success,
                'done', null, null, null, settle.worker);
        else
            item := queue_worker_data.settle_one(settle.queue, other_ids[i - done_count], other_cts[i - done_count],
                other_ats[i - done_count], on_success, kinds[i - done_count], delays[i - done_count],
                reasons[i - done_count], errors[i - done_count], settle.worker);
        end if;
        if item.detail like '55P03:%' then
            perform pg_catalog.set_config('lock_timeout', short_wait, true);
        end if;
        if item.kind <> 'done' then
            return next item;
        end if;
    end loop;
end $$;

-- Gives leased messages back unharmed, due after delay_seconds; returns how many were still held.
create function queue_worker.release(
    queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[], delay_seconds double precision default 0)
returns bigint
language sql set search_path = '' as $$
    select pg_catalog.cardinality(ids) - count(*) from queue_worker.settle(release.queue,
        other_ids => ids, other_cts => read_cts, other_ats => enqueued_ats,
        kinds => pg_catalog.array_fill('release'::text, array[pg_catalog.cardinality(ids)]),
        delays => pg_catalog.array_fill(delay_seconds, array[pg_catalog.cardinality(ids)]));
$$;

-- Extends leases to lease_seconds from now; returns the ids of those that are lost.
create function queue_worker.extend(
    queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[], lease_seconds double precision)
returns setof bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(extend.queue);
    -- SKIP LOCKED in msg_id order: a locked row is being settled or sits in its handler's transaction; waiting for
    -- it would deadlock with settles and hold up the leases of all its neighbours.
    execute pg_catalog.format(
        'update pgmq.%1$I m set vt = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4)
         where m.ctid = any (array(
             select h.ctid from pgmq.%1$I h join unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
                 on h.msg_id = r.msg_id and h.read_ct = r.read_ct and h.enqueued_at = r.enqueued_at
             order by h.msg_id for update of h skip locked))', 'q_' || extend.queue)
        using ids, read_cts, enqueued_ats, lease_seconds;
    return query execute pg_catalog.format(
        'select r.msg_id from unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
         where not exists (select from pgmq.%I m where m.msg_id = r.msg_id and m.read_ct = r.read_ct
                           and m.enqueued_at = r.enqueued_at)', 'q_' || extend.queue)
        using ids, read_cts, enqueued_ats;
end $$;

-- First statement of a handler's transaction: locks the leased row; false when the receipt is stale.
create function queue_worker.hold(queue text, msg_id bigint, read_ct int, enqueued_at timestamptz) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    held bigint;
begin
    perform queue_worker_data.check_queue_name(hold.queue);
    execute pg_catalog.format(
        'select m.msg_id from pgmq.%I m where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3 for update',
        'q_' || hold.queue) into held using hold.msg_id, hold.read_ct, hold.enqueued_at;
    return held is not null;
end $$;


-- ---------------------------------------------------------------------------------------------------- claim

-- The rare half of a claim: some candidate was claimed before. Clean ones are taken; of the suspects at most one,
-- if the worker takes one (suspects 1: beside its other work, 2: its process is empty).
create function queue_worker_data.claim_troubled(
    queue text, candidates tid[], read_at timestamptz, max_count int, lease_seconds double precision,
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
    refill tid[];
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
                 order by m.vt limit $4 for update skip locked) x', 'q_' || claim_troubled.queue)
            into refill using read_at, candidates, claim_troubled.queue,
                max_count - pg_catalog.cardinality(take);
        take := take || coalesce(refill, '{}');
    end if;

    return query execute pg_catalog.format(
        'with u as (
             update pgmq.%I m set vt = $2 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
             where m.ctid = any ($1)
             returning m.msg_id, m.read_ct, m.enqueued_at, m.message, m.headers)
         select ''job''::text, u.msg_id, u.read_ct, u.enqueued_at, u.message::text, u.headers::text,
                coalesce(t.failures, 0), case when u.msg_id = $5 then coalesce(t.lost, 0) else 0 end, null::text
         from u left join queue_worker_data.trouble t
             on t.queue = $4 and t.msg_id = u.msg_id and t.enqueued_at = u.enqueued_at',
        'q_' || claim_troubled.queue)
        using take, read_at, lease_seconds, claim_troubled.queue,
            chosen_id;
end $$;

-- Claims up to max_count due messages for lease_seconds, in order of due time. Rows by kind: 'job' a message;
-- 'dead' one that was given up here (detail: reason); 'suspect' | 'alone' one waits for a worker that takes it;
-- 'paused'; 'next' nothing is due before detail seconds. `sleep`: if nothing is due, ask for a NOTIFY.
create function queue_worker.claim(
    queue text, max_count int, lease_seconds double precision,
    suspects int default 0, max_lost int default 5, worker text default '', sleep boolean default false)
returns setof queue_worker_data.turn
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    -- One reading of the clock: vt <= clock_timestamp() could not use the index, the function is volatile.
    read_at timestamptz := pg_catalog.clock_timestamp();
    candidates tid[];
    claimed boolean;
    item queue_worker_data.turn;
    due timestamptz;
begin
    perform queue_worker_data.check_queue_name(claim.queue);
    if exists (select from queue_worker_data.queues q where q.queue = claim.queue and q.paused_at is not null) then
        item.kind := 'paused';
        return next item;
        return;
    end if;
    -- One statement for the healthy case: it updates nothing if a candidate was claimed before. The array of ctid
    -- keeps the update on the rows that were locked, in index order, whatever the planner believes of the table.
    return query execute pg_catalog.format(
        'with c as materialized (
             select m.ctid as tid, m.read_ct from pgmq.%1$I m where m.vt <= $1 order by m.vt limit $2
             for update skip locked)
         update pgmq.%1$I m set vt = $1 + pg_catalog.make_interval(secs => $3), read_ct = m.read_ct + 1
         where m.ctid = any (array(select c.tid from c where not exists (select from c x where x.read_ct > 0)))
         returning ''job''::text, m.msg_id, m.read_ct, m.enqueued_at, m.message::text, m.headers::text,
                   0, 0, null::text', 'q_' || claim.queue)
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
    if claimed and claim.sleep then
        delete from queue_worker_data.sleepers s where s.queue = claim.queue and s.worker = claim.worker;
    elsif claim.sleep then
        insert into queue_worker_data.sleepers as s (queue, worker, until)
            values (claim.queue, claim.worker, read_at + interval '90 seconds')
            on conflict (queue, worker) do update set until = excluded.until
                where s.until < excluded.until - interval '45 seconds';
        execute pg_catalog.format('select m.vt from pgmq.%I m where m.vt > $1 and m.vt < ''infinity'' order by m.vt limit 1',
            'q_' || claim.queue) into due using read_at;
        if due is not null then
            item.kind := 'next';
            item.detail := pg_catalog.date_part('epoch', due - read_at)::text;
            return next item;
        end if;
    end if;
end $$;

-- One round trip under load: settles the last batch and claims the next. An error of the claim comes back as a row
-- of kind 'error' without msg_id, so that it never undoes the settles.
create function queue_worker.settle_claim(
    queue text,
    done_ids bigint[], done_cts int[], done_ats timestamptz[], on_success text,
    other_ids bigint[], other_cts int[], other_ats timestamptz[],
    kinds text[], delays double precision[], reasons text[], errors text[],
    max_count int, lease_seconds double precision, suspects int, max_lost int, worker text, sleep boolean)
returns setof queue_worker_data.turn
language plpgsql set search_path = '' as $$
declare
    item queue_worker_data.turn;
begin
    if pg_catalog.cardinality(done_ids) > 0 or pg_catalog.cardinality(other_ids) > 0 then
        return query select * from queue_worker.settle(settle_claim.queue, done_ids, done_cts, done_ats,
            on_success, other_ids, other_cts, other_ats, kinds, delays, reasons, errors, settle_claim.worker);
    end if;
    if max_count > 0 then
        begin
            return query select * from queue_worker.claim(settle_claim.queue, max_count, settle_claim.lease_seconds,
                suspects, max_lost, settle_claim.worker, settle_claim.sleep);
        exception when others then
            item.kind := 'error';
            item.detail := sqlstate || ': ' || sqlerrm;
            return next item;
        end;
    end if;
end $$;
