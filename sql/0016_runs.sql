-- min_worker: 0.1.0
-- Running messages: how far they are, and which of them were cancelled.

-- What a handler said last. No settle looks here: a row means something only as long as its message runs under the same
-- receipt, and those that do not are pruned.
create table queue_worker_data.progress (
    queue       text not null,
    msg_id      bigint not null,
    read_ct     int not null,
    enqueued_at timestamptz not null,
    done        double precision not null,
    total       double precision,
    note        text not null default '',
    at          timestamptz not null default now(),
    primary key (queue, msg_id)
);
alter table queue_worker_data.progress enable row level security;

-- Of leases: those that are not held any more. gone: the message has left the queue, because it was cancelled, completed
-- by hand or purged; otherwise it belongs to somebody else.
create function queue_worker.lost(queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[])
returns table (msg_id bigint, gone boolean)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(lost.queue);
    return query execute pg_catalog.format(
        'select r.msg_id, m.msg_id is null
         from unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
         left join pgmq.%I m on m.msg_id = r.msg_id and m.enqueued_at = r.enqueued_at
         where m.msg_id is null or m.read_ct <> r.read_ct', 'q_' || lost.queue)
        using ids, read_cts, enqueued_ats;
end $$;

-- What running handlers say about their progress, of any queues, in one call; of messages that are not held any more
-- nothing is written.
create function queue_worker.report_progress(
    queues text[], ids bigint[], read_cts int[], enqueued_ats timestamptz[],
    dones double precision[], totals double precision[], notes text[])
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one text;
begin
    for one in select distinct x.queue from pg_catalog.unnest(queues) x (queue) order by x.queue loop
        perform queue_worker_data.check_queue_name(one);
        if pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || one)) is null then
            continue;
        end if;
        execute pg_catalog.format(
            'insert into queue_worker_data.progress as p
                 (queue, msg_id, read_ct, enqueued_at, done, total, note, at)
             select r.queue, r.msg_id, r.read_ct, r.enqueued_at, r.done, r.total, pg_catalog.left(r.note, 200),
                    pg_catalog.clock_timestamp()
             from unnest($1, $2, $3, $4, $5, $6, $7) r (queue, msg_id, read_ct, enqueued_at, done, total, note)
             join pgmq.%I m on m.msg_id = r.msg_id and m.read_ct = r.read_ct and m.enqueued_at = r.enqueued_at
             where r.queue = $8
             order by r.msg_id
             on conflict (queue, msg_id) do update set
                 read_ct = excluded.read_ct, enqueued_at = excluded.enqueued_at, done = excluded.done,
                 total = excluded.total, note = excluded.note, at = excluded.at', 'q_' || one)
            using queues, ids, read_cts, enqueued_ats, dones, totals, notes, one;
    end loop;
end $$;

create function queue_worker_data.running_progress()
returns table (queue text, msg_id bigint, done double precision, total double precision, note text, at timestamptz)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    one text;
begin
    for one in select distinct p.queue from queue_worker_data.progress p order by p.queue loop
        begin
            return query execute pg_catalog.format(
                'select p.queue, p.msg_id, p.done, p.total, p.note, p.at
                 from queue_worker_data.progress p
                 join pgmq.%I m on m.msg_id = p.msg_id and m.read_ct = p.read_ct and m.enqueued_at = p.enqueued_at
                 where p.queue = $1 and m.vt > pg_catalog.clock_timestamp()
                 order by p.msg_id', 'q_' || one) using one;
        exception when undefined_table or insufficient_privilege then
            -- A queue that is gone, or that this role may not read, must not hide all the others.
            null;
        end;
    end loop;
end $$;

create view queue_worker.progress with (security_invoker = true) as
    select queue, msg_id, done, total, note, at from queue_worker_data.running_progress();

-- The view as a function, for whoever can only call functions.
create function queue_worker.list_progress() returns setof queue_worker.progress
language sql stable set search_path = '' as $$
    select queue, msg_id, done, total, note, at from queue_worker.progress;
$$;

-- Deletes the rows of messages that do not run any more, at most max_count of one queue; returns how many.
create function queue_worker.prune_progress(queue text, max_count int default 5000) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    pruned bigint;
begin
    perform queue_worker_data.check_queue(prune_progress.queue);
    execute pg_catalog.format(
        'delete from queue_worker_data.progress p where p.ctid = any (array(
             select x.ctid from queue_worker_data.progress x
             where x.queue = $1 and not exists (
                 select from pgmq.%I m where m.msg_id = x.msg_id and m.read_ct = x.read_ct
                                         and m.enqueued_at = x.enqueued_at)
             limit $2 for update skip locked))', 'q_' || prune_progress.queue)
        using prune_progress.queue, max_count;
    get diagnostics pruned = row_count;
    return pruned;
end $$;

call queue_worker_data.lock_down();
