-- min_worker: 0.1.0
-- Results that are kept, and batches with a follow-up. See docs/sql.md, "Results and follow-ups".

-- enqueued_at: null where the message was gone already when its result was kept.
create table queue_worker_data.results (
    queue       text not null,
    msg_id      bigint not null,
    enqueued_at timestamptz,
    value       jsonb not null,
    at          timestamptz not null default now(),
    primary key (queue, msg_id)
);
create index results_at_idx on queue_worker_data.results (queue, at);

-- then_id is null in a finished batch whose follow-up could not be sent; then_error says why, housekeeping tries again.
create table queue_worker_data.batches (
    batch_id     uuid primary key default gen_random_uuid(),
    queue        text not null,
    total        int not null,
    done         int not null default 0,
    failed       int not null default 0,
    then_queue   text not null,
    then_payload jsonb not null,
    then_id      bigint,
    then_error   text,
    created_at   timestamptz not null default now(),
    finished_at  timestamptz
);
create index batches_open_idx on queue_worker_data.batches (queue) where then_id is null;
create index batches_created_idx on queue_worker_data.batches (created_at);

-- What a transaction has settled of a batch, until its end folds it into the batch: settles never lock a batch.
create table queue_worker_data.batch_counts (
    batch_id uuid not null,
    xid      xid8 not null,
    done     int not null,
    failed   int not null,
    primary key (batch_id, xid)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
create index batch_counts_xid_idx on queue_worker_data.batch_counts (xid);

alter table queue_worker_data.results enable row level security;
alter table queue_worker_data.batches enable row level security;
alter table queue_worker_data.batch_counts enable row level security;


-- ---------------------------------------------------------------------------------------------------- batches

-- Sends what follows a batch that has ended. An error stays in the batch's row, the caller's work is none the worse.
create function queue_worker_data.follow_up(batch_id uuid) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    ended record;
    sent bigint;
begin
    select b.then_queue, b.then_payload into ended from queue_worker_data.batches b
        where b.batch_id = follow_up.batch_id and b.finished_at is not null and b.then_id is null for update;
    if ended.then_queue is null then
        return;
    end if;
    begin
        execute pg_catalog.format(
            'insert into pgmq.%I (vt, message, headers) values (pg_catalog.clock_timestamp(), $1, $2) returning msg_id',
            'q_' || ended.then_queue)
            into sent using ended.then_payload, pg_catalog.jsonb_build_object('batch', follow_up.batch_id);
        update queue_worker_data.batches b set then_id = sent, then_error = null
            where b.batch_id = follow_up.batch_id;
    exception when others then
        update queue_worker_data.batches b set then_error = sqlstate || ': ' || sqlerrm
            where b.batch_id = follow_up.batch_id;
    end;
end $$;

-- For send_batch: opens a batch of `total` messages; returns the header that makes a message a member.
create function queue_worker_data.open_batch(queue text, total int, then_queue text, then_payload jsonb) returns jsonb
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    opened uuid;
begin
    perform queue_worker_data.check_queue(open_batch.then_queue);
    if pg_catalog.jsonb_typeof(open_batch.then_payload) <> 'object' then
        raise exception 'then_payload must be a JSON object, not %', pg_catalog.jsonb_typeof(open_batch.then_payload)
            using errcode = '22023';
    end if;
    perform queue_worker_data.headers_of(open_batch.then_payload, null, null, null, null, null, null, null, null, null);
    insert into queue_worker_data.batches (queue, total, then_queue, then_payload, finished_at)
        values (open_batch.queue, open_batch.total, open_batch.then_queue, open_batch.then_payload,
                case when open_batch.total = 0 then pg_catalog.clock_timestamp() end)
        returning batch_id into opened;
    if open_batch.total = 0 then
        perform queue_worker_data.follow_up(opened);
    end if;
    return pg_catalog.jsonb_build_object('batch', opened);
end $$;

-- Adds what was counted to these batches, and sends what follows those that are now complete. In one order for
-- everybody, and the counts are read after the lock: of two that end a batch at once the second sees the first.
create function queue_worker_data.fold_batches(batch_ids uuid[]) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one uuid;
    ended timestamptz;
begin
    for one in select x.batch_id from pg_catalog.unnest(batch_ids) x (batch_id) order by x.batch_id loop
        perform from queue_worker_data.batches b where b.batch_id = one for update;
        with counted as (
            delete from queue_worker_data.batch_counts c where c.batch_id = one
            returning c.done, c.failed)
        update queue_worker_data.batches b
            set done = b.done + s.done, failed = b.failed + s.failed,
                finished_at = case when b.done + s.done + b.failed + s.failed >= b.total
                                   then pg_catalog.clock_timestamp() end
            from (select sum(c.done)::int as done, sum(c.failed)::int as failed from counted c) s
            where b.batch_id = one and b.finished_at is null and s.done is not null
            returning b.finished_at into ended;
        if ended is not null then
            perform queue_worker_data.follow_up(one);
        end if;
    end loop;
end $$;

-- Runs at the end of a transaction that has counted, for all it has counted at once: locks that are taken last and in
-- one order deadlock with nobody. Whatever fails here stays counted, and is folded later.
create function queue_worker_data.fold_own() returns trigger
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
    own uuid[];
begin
    select pg_catalog.array_agg(c.batch_id) into own from queue_worker_data.batch_counts c
        where c.xid = pg_catalog.pg_current_xact_id();
    perform queue_worker_data.fold_batches(own);
    return null;
exception when others then
    return null;
end $$;

create constraint trigger batch_counts_fold after insert on queue_worker_data.batch_counts
    deferrable initially deferred for each row execute function queue_worker_data.fold_own();

-- Counts messages that have left `queue` for good, by their headers; those of no batch count nowhere. Anybody may have
-- written headers: what is no batch of ours changes nothing.
create function queue_worker_data.count_members(queue text, headers jsonb[], failed boolean) returns void
language sql set search_path = '' as $$
    insert into queue_worker_data.batch_counts as c (batch_id, xid, done, failed)
        select b.batch_id, pg_catalog.pg_current_xact_id(),
               case when count_members.failed then 0 else count(*) end,
               case when count_members.failed then count(*) else 0 end
        from pg_catalog.unnest(count_members.headers) h (head)
        -- LIMIT keeps the plan at the primary key.
        cross join lateral (
            select x.batch_id from queue_worker_data.batches x
            where x.batch_id = case when pg_catalog.jsonb_typeof(h.head -> 'batch') = 'string'
                                         and h.head ->> 'batch' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                                    then (h.head ->> 'batch')::uuid end
              and x.queue = count_members.queue and x.finished_at is null
            limit 1) b
        group by b.batch_id
        on conflict (batch_id, xid) do update set done = c.done + excluded.done, failed = c.failed + excluded.failed;
$$;

-- Counts a message that an operator has just put into the archive; false where it is not there.
create function queue_worker_data.count_archived(queue text, msg_id bigint, failed boolean) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    head jsonb;
    there boolean;
begin
    execute pg_catalog.format('select true, a.headers from pgmq.%I a where a.msg_id = $1', 'a_' || count_archived.queue)
        into there, head using count_archived.msg_id;
    if head ? 'batch' then
        perform queue_worker_data.count_members(count_archived.queue, array[head], count_archived.failed);
    end if;
    return coalesce(there, false);
end $$;

-- Deletes dead letters for good (null: all of the queue), never waiting messages; returns how many.
create or replace function queue_worker.discard(queue text, dead_ids bigint[] default null) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    gone bigint;
    members jsonb[];
begin
    -- The dead letters of a queue that was dropped can still be discarded.
    perform queue_worker_data.check_queue_name(discard.queue);
    if not exists (select from queue_worker_data.dead_letters d where d.queue = discard.queue) then
        perform queue_worker_data.check_queue(discard.queue);
    end if;
    with d as (
        delete from queue_worker_data.dead_letters d
        where d.queue = discard.queue and (dead_ids is null or d.dead_id = any (dead_ids))
        returning d.headers)
    select count(*), pg_catalog.array_agg(d.headers) filter (where d.headers ? 'batch') into gone, members from d;
    if members is not null then
        perform queue_worker_data.count_members(discard.queue, members, true);
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('discard', discard.queue, pg_catalog.jsonb_build_object('count', gone, 'dead_ids', dead_ids));
    return gone;
end $$;

-- For housekeeping: counts what has left the open batches of a queue by a way that does not count: done where it is in
-- the archive, else failed (plain pgmq.delete, purge, retention of dead letters). Then sends follow-ups that could not
-- be sent. Returns how many messages it has counted.
create function queue_worker_data.recount_batches(queue text) returns bigint
language plpgsql set search_path = '' set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
    one record;
    open_ids uuid[];
    archived bigint := 0;
    counted bigint := 0;
begin
    select pg_catalog.array_agg(b.batch_id) into open_ids from queue_worker_data.batches b
        where b.queue = recount_batches.queue and b.then_id is null and b.finished_at is null;
    if open_ids is not null then
        -- Only what was left behind, because settles wait for a batch that is being folded.
        perform queue_worker_data.fold_batches((
            select pg_catalog.array_agg(distinct c.batch_id) from queue_worker_data.batch_counts c
            where c.batch_id = any (open_ids)));
        -- One statement, one snapshot: a message that moves or settles meanwhile is seen in exactly one place.
        for one in execute pg_catalog.format(
            'with live as (
                 select x.batch, count(*) as members from (
                     select d.headers ->> ''batch'' as batch from queue_worker_data.dead_letters d
                     where d.queue = $1 and d.headers ? ''batch''
                     %s) x group by x.batch)
             select b.batch_id, b.done, b.failed,
                    b.total - b.done - b.failed - coalesce(live.members, 0) - coalesce(
                        (select sum(c.done + c.failed) from queue_worker_data.batch_counts c
                         where c.batch_id = b.batch_id), 0) as missing
             from queue_worker_data.batches b left join live on live.batch = b.batch_id::text
             where b.batch_id = any ($2) and b.finished_at is null',
            case when pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || recount_batches.queue)) is not null
                 then pg_catalog.format('union all select m.headers ->> ''batch'' from pgmq.%I m
                                         where m.headers ? ''batch''', 'q_' || recount_batches.queue) end)
            using recount_batches.queue, open_ids
        loop
            continue when one.missing <= 0;
            if pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'a_' || recount_batches.queue)) is not null then
                execute pg_catalog.format(
                    'select least($1, greatest(count(*) - $2, 0)) from pgmq.%I a
                     where a.headers ? ''batch'' and a.headers ->> ''batch'' = $3 and not a.headers ? ''cancelled_at''',
                    'a_' || recount_batches.queue) into archived using one.missing, one.done, one.batch_id::text;
            end if;
            update queue_worker_data.batches b
                set done = b.done + archived, failed = b.failed + one.missing - archived,
                    finished_at = case when b.done + b.failed + one.missing >= b.total
                                       then pg_catalog.clock_timestamp() end
                where b.batch_id = one.batch_id and b.done = one.done and b.failed = one.failed
                  and b.finished_at is null;
            if found then
                counted := counted + one.missing;
            end if;
        end loop;
    end if;
    perform queue_worker_data.follow_up(b.batch_id) from queue_worker_data.batches b
        where b.queue = recount_batches.queue and b.then_id is null and b.finished_at is not null;
    return counted;
end $$;

create view queue_worker.batches with (security_invoker = true) as
    select batch_id, queue, total, done, failed, then_queue, then_id, then_error, created_at, finished_at
    from queue_worker_data.batches;


-- ---------------------------------------------------------------------------------------------------- results

-- Keeps the result of a message, whether it is settled yet or not; for a handler whose own transaction settles it. A
-- second one replaces the first. Kept as long as the archive.
create function queue_worker.keep_result(queue text, msg_id bigint, value jsonb) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    sent_at timestamptz;
begin
    perform queue_worker_data.check_queue(keep_result.queue);
    execute pg_catalog.format(
        'select coalesce((select m.enqueued_at from pgmq.%I m where m.msg_id = $1),
                         (select a.enqueued_at from pgmq.%I a where a.msg_id = $1))',
        'q_' || keep_result.queue, 'a_' || keep_result.queue) into sent_at using keep_result.msg_id;
    insert into queue_worker_data.results as r (queue, msg_id, enqueued_at, value)
        values (keep_result.queue, keep_result.msg_id, sent_at, coalesce(keep_result.value, 'null'))
        on conflict (queue, msg_id) do update set enqueued_at = excluded.enqueued_at, value = excluded.value,
            at = excluded.at;
end $$;

-- What became of a message: state waiting | delayed | running | done | dead | cancelled | unknown, with the result that
-- was kept, or the reason and error of its death.
create function queue_worker.result(queue text, msg_id bigint)
returns table (state text, value jsonb, reason text, error text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(result.queue);
    -- The newest bearer of the id: a queue that was dropped and made again counts from 1.
    return query execute pg_catalog.format(
        'select x.state, case when x.state = ''done'' then r.value end, x.reason, x.error
         from (
             select 2 as place, m.enqueued_at,
                    queue_worker_data.state_of($1, m.msg_id, m.read_ct, m.enqueued_at, m.vt) as state,
                    null::text as reason, null::text as error
             from pgmq.%1$I m where m.msg_id = $2
             union all
             select 1, d.enqueued_at, ''dead'', d.reason, d.error
             from queue_worker_data.dead_letters d where d.queue = $1 and d.msg_id = $2
             union all
             select 1, a.enqueued_at, case when a.headers ? ''cancelled_at'' then ''cancelled'' else ''done'' end,
                    null, null
             from pgmq.%2$I a where a.msg_id = $2
             union all
             select 0, coalesce(k.enqueued_at, ''-infinity''), ''done'', null, null
             from queue_worker_data.results k where k.queue = $1 and k.msg_id = $2
             union all
             select -1, null, ''unknown'', null, null) x
         left join queue_worker_data.results r
             on r.queue = $1 and r.msg_id = $2 and coalesce(r.enqueued_at, x.enqueued_at) = x.enqueued_at
         order by x.place = 2 desc, x.enqueued_at desc nulls last, x.place desc limit 1',
        'q_' || result.queue, 'a_' || result.queue)
        using result.queue, result.msg_id;
exception when undefined_table then
    perform queue_worker_data.missing_queue(result.queue);
end $$;


-- ---------------------------------------------------------------------------------------------------- settle

-- Settles one message that is done, with more to write than that: its result, its batch. Returns 'done' or null when
-- the receipt did not match. `value`: JSON text, or '' where no result is kept.
create function queue_worker_data.settle_result(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, on_success text, value text)
returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    head jsonb;
    held boolean;
    kept jsonb;
begin
    execute pg_catalog.format(
        'select true, m.headers from pgmq.%I m where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3 for update',
        'q_' || settle_result.queue)
        into held, head using settle_result.msg_id, settle_result.read_ct, settle_result.enqueued_at;
    if held is null or pg_catalog.cardinality(queue_worker_data.settle_done(settle_result.queue,
            array[settle_result.msg_id], array[settle_result.read_ct], array[settle_result.enqueued_at],
            on_success)) = 0 then
        return null;
    end if;
    if settle_result.value <> '' then
        begin
            kept := settle_result.value::jsonb;
        exception when data_exception or program_limit_exceeded then
            -- JSON that jsonb cannot hold, such as \u0000: the work is done, so its result is kept as a text.
            kept := pg_catalog.to_jsonb(settle_result.value);
        end;
        insert into queue_worker_data.results as r (queue, msg_id, enqueued_at, value)
            values (settle_result.queue, settle_result.msg_id, settle_result.enqueued_at, kept)
            on conflict (queue, msg_id) do update set enqueued_at = excluded.enqueued_at, value = excluded.value,
                at = excluded.at;
    end if;
    if head ? 'batch' then
        perform queue_worker_data.count_members(settle_result.queue, array[head], false);
    end if;
    return 'done';
end $$;

-- Settles one message by itself; an error is its answer, so that one bad item never loses its neighbours.
create or replace function queue_worker_data.settle_one(
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
    elsif kind = 'result' then
        item.kind := queue_worker_data.settle_result(settle_one.queue, settle_one.msg_id, settle_one.read_ct,
            settle_one.enqueued_at, on_success, coalesce(error, ''));
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

call queue_worker_data.lock_down();
