-- min_worker: 0.1.0
-- A look inside: queues with their limits and breakers, messages by what they hold, cancelled ones, who did what.

create or replace view queue_worker.queues with (security_invoker = true) as
    select s.queue, s.waiting, s.delayed, s.running, s.dead, s.oldest_seconds, s.paused_at, s.pause_reason,
           coalesce(q.ordered, false) as ordered, q.broken_until, q.broken_reason,
           q.rate_count, q.rate_seconds, q.fleet, q.per_group
    from queue_worker_data.queue_states() s
    left join queue_worker_data.queues q on q.queue = s.queue;

drop function queue_worker.messages(text, int, text, boolean);

-- The live messages of a queue, next due first or newest first; `state` narrows them down before they are counted, and
-- so does `contains`, a JSON object that the payload or the headers must contain (as `@>` does).
create function queue_worker.messages(
    queue text, max_count int default 100, state text default null, newest boolean default false,
    contains jsonb default null)
returns setof queue_worker_data.live_message
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    same_state constant text := 'queue_worker_data.state_of($1, x.msg_id, x.read_ct, x.enqueued_at, x.vt) = $3';
begin
    perform queue_worker_data.check_queue_name(messages.queue);
    if messages.state not in ('waiting', 'delayed', 'running') then
        raise exception 'state must be waiting, delayed or running, not %', pg_catalog.quote_literal(messages.state)
            using errcode = '22023';
    end if;
    -- The conditions on vt spare the look at every waiting message of a long queue.
    return query execute pg_catalog.format(
        'select m.msg_id,
                coalesce($3, queue_worker_data.state_of($1, m.msg_id, m.read_ct, m.enqueued_at, m.vt)),
                coalesce((select t.failures from queue_worker_data.trouble t
                          where t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at), 0) + 1,
                %6$s::int, m.enqueued_at, m.vt, m.message, m.headers
         from (select x.msg_id, x.read_ct, x.enqueued_at, x.vt, x.message, x.headers from pgmq.%1$I x
               where %2$s and %5$s order by %3$s limit $2) m
         order by %4$s', 'q_' || messages.queue,
        case messages.state when 'waiting' then 'x.vt <= $4'
                            when 'delayed' then 'x.vt > $4 and ' || same_state
                            when 'running' then 'x.vt > $4 and x.read_ct > 0 and ' || same_state
                            else 'true' end,
        case when messages.newest then 'x.msg_id desc' else 'x.vt' end,
        case when messages.newest then 'm.msg_id desc' else 'm.vt' end,
        case when messages.contains is null then 'true' else '(x.message @> $5 or x.headers @> $5)' end,
        queue_worker_data.priority_expression())
        using messages.queue, messages.max_count, messages.state, pg_catalog.clock_timestamp(), messages.contains;
exception when undefined_table then
    perform queue_worker_data.missing_queue(messages.queue);
end $$;

drop function queue_worker.archived(text, int);

-- What was archived last, newest first; `contains` as for messages, `since`: not before. state: archived or cancelled.
create function queue_worker.archived(
    queue text, max_count int default 100, contains jsonb default null, since timestamptz default null)
returns table (msg_id bigint, archived_at timestamptz, enqueued_at timestamptz, payload jsonb, headers jsonb, state text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(archived.queue);
    return query execute pg_catalog.format(
        'select a.msg_id, a.archived_at, a.enqueued_at, a.message, a.headers,
                case when a.headers ? ''cancelled_at'' then ''cancelled'' else ''archived'' end
         from pgmq.%I a where a.archived_at >= $2 and ($3 is null or a.message @> $3 or a.headers @> $3)
         order by a.archived_at desc limit $1', 'a_' || archived.queue)
        using archived.max_count, coalesce(archived.since, '-infinity'), archived.contains;
exception when undefined_table then
    perform queue_worker_data.missing_queue(archived.queue);
end $$;

alter type queue_worker_data.message_state add attribute has_result boolean;

-- One message wherever it is: waiting, delayed, running, dead, archived or cancelled; no row where it is none of them.
create or replace function queue_worker.message(queue text, msg_id bigint)
returns setof queue_worker_data.message_state
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    -- A queue that was dropped and made again counts from 1 again: failures outside a message's life are another's,
    -- unless they came along with a redrive.
    history constant text := '(select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            ''attempt'', f.attempt, ''kind'', f.kind, ''error'', f.error, ''failed_at'', f.failed_at,
            ''retry_at'', f.retry_at, ''worker'', f.worker) order by f.failure_id), ''[]'')
        from queue_worker_data.failures f
        where f.queue = $1 and f.msg_id = $2 and (f.failed_at >= %1$s.enqueued_at or %1$s.headers ? ''redriven_from'')
          and f.failed_at <= %2$s)';
    result text := 'null::boolean';
begin
    perform queue_worker_data.check_queue_name(message.queue);
    if pg_catalog.to_regclass('queue_worker_data.results') is not null then
        result := 'exists (select from queue_worker_data.results r where r.queue = $1 and r.msg_id = $2)';
    end if;
    return query execute pg_catalog.format(
        'select m.msg_id, queue_worker_data.state_of($1, m.msg_id, m.read_ct, m.enqueued_at, m.vt),
                coalesce(t.failures, 0) + 1, m.enqueued_at, m.vt, null::timestamptz, null::text, t.last_error,
                null::bigint, m.message, m.headers, %4$s, null::boolean
         from pgmq.%1$I m left join queue_worker_data.trouble t
             on t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
         where m.msg_id = $2
         union all
         select a.msg_id, case when a.headers ? ''cancelled_at'' then ''cancelled'' else ''archived'' end, null::int,
                a.enqueued_at, null, a.archived_at, null, null, null, a.message, a.headers, %5$s, %3$s
         from pgmq.%2$I a where a.msg_id = $2
         union all
         select d.msg_id, ''dead'', d.attempts, d.enqueued_at, null, d.dead_at, d.reason, d.error, d.dead_id,
                d.payload, d.headers, %6$s, null
         from queue_worker_data.dead_letters d where d.queue = $1 and d.msg_id = $2',
        'q_' || message.queue, 'a_' || message.queue, result, pg_catalog.format(history, 'm', '''infinity'''),
        pg_catalog.format(history, 'a', 'a.archived_at'), pg_catalog.format(history, 'd', 'd.dead_at'))
        using message.queue, message.msg_id;
exception when undefined_table then
    perform queue_worker_data.missing_queue(message.queue);
end $$;

-- The newest entries of the audit, of one queue or (null) of all.
create function queue_worker.list_audit(queue text default null, max_count int default 100)
returns setof queue_worker.audit
language sql stable set search_path = '' as $$
    select * from queue_worker.audit a
    where list_audit.queue is null or a.queue = list_audit.queue
    order by a.audit_id desc limit list_audit.max_count;
$$;


-- ---------------------------------------------------------------------------------------------------- diagnosis

-- Our functions as they are in the database, for whoever compares them with the files.
create function queue_worker.list_functions() returns table (name text, body_md5 text)
language sql stable set search_path = '' as $$
    select n.nspname || '.' || p.proname, pg_catalog.md5(p.prosrc)
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('queue_worker', 'queue_worker_data');
$$;

-- What is wrong with the server, the queues and their workers, each with what mends it; no row: nothing was found.
-- client_now: the caller's clock. old_seconds: how old a transaction may be; dead_rows: how many a table may carry.
create function queue_worker.diagnose(
    client_now timestamptz default null, old_seconds double precision default 300, dead_rows bigint default 100000)
returns table (subject text, queue text, finding text, fix text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    skew constant double precision := pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - client_now);
    since constant timestamptz := pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => old_seconds);
begin
    return query select 'pgmq', null::text, 'pgmq is version ' || e.extversion || ', which is too old',
            'alter extension pgmq update;'
        from pg_catalog.pg_extension e
        where e.extname = 'pgmq'
          and pg_catalog.regexp_replace(e.extversion, '^([0-9]+)[.]([0-9]+).*$', '\1')::int * 1000
              + pg_catalog.regexp_replace(e.extversion, '^([0-9]+)[.]([0-9]+).*$', '\2')::int < 1005;
    if abs(skew) > 2 then
        return query select 'clock', null::text,
            pg_catalog.format('the server''s clock is %s s %s this machine''s', pg_catalog.round(abs(skew)::numeric, 1),
                case when skew > 0 then 'ahead of' else 'behind' end),
            'let NTP set the clocks of both; due times count by the server''s';
    end if;
    return query select 'snapshot', null::text,
            pg_catalog.format('process %s (%s, %s) has a transaction open for %s s: no vacuum removes what died since, and'
                ' claims slow down', a.pid, nullif(a.application_name, ''), a.state,
                pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - a.xact_start)::numeric)),
            pg_catalog.format('select pg_terminate_backend(%s);', a.pid)
        from pg_catalog.pg_stat_activity a
        where a.xact_start < since and a.pid <> pg_catalog.pg_backend_pid() and a.backend_type = 'client backend'
          and (a.backend_xmin is not null or a.backend_xid is not null);
    return query select 'snapshot', null::text,
            pg_catalog.format('prepared transaction %s is open since %s', p.gid, p.prepared),
            pg_catalog.format('rollback prepared %L;', p.gid)
        from pg_catalog.pg_prepared_xacts p where p.prepared < since;
    if pg_catalog.current_setting('autovacuum') = 'off' or pg_catalog.current_setting('track_counts') = 'off' then
        return query select 'vacuum', null::text, 'autovacuum is off: dead rows pile up until claims crawl',
            'set autovacuum and track_counts to on in postgresql.conf';
    end if;
    return query select 'vacuum', m.queue_name::text, pg_catalog.format('autovacuum is off for pgmq.%s', c.relname),
            pg_catalog.format('alter table pgmq.%I reset (autovacuum_enabled);', c.relname)
        from pgmq.meta m join pg_catalog.pg_class c
            on c.relnamespace = 'pgmq'::regnamespace
           and c.relname in ('q_' || pg_catalog.lower(m.queue_name), 'a_' || pg_catalog.lower(m.queue_name))
        where exists (select from pg_catalog.pg_options_to_table(c.reloptions) o
                      where o.option_name = 'autovacuum_enabled' and not o.option_value::boolean)
        order by m.queue_name, c.relname;
    return query select 'vacuum', m.queue_name::text,
            pg_catalog.format('pgmq.%s has %s dead rows and %s live ones', s.relname, s.n_dead_tup, s.n_live_tup),
            pg_catalog.format('vacuum pgmq.%I;', s.relname)
        from pgmq.meta m join pg_catalog.pg_stat_all_tables s
            on s.schemaname = 'pgmq'
           and s.relname in ('q_' || pg_catalog.lower(m.queue_name), 'a_' || pg_catalog.lower(m.queue_name))
        where s.n_dead_tup > dead_rows and s.n_dead_tup > s.n_live_tup
        order by m.queue_name, s.relname;
    return query select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_queues() d;
end $$;

-- The part of it that looks at each queue which is ours or is served by a living worker.
create function queue_worker_data.diagnose_queues()
returns table (subject text, queue text, finding text, fix text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    one record;
    overdue double precision;
begin
    for one in
        select n.name, c.oid, c.relpersistence,
               exists (select from queue_worker_data.workers w
                       where n.name = any (w.queues)
                         and w.last_seen > pg_catalog.now() - interval '45 seconds') as served
        from (select q.queue from queue_worker_data.queues q
              union
              select pg_catalog.unnest(w.queues) from queue_worker_data.workers w
              where w.last_seen > pg_catalog.now() - interval '45 seconds') n (name)
        left join pg_catalog.pg_class c
            on c.oid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || n.name))
        order by n.name
    loop
        queue := one.name;
        subject := 'queue';
        if one.oid is null then
            finding := 'its table is gone';
            fix := pg_catalog.format('select queue_worker.create_queue(%L); or select queue_worker.drop_queue(%L);',
                one.name, one.name);
            return next;
            continue;
        end if;
        if not exists (select from pg_catalog.pg_trigger g
                       where g.tgrelid = one.oid and g.tgname = 'queue_worker_wake' and g.tgenabled <> 'D') then
            finding := 'its trigger queue_worker_wake is missing or disabled: workers find new messages by polling only';
            fix := pg_catalog.format('select queue_worker.create_queue(%L); or alter table pgmq.%I enable trigger'
                ' queue_worker_wake;', one.name, 'q_' || one.name);
            return next;
        end if;
        if one.relpersistence = 'u' then
            finding := 'its table is unlogged: a crash of the server empties it';
            fix := pg_catalog.format('alter table pgmq.%I set logged;', 'q_' || one.name);
            return next;
        end if;
        continue when one.served;
        begin
            execute pg_catalog.format('select pg_catalog.date_part(''epoch'', pg_catalog.clock_timestamp() - m.vt)
                from pgmq.%I m where m.vt <= $1 and m.vt > ''-infinity'' order by m.vt limit 1', 'q_' || one.name)
                into overdue using pg_catalog.clock_timestamp() - interval '1 minute';
        exception when insufficient_privilege then
            overdue := null;
        end;
        if overdue is not null then
            subject := 'worker';
            finding := pg_catalog.format('no living worker serves it, and a message is due since %s s',
                pg_catalog.round(overdue::numeric));
            fix := pg_catalog.format('queue-worker start -q %s', one.name);
            return next;
        end if;
    end loop;
end $$;

call queue_worker_data.lock_down();
