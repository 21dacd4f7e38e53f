-- min_worker: 0.1.0
-- Tables that pgmq keeps in other ways: as members of an extension, and in partitions.
--
-- Before 1.6, pgmq as an extension makes the tables of its queues members of it, and takes them out before it drops them.
-- Only the extension's owner may do that (on Supabase postgres), and the owner of our schema is somebody else.

-- Makes the two tables of a queue as pgmq.create does, but as no members of the extension. The columns are those of
-- pgmq.message_record, in its order: pgmq returns whole rows as that type.
create function queue_worker_data.make_tables(queue text) returns void
language plpgsql set search_path = '' as $$
declare
    live constant text := 'q_' || make_tables.queue;
    archive constant text := 'a_' || make_tables.queue;
    columns constant text := (
        select pg_catalog.string_agg(pg_catalog.format('%I %s%s', a.attname,
                   pg_catalog.format_type(a.atttypid, a.atttypmod),
                   case a.attname when 'read_ct' then ' default 0 not null'
                                  when 'enqueued_at' then ' default pg_catalog.now() not null'
                                  when 'vt' then ' not null' else '' end), ', ' order by a.attnum)
        from pg_catalog.pg_type t join pg_catalog.pg_attribute a on a.attrelid = t.typrelid
        where t.oid = 'pgmq.message_record'::regtype and a.attnum > 0 and not a.attisdropped
          and a.attname <> 'msg_id');
begin
    execute pg_catalog.format('create table if not exists pgmq.%I (msg_id bigint primary key generated always as'
        ' identity, %s)', live, columns);
    execute pg_catalog.format('create table if not exists pgmq.%I (msg_id bigint primary key, %s, archived_at'
        ' timestamptz default pg_catalog.now() not null)', archive, columns);
    execute pg_catalog.format('create index if not exists %I on pgmq.%I (vt)', live || '_vt_idx', live);
    execute pg_catalog.format('create index if not exists %I on pgmq.%I (archived_at)',
        'archived_at_idx_' || make_tables.queue, archive);
    insert into pgmq.meta (queue_name, is_partitioned, is_unlogged) values (make_tables.queue, false, false)
        on conflict do nothing;
end $$;

-- Drops them. Raises 42501 where they are members of the extension; the hint is for its owner.
create function queue_worker_data.drop_tables(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    execute pg_catalog.format('drop table if exists pgmq.%I, pgmq.%I', 'q_' || drop_tables.queue,
        'a_' || drop_tables.queue);
    delete from pgmq.meta m where m.queue_name = drop_tables.queue;
exception when dependent_objects_still_exist then
    raise exception 'queue "%": its tables are members of the extension pgmq, which % may not change', drop_tables.queue,
        current_user using errcode = '42501', hint = (
            select pg_catalog.format('As a superuser run: alter extension pgmq drop table pgmq.%I; alter extension pgmq'
                ' drop sequence pgmq.%I; alter extension pgmq drop table pgmq.%I; then drop the queue.',
                'q_' || drop_tables.queue, 'q_' || drop_tables.queue || '_msg_id_seq', 'a_' || drop_tables.queue));
end $$;

create or replace function queue_worker_data.make_queue(queue text, ordered boolean default false) returns void
language plpgsql security definer set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    name constant text := pg_catalog.format('pgmq.%I', 'q_' || coalesce(make_queue.queue, ''));
    state record;
begin
    perform queue_worker_data.check_queue_name(make_queue.queue);
    select q.ordered into state from queue_worker_data.queues q where q.queue = make_queue.queue;
    -- Several workers start at once; a transaction lock also works behind a transaction pooler.
    perform pg_catalog.pg_advisory_xact_lock(1903520, pg_catalog.hashtext(make_queue.queue));
    perform queue_worker_data.note_now();
    -- The table too: pgmq keeps the name of a queue whose table was dropped by hand.
    if not exists (select from pgmq.meta m where m.queue_name = make_queue.queue)
       or pg_catalog.to_regclass(name) is null then
        begin
            perform pgmq.create(queue_name => make_queue.queue);
        exception when insufficient_privilege then
            -- Where it was refused for another reason, this is, too.
            perform queue_worker_data.make_tables(make_queue.queue);
        end;
    end if;
    perform queue_worker_data.take_over(make_queue.queue);
    perform queue_worker_data.equip(make_queue.queue);
    perform queue_worker_data.tune(make_queue.queue);
    if make_queue.ordered or state.ordered then
        perform queue_worker_data.equip_ordered(make_queue.queue);
    end if;
    insert into queue_worker_data.queues as q (queue, ordered) values (make_queue.queue, make_queue.ordered)
        on conflict (queue) do update set ordered = true where make_queue.ordered and not q.ordered;
end $$;

create or replace function queue_worker_data.drop_queue(queue text) returns void
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    live constant regclass := pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || drop_queue.queue));
    waiting bigint;
    companion text;
begin
    perform queue_worker_data.check_queue_name(drop_queue.queue);
    if live is null and not exists (select from pgmq.meta m where m.queue_name = drop_queue.queue) then
        perform queue_worker_data.missing_queue(drop_queue.queue);
    end if;
    perform queue_worker_data.note_now();
    begin
        if live is not null then
            execute pg_catalog.format('lock table %s in access exclusive mode', live);
            execute pg_catalog.format('select pg_catalog.count(*) from %s', live) into waiting;
            begin
                perform pgmq.drop_queue(queue_name => drop_queue.queue);
            exception when insufficient_privilege then
                perform queue_worker_data.drop_tables(drop_queue.queue);
            end;
        else
            -- Its table was dropped by hand, and pgmq leaves such a queue as it is.
            execute pg_catalog.format('drop table if exists pgmq.%I', 'a_' || drop_queue.queue);
            delete from pgmq.meta m where m.queue_name = drop_queue.queue;
        end if;
        -- Its numbers go, too; nobody may add them up meanwhile.
        perform pg_catalog.pg_advisory_xact_lock(1903521, pg_catalog.hashtext('queue_worker_data.tally'));
    exception when lock_not_available then
        perform queue_worker_data.busy(drop_queue.queue);
    end;
    perform queue_worker_data.forget(drop_queue.queue, null);
    foreach companion in array array['queues', 'limits', 'unique_keys', 'tally', 'minutes', 'totals', 'timings',
                                     'counts'] loop
        if pg_catalog.to_regclass('queue_worker_data.' || companion) is not null then
            execute pg_catalog.format('delete from queue_worker_data.%I c where c.queue = $1', companion)
                using drop_queue.queue;
        end if;
    end loop;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('drop_queue', drop_queue.queue, pg_catalog.jsonb_build_object('count', waiting));
end $$;

-- SECURITY INVOKER: a queue that the extension's owner made by pgmq is taken out of the extension by him.
create or replace function queue_worker.drop_queue(queue text) returns void
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
    member record;
begin
    perform queue_worker_data.check_environment(drop_queue.queue);
    begin
        for member in
            select case c.relkind when 'S' then 'sequence' else 'table' end as kind, c.relname
            from pg_catalog.pg_extension e
            join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_extension'::regclass and d.refobjid = e.oid
                and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype = 'e'
            join pg_catalog.pg_class c on c.oid = d.objid
            where e.extname = 'pgmq' and c.relname in ('q_' || drop_queue.queue, 'a_' || drop_queue.queue,
                'q_' || drop_queue.queue || '_msg_id_seq')
        loop
            execute pg_catalog.format('alter extension pgmq drop %s pgmq.%I', member.kind, member.relname);
        end loop;
    exception when insufficient_privilege or lock_not_available then
        null;  -- the drop itself says what is in the way
    end;
    perform queue_worker_data.drop_queue(drop_queue.queue);
end $$;

create or replace function queue_worker_data.prune(
    queue text, archive_seconds double precision, max_count int default 5000,
    failure_seconds double precision default 2592000, dead_seconds double precision default null)
returns bigint
language plpgsql security definer set search_path = '' set lock_timeout = '1s' as $$
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
    -- The condition a second time: an archive may be partitioned, and a ctid is that of one row in each partition.
    execute pg_catalog.format(
        'delete from pgmq.%1$I a where a.ctid = any (array(
             select x.ctid from pgmq.%1$I x where x.archived_at < $1 order by x.archived_at limit $2
             for update skip locked)) and a.archived_at < $1',
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


-- ---------------------------------------------------------------------------------------------------- numbers

-- See 0031.
create or replace function queue_worker_data.fold_tally(max_count int default 100000) returns bigint
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
    bounds constant double precision[] := queue_worker_data.pickup_bounds();
    taken bigint;
begin
    if not pg_catalog.pg_try_advisory_xact_lock(1903521, pg_catalog.hashtext('queue_worker_data.tally')) then
        return 0;
    end if;
    with gone as (
        delete from queue_worker_data.tally t
        where t.tally_id = any (array(select x.tally_id from queue_worker_data.tally x order by x.tally_id limit max_count))
        returning t.queue, pg_catalog.date_trunc('minute', t.at) as minute, t.done, t.retried, t.dead, t.lost, t.pickups),
    picked as (
        select g.queue, pg_catalog.width_bucket(p.seconds, bounds) as bucket, count(*) as n,
               sum(p.seconds::double precision) as total  -- a sum of reals would be a real: 7 digits
        from gone g, pg_catalog.unnest(g.pickups) p (seconds) group by g.queue, 2),
    timed as (
        select queue_worker_data.add_timings(q.queue, 'pickup', bounds, array(
                   select coalesce(p.n, 0) from pg_catalog.generate_series(0, pg_catalog.cardinality(bounds)) b (bucket)
                   left join picked p on p.queue = q.queue and p.bucket = b.bucket order by b.bucket), q.total)
        from (select p.queue, sum(p.total) as total from picked p group by p.queue) q),
    sums as (
        select g.queue, g.minute, count(*) as taken, sum(g.done) as done, sum(g.retried) as retried,
               sum(g.dead) as dead, sum(g.lost) as lost
        from gone g group by g.queue, g.minute),
    ended as (select s.* from sums s where s.done + s.retried + s.dead + s.lost > 0),
    kept as (
        insert into queue_worker_data.minutes as m (queue, minute, done, retried, dead, lost)
        select s.queue, s.minute, s.done, s.retried, s.dead, s.lost from ended s
        on conflict (queue, minute) do update set done = m.done + excluded.done, retried = m.retried + excluded.retried,
            dead = m.dead + excluded.dead, lost = m.lost + excluded.lost),
    total as (
        insert into queue_worker_data.totals as o (queue, done, retried, dead, lost)
        select s.queue, sum(s.done), sum(s.retried), sum(s.dead), sum(s.lost) from ended s group by s.queue
        on conflict (queue) do update set done = o.done + excluded.done, retried = o.retried + excluded.retried,
            dead = o.dead + excluded.dead, lost = o.lost + excluded.lost)
    -- A SELECT in WITH runs only where it is read.
    select coalesce((select sum(s.taken) from sums s), 0) + 0 * (select count(*) from timed) into taken;
    delete from queue_worker_data.minutes m where m.minute < pg_catalog.clock_timestamp() - interval '7 days';
    -- A queue that plain pgmq drops takes its numbers along. Workers bring some later than its last run.
    with dropped as (
        delete from queue_worker_data.totals o
        where not exists (select from pgmq.meta m where m.queue_name = o.queue) returning o.queue)
    delete from queue_worker_data.minutes m using dropped d where m.queue = d.queue;
    delete from queue_worker_data.timings t where not exists (select from pgmq.meta m where m.queue_name = t.queue);
    delete from queue_worker_data.counts c
        where c.queue <> '' and not exists (select from pgmq.meta m where m.queue_name = c.queue);
    return taken;
end $$;

create or replace function queue_worker_data.count_settled(
    queue text, done int default 0, retried int default 0, dead int default 0, lost int default 0)
returns void
language plpgsql set search_path = '' as $$
begin
    insert into queue_worker_data.tally (queue, done, retried, dead, lost)
        values (count_settled.queue, count_settled.done, count_settled.retried, count_settled.dead, count_settled.lost);
    -- Whoever only fetches by hand sends no heartbeat, which folds otherwise.
    -- Where the transaction sees an older state, what another one has added up by now would be an error (40001).
    if pg_catalog.random() < 0.0005 and pg_catalog.current_setting('transaction_isolation') = 'read committed' then
        perform queue_worker_data.fold_tally();
    end if;
end $$;

call queue_worker_data.lock_down();
call queue_worker_data.remember();
