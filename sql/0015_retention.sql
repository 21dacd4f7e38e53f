-- min_worker: 0.1.0
-- What is kept for how long, and vacuum settings of the hot tables. See docs/operations.md.

-- With the queue in front: failures of one queue may be kept ten times as long as those of another.
drop index queue_worker_data.failures_failed_at_idx;
create index failures_queue_failed_at_idx on queue_worker_data.failures (queue, failed_at);
create index dead_letters_queue_dead_at_idx on queue_worker_data.dead_letters (queue, dead_at);
create index audit_at_idx on queue_worker_data.audit (at);
create index mails_first_at_idx on queue_worker_data.mails (first_at);

-- Deletes at most max_count rows of one of our tables whose time is older than this, of one queue or (null) of all;
-- returns how many. Null seconds keep all; a table that is not there has nothing to delete.
create function queue_worker_data.expire(
    name text, at_column text, seconds double precision, max_count int, queue text default null)
returns bigint
language plpgsql set search_path = '' as $$
declare
    relation constant regclass := pg_catalog.to_regclass(pg_catalog.format('queue_worker_data.%I', name));
    gone bigint;
begin
    if relation is null or seconds is null then
        return 0;
    end if;
    execute pg_catalog.format(
        'delete from %1$s x where x.ctid = any (array(
             select y.ctid from %1$s y where y.%2$I < $1 %3$s order by y.%2$I limit $2 for update skip locked))',
        relation, at_column, case when queue is not null then 'and y.queue = $3' else '' end)
        using pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => seconds), max_count, queue;
    get diagnostics gone = row_count;
    return gone;
end $$;

drop function queue_worker.prune(text, double precision, int, double precision);

-- Deletes what a queue keeps for longer than it should (null: keep it): done messages and their results, failures, dead
-- letters. At most max_count rows of each kind a call; returns the largest of these numbers, so that max_count says
-- "call me again".
create function queue_worker.prune(
    queue text, archive_seconds double precision, max_count int default 5000,
    failure_seconds double precision default 2592000, dead_seconds double precision default null)
returns bigint
language plpgsql set search_path = '' set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
    archived bigint;
    gone bigint;
    pruned bigint;
    part text;
begin
    perform queue_worker_data.check_queue(prune.queue);
    if not pg_catalog.pg_try_advisory_xact_lock(1903521, pg_catalog.hashtext(prune.queue)) then
        return 0;
    end if;
    execute pg_catalog.format(
        'delete from pgmq.%1$I a where a.ctid = any (array(
             select x.ctid from pgmq.%1$I x where x.archived_at < $1 order by x.archived_at limit $2
             for update skip locked))',
        'a_' || prune.queue)
        using pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => archive_seconds), max_count;
    get diagnostics archived = row_count;
    gone := greatest(archived,
        queue_worker_data.expire('results', 'at', archive_seconds, max_count, prune.queue),
        queue_worker_data.expire('failures', 'failed_at', failure_seconds, max_count, prune.queue),
        queue_worker_data.expire('dead_letters', 'dead_at', dead_seconds, max_count, prune.queue));
    foreach part in array array['queue_worker_data.prune_unique', 'queue_worker_data.prune_groups',
                                'queue_worker.prune_progress'] loop
        if pg_catalog.to_regprocedure(part || '(text, integer)') is not null then
            execute pg_catalog.format('select %s($1, $2)', part) into pruned using prune.queue, max_count;
            gone := greatest(gone, pruned);
        end if;
    end loop;
    if pg_catalog.to_regprocedure('queue_worker_data.recount_batches(text)') is not null then
        execute 'select queue_worker_data.recount_batches($1)' using prune.queue;
    end if;
    -- A plain pgmq.delete leaves its companion behind.
    execute pg_catalog.format(
        'delete from queue_worker_data.trouble t where t.ctid = any (array(
             select x.ctid from queue_worker_data.trouble x
             where x.queue = $1 and x.updated_at < pg_catalog.clock_timestamp() - interval ''1 day''
               and not exists (select from pgmq.%I m where m.msg_id = x.msg_id and m.enqueued_at = x.enqueued_at)
             limit $2 for update skip locked))',
        'q_' || prune.queue) using prune.queue, max_count;
    -- The lane is closed when nothing uses it any more, and opened where a sender could not do it.
    execute pg_catalog.format(
        'update queue_worker_data.queues q set has_priority = not q.has_priority where q.ctid = any (array(
             select x.ctid from queue_worker_data.queues x
             where x.queue = $1 and x.has_priority <> exists (select from pgmq.%I m where m.headers ? ''priority'')
             for update skip locked))',
        'q_' || prune.queue) using prune.queue;
    return gone;
end $$;

-- The same for what belongs to no queue: signs of life, audit, ledgers, and failures of queues that are gone. Ledgers
-- that stop a repetition are kept longer than anybody redrives a dead letter.
create function queue_worker.prune_shared(
    max_count int default 5000, audit_seconds double precision default 34560000,
    ledger_seconds double precision default 34560000)
returns bigint
language plpgsql set search_path = '' set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
    day constant double precision := 86400;
    orphans bigint := 0;
    once bigint;
    fires bigint;
    one record;
begin
    if not pg_catalog.pg_try_advisory_xact_lock(1903521, 0) then
        return 0;
    end if;
    for one in
        -- One look at the index for each name, however many rows it has.
        with recursive names as (
            select pg_catalog.min(f.queue) as queue from queue_worker_data.failures f
            union all
            select (select pg_catalog.min(f.queue) from queue_worker_data.failures f where f.queue > n.queue)
            from names n where n.queue is not null)
        select n.queue from names n
        where n.queue is not null and not exists (select from pgmq.meta m where m.queue_name = n.queue)
    loop
        orphans := greatest(orphans, queue_worker_data.expire('failures', 'failed_at', 30 * day, max_count, one.queue));
    end loop;
    if pg_catalog.to_regprocedure('queue_worker.prune_once(double precision, integer)') is not null then
        execute 'select queue_worker.prune_once($1, $2)' into once using ledger_seconds, max_count;
    end if;
    if pg_catalog.to_regprocedure('queue_worker_data.prune_fires(integer)') is not null then
        execute 'select queue_worker_data.prune_fires($1)' into fires using max_count;
    end if;
    return greatest(orphans, once, fires,
        queue_worker_data.expire('workers', 'last_seen', day, max_count),
        queue_worker_data.expire('sleepers', 'until', day, max_count),
        queue_worker_data.expire('audit', 'at', audit_seconds, max_count),
        queue_worker.mail_prune(older_than_seconds => ledger_seconds, max_count => prune_shared.max_count),
        -- An open one has no such time, and stays.
        queue_worker_data.expire('batches', 'finished_at', 30 * day, max_count));
end $$;

-- Vacuum settings of a queue's table. A claim reads past every row that died since the last vacuum: 13 buffers a message
-- after a vacuum, 17 with 200,000 dead rows, 37 with a million. The server's default waits for a fifth of the rows,
-- which is 200,000 where a million wait.
create function queue_worker_data.tune(queue text) returns void
language plpgsql set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    name constant text := 'q_' || tune.queue;
begin
    if exists (select from pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o
               where c.oid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', name))
                 and o.option_name = 'autovacuum_vacuum_scale_factor') then
        -- Set before, perhaps by a person who knows better.
        return;
    end if;
    execute pg_catalog.format('alter table pgmq.%I set (autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_threshold = 5000)', name);
end $$;

-- Queues made by an earlier version.
do $$
declare
    one record;
begin
    for one in select q.queue from queue_worker_data.queues q
               where pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || q.queue)) is not null
    loop
        perform queue_worker_data.tune(one.queue);
    end loop;
end $$;

call queue_worker_data.lock_down();
