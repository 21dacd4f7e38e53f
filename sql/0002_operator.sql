-- min_worker: 0.1.0
-- Producers and operators: what people call from triggers, the SQL editor and the command line.

-- ---------------------------------------------------------------------------------------------------- queues

-- Wakes idle workers. SECURITY DEFINER: it runs as whoever inserts into the queue, who may know nothing of us.
create function queue_worker_data.wake() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    -- NOTIFY takes a lock that all committing notifiers share, so it is sent only when somebody sleeps.
    if exists (select from queue_worker_data.sleepers s
               where s.queue = tg_argv[0] and s.until > pg_catalog.clock_timestamp()) then
        perform pg_catalog.pg_notify('queue_worker', tg_argv[0]);
    end if;
    return null;
end $$;

-- Makes a queue, or takes over one that pgmq made; does nothing for one that is ready.
create function queue_worker.create_queue(queue text, ordered boolean default false) returns void
language plpgsql set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(create_queue.queue);
    if create_queue.ordered then
        raise exception 'ordered queues are not available in this version' using errcode = '0A000';
    end if;
    -- A claim addresses rows by ctid, which is unique within one partition only.
    if exists (select from pg_catalog.pg_class c
               where c.oid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || create_queue.queue))
                 and c.relkind = 'p') then
        raise exception 'queue "%": partitioned queues are not available in this version', create_queue.queue
            using errcode = '0A000';
    end if;
    if exists (select from queue_worker_data.queues q where q.queue = create_queue.queue)
       and exists (select from pg_catalog.pg_trigger g
                   where g.tgrelid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || create_queue.queue))
                     and g.tgname = 'queue_worker_wake') then
        return;
    end if;
    -- Several workers start at once; a transaction lock also works behind a transaction pooler.
    perform pg_catalog.pg_advisory_xact_lock(1903520, pg_catalog.hashtext(create_queue.queue));
    -- The table too: pgmq keeps the name of a queue whose table was dropped by hand.
    if not exists (select from pgmq.meta m where m.queue_name = create_queue.queue)
       or pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || create_queue.queue)) is null then
        perform pgmq.create(queue_name => create_queue.queue);
    end if;
    if not exists (select from pg_catalog.pg_trigger g
                   where g.tgrelid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || create_queue.queue))
                     and g.tgname = 'queue_worker_wake') then
        execute pg_catalog.format(
            'create trigger queue_worker_wake after insert on pgmq.%I for each statement
             execute function queue_worker_data.wake(%L)', 'q_' || create_queue.queue, create_queue.queue);
    end if;
    insert into queue_worker_data.queues (queue) values (create_queue.queue) on conflict do nothing;
end $$;

create function queue_worker.pause(queue text, reason text default null) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(pause.queue);
    insert into queue_worker_data.queues as q (queue, paused_at, pause_reason)
        values (pause.queue, pg_catalog.now(), pause.reason)
        on conflict (queue) do update set paused_at = coalesce(q.paused_at, excluded.paused_at),
            pause_reason = excluded.pause_reason;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('pause', pause.queue, pg_catalog.jsonb_build_object('reason', pause.reason));
end $$;

create function queue_worker.resume(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(resume.queue);
    update queue_worker_data.queues q set paused_at = null, pause_reason = null where q.queue = resume.queue;
    insert into queue_worker_data.audit (action, queue) values ('resume', resume.queue);
    perform pg_catalog.pg_notify('queue_worker', resume.queue);
end $$;


-- ---------------------------------------------------------------------------------------------------- send

-- Checks one message's options and returns its headers; every refusal is 22023 and names the option.
create function queue_worker_data.headers_of(
    payload jsonb, headers jsonb, priority int, unique_key text, group_key text, expires_at timestamptz,
    max_attempts int, retry_delay_seconds int, timeout_seconds int)
returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    options jsonb;
begin
    if payload is null or pg_catalog.jsonb_typeof(payload) <> 'object' then
        raise exception 'payload must be a JSON object, not %', coalesce(pg_catalog.jsonb_typeof(payload), 'null')
            using errcode = '22023';
    elsif pg_catalog.octet_length(payload::text) > 262144 then
        raise exception 'payload is % bytes, the limit is 262144; store it elsewhere and send its key',
            pg_catalog.octet_length(payload::text) using errcode = '22023';
    elsif headers is not null and pg_catalog.jsonb_typeof(headers) <> 'object' then
        raise exception 'headers must be a JSON object' using errcode = '22023';
    elsif max_attempts not between 1 and 1000 then
        raise exception 'max_attempts must be 1 to 1000' using errcode = '22023';
    elsif retry_delay_seconds not between 0 and 31536000 then
        raise exception 'retry_delay_seconds must be 0 to 31536000' using errcode = '22023';
    elsif timeout_seconds not between 1 and 86400 then
        raise exception 'timeout_seconds must be 1 to 86400' using errcode = '22023';
    elsif coalesce(priority, 0) <> 0 or unique_key is not null or group_key is not null or expires_at is not null then
        raise exception 'priority, unique_key, group_key and expires_at are not available in this version'
            using errcode = '0A000';
    end if;
    options := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'max_attempts', max_attempts, 'retry_delay_seconds', retry_delay_seconds,
        'timeout_seconds', timeout_seconds));
    return nullif(coalesce(headers, '{}') || options, '{}');
end $$;

create function queue_worker_data.due_at(delay_seconds int, run_at timestamptz) returns timestamptz
language plpgsql volatile set search_path = '' as $$
begin
    if delay_seconds not between 0 and 31536000 then
        raise exception 'delay_seconds must be 0 to 31536000' using errcode = '22023';
    elsif run_at is not null and delay_seconds > 0 then
        raise exception 'give delay_seconds or run_at, not both' using errcode = '22023';
    elsif not pg_catalog.isfinite(run_at) then
        raise exception 'run_at must be a point in time, not %', run_at using errcode = '22023';
    end if;
    return coalesce(run_at, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => coalesce(delay_seconds, 0)));
end $$;

-- Sends one message and returns its id. See docs/sql.md for the options.
create function queue_worker.send(
    queue text, payload jsonb, delay_seconds int default 0, run_at timestamptz default null,
    priority int default 0, unique_key text default null, unique_mode text default 'keep',
    unique_seconds int default null, group_key text default null, expires_at timestamptz default null,
    max_attempts int default null, retry_delay_seconds int default null, timeout_seconds int default null,
    headers jsonb default null)
returns bigint
language plpgsql set search_path = '' as $$
declare
    sent bigint;
begin
    perform queue_worker_data.check_queue(send.queue);
    execute pg_catalog.format(
        'insert into pgmq.%I (vt, message, headers) values ($1, $2, $3) returning msg_id', 'q_' || send.queue)
        into sent using queue_worker_data.due_at(delay_seconds, run_at), payload,
            queue_worker_data.headers_of(payload, headers, priority, unique_key, group_key, expires_at,
                max_attempts, retry_delay_seconds, timeout_seconds);
    return sent;
end $$;

-- Sends many: [{"payload": {...}, "delay_seconds": 5}, ...]; returns the ids in the order of the array.
create function queue_worker.send_batch(queue text, messages jsonb) returns setof bigint
language plpgsql set search_path = '' as $$
declare
    known constant text[] := array['payload', 'delay_seconds', 'run_at', 'priority', 'unique_key', 'unique_mode',
        'unique_seconds', 'group_key', 'expires_at', 'max_attempts', 'retry_delay_seconds', 'timeout_seconds',
        'headers'];
    wrong text;
begin
    perform queue_worker_data.check_queue(send_batch.queue);
    if messages is null or pg_catalog.jsonb_typeof(messages) <> 'array' then
        raise exception 'messages must be a JSON array of {"payload": {...}, ...options}' using errcode = '22023';
    end if;
    select pg_catalog.format('messages[%s]: %s', e.n - 1,
            case when pg_catalog.jsonb_typeof(e.one) <> 'object' then 'not an object'
                 else 'unknown option "' || k.name || '"' end)
        into wrong
        from pg_catalog.jsonb_array_elements(messages) with ordinality e (one, n)
        left join lateral (
            select o.name from pg_catalog.jsonb_object_keys(
                case when pg_catalog.jsonb_typeof(e.one) = 'object' then e.one else '{}' end) o (name)
            where o.name <> all (known) limit 1) k on true
        where pg_catalog.jsonb_typeof(e.one) <> 'object' or k.name is not null
        limit 1;
    if wrong is not null then
        raise exception '%', wrong using errcode = '22023';
    end if;
    return query execute pg_catalog.format(
        'insert into pgmq.%I (vt, message, headers)
         select queue_worker_data.due_at(coalesce((e.one ->> ''delay_seconds'')::int, 0),
                    (e.one ->> ''run_at'')::timestamptz),
                e.one -> ''payload'',
                queue_worker_data.headers_of(e.one -> ''payload'', nullif(e.one -> ''headers'', ''null''),
                    (e.one ->> ''priority'')::int, e.one ->> ''unique_key'', e.one ->> ''group_key'',
                    (e.one ->> ''expires_at'')::timestamptz, (e.one ->> ''max_attempts'')::int,
                    (e.one ->> ''retry_delay_seconds'')::int, (e.one ->> ''timeout_seconds'')::int)
         from pg_catalog.jsonb_array_elements($1) with ordinality e (one, n) order by e.n
         returning msg_id', 'q_' || send_batch.queue) using messages;
end $$;

-- Trigger function: create trigger t after insert on app.orders for each row
--     execute function queue_worker.send_row('payments'[, 'best_effort']);
-- Strict (the default) fails together with the row. best_effort lets the row commit and keeps what it could not send.
-- SECURITY DEFINER: the writer of the row needs no right on the queue. Not callable as a function.
create function queue_worker.send_row() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
    old_row jsonb;
    new_row jsonb;
    body jsonb;
begin
    if tg_when <> 'AFTER' or tg_level <> 'ROW' then
        raise exception 'trigger %: use "after insert or update or delete on ... for each row execute function'
            ' queue_worker.send_row(...)", not %, for each %', tg_name, lower(tg_when), lower(tg_level)
            using errcode = '22023';
    end if;
    if tg_nargs not between 1 and 2 or (tg_nargs = 2 and tg_argv[1] not in ('strict', 'best_effort')) then
        raise exception 'trigger %: use queue_worker.send_row(''queue''[, ''strict'' | ''best_effort''])', tg_name
            using errcode = '22023';
    end if;
    old_row := case when tg_op = 'INSERT' then null else pg_catalog.to_jsonb(old) end;
    new_row := case when tg_op = 'DELETE' then null else pg_catalog.to_jsonb(new) end;
    body := pg_catalog.jsonb_build_object('schema', tg_table_schema, 'table', tg_table_name, 'op', tg_op,
        'id', coalesce(new_row, old_row) -> 'id', 'new', new_row, 'old', old_row);
    if tg_argv[1] is distinct from 'best_effort' then
        perform queue_worker.send(tg_argv[0], body);
        return null;
    end if;
    begin
        perform queue_worker.send(tg_argv[0], body);
    exception when others then
        insert into queue_worker_data.unsent (queue, payload, error) values (tg_argv[0], body, sqlerrm);
    end;
    return null;
end $$;

-- Sends what best_effort triggers could not; returns how many went out. Workers call it now and then.
create function queue_worker.resend_unsent(queue text, max_count int default 1000) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one record;
    sent bigint := 0;
begin
    for one in
        select u.unsent_id, u.payload from queue_worker_data.unsent u where u.queue = resend_unsent.queue
        order by u.at, u.unsent_id limit max_count for update skip locked
    loop
        begin
            perform queue_worker.send(resend_unsent.queue, one.payload);
            delete from queue_worker_data.unsent u where u.unsent_id = one.unsent_id;
            sent := sent + 1;
        exception when others then
            -- One that can never be sent goes to the end of the line, so that it holds up no other.
            update queue_worker_data.unsent u set at = pg_catalog.clock_timestamp(), error = sqlerrm
                where u.unsent_id = one.unsent_id;
        end;
    end loop;
    return sent;
end $$;


-- ---------------------------------------------------------------------------------------------------- dead letters

-- Sends dead letters again (null: all of the queue, at most max_count); returns how many. The new message keeps the
-- payload, the headers, the history and a business key; two redrives at once give one message.
create function queue_worker.redrive(queue text, dead_ids bigint[] default null, max_count int default null)
returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one record;
    sent bigint := 0;
    fresh bigint;
begin
    perform queue_worker_data.check_queue(redrive.queue);
    for one in
        select d.dead_id, d.msg_id, d.payload, d.headers, d.enqueued_at
        from queue_worker_data.dead_letters d
        where d.queue = redrive.queue and (dead_ids is null or d.dead_id = any (dead_ids))
        order by d.dead_id limit max_count for update skip locked
    loop
        execute pg_catalog.format(
            'insert into pgmq.%I (vt, message, headers) values (pg_catalog.clock_timestamp(), $1, $2)
             returning msg_id', 'q_' || redrive.queue)
            into fresh using one.payload,
                pg_catalog.jsonb_build_object(
                    'key', redrive.queue || ':' || one.msg_id || ':'
                           || (extract(epoch from one.enqueued_at) * 1000000)::bigint,
                                              'first_enqueued_at', one.enqueued_at)
                || case when pg_catalog.jsonb_typeof(one.headers) = 'object' then one.headers else '{}' end
                || pg_catalog.jsonb_build_object('redriven_from', one.dead_id);
        update queue_worker_data.failures f set msg_id = fresh
            where f.queue = redrive.queue and f.msg_id = one.msg_id;
        delete from queue_worker_data.dead_letters d where d.dead_id = one.dead_id;
        sent := sent + 1;
    end loop;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('redrive', redrive.queue, pg_catalog.jsonb_build_object('count', sent, 'dead_ids', dead_ids));
    return sent;
end $$;

-- Deletes dead letters for good (null: all of the queue), never waiting messages; returns how many.
create function queue_worker.discard(queue text, dead_ids bigint[] default null) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    gone bigint;
begin
    -- The dead letters of a queue that was dropped can still be discarded.
    perform queue_worker_data.check_queue_name(discard.queue);
    if not exists (select from queue_worker_data.dead_letters d where d.queue = discard.queue) then
        perform queue_worker_data.check_queue(discard.queue);
    end if;
    delete from queue_worker_data.dead_letters d
        where d.queue = discard.queue and (dead_ids is null or d.dead_id = any (dead_ids));
    get diagnostics gone = row_count;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('discard', discard.queue, pg_catalog.jsonb_build_object('count', gone, 'dead_ids', dead_ids));
    return gone;
end $$;


-- ---------------------------------------------------------------------------------------------------- look inside

create function queue_worker_data.state_of(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, vt timestamptz)
returns text
language sql stable set search_path = '' as $$
    -- A hidden message is running, unless nobody ever claimed it or its last outcome was recorded: then it is delayed.
    select case when state_of.vt <= pg_catalog.clock_timestamp() then 'waiting'
                when state_of.read_ct = 0 then 'delayed'
                when exists (select from queue_worker_data.trouble t
                             where t.queue = state_of.queue and t.msg_id = state_of.msg_id
                               and t.enqueued_at = state_of.enqueued_at and t.settled_ct = state_of.read_ct)
                    then 'delayed'
                else 'running' end;
$$;

create type queue_worker_data.live_message as (
    msg_id bigint, state text, attempt int, priority int, enqueued_at timestamptz, due_at timestamptz,
    payload jsonb, headers jsonb);

-- The live messages of a queue, next due first or newest first; `state` narrows them down before they are counted.
create function queue_worker.messages(
    queue text, max_count int default 100, state text default null, newest boolean default false)
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
                0, m.enqueued_at, m.vt, m.message, m.headers
         from (select x.msg_id, x.read_ct, x.enqueued_at, x.vt, x.message, x.headers from pgmq.%1$I x
               where %2$s order by %3$s limit $2) m
         order by %4$s', 'q_' || messages.queue,
        case messages.state when 'waiting' then 'x.vt <= $4'
                            when 'delayed' then 'x.vt > $4 and ' || same_state
                            when 'running' then 'x.vt > $4 and x.read_ct > 0 and ' || same_state
                            else 'true' end,
        case when messages.newest then 'x.msg_id desc' else 'x.vt' end,
        case when messages.newest then 'm.msg_id desc' else 'm.vt' end)
        using messages.queue, messages.max_count, messages.state, pg_catalog.clock_timestamp();
exception when undefined_table then
    perform queue_worker_data.missing_queue(messages.queue);
end $$;

-- What was archived last, newest first.
create function queue_worker.archived(queue text, max_count int default 100)
returns table (msg_id bigint, archived_at timestamptz, enqueued_at timestamptz, payload jsonb, headers jsonb)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(archived.queue);
    return query execute pg_catalog.format(
        'select a.msg_id, a.archived_at, a.enqueued_at, a.message, a.headers from pgmq.%I a
         order by a.archived_at desc limit $1', 'a_' || archived.queue) using archived.max_count;
exception when undefined_table then
    perform queue_worker_data.missing_queue(archived.queue);
end $$;

-- One message wherever it is: waiting, delayed, running, dead or archived; no row where it is none of them.
create type queue_worker_data.message_state as (
    msg_id bigint, state text, attempt int, enqueued_at timestamptz, due_at timestamptz, ended_at timestamptz,
    reason text, error text, dead_id bigint, payload jsonb, headers jsonb, failures jsonb);

create function queue_worker.message(queue text, msg_id bigint) returns setof queue_worker_data.message_state
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    history jsonb;
begin
    perform queue_worker_data.check_queue_name(message.queue);
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('attempt', f.attempt, 'kind', f.kind, 'error', f.error,
               'failed_at', f.failed_at, 'retry_at', f.retry_at, 'worker', f.worker) order by f.failure_id)
        into history from queue_worker_data.failures f
        where f.queue = message.queue and f.msg_id = message.msg_id;
    return query execute pg_catalog.format(
        'select m.msg_id, queue_worker_data.state_of($1, m.msg_id, m.read_ct, m.enqueued_at, m.vt),
                coalesce(t.failures, 0) + 1, m.enqueued_at, m.vt, null::timestamptz, null::text, t.last_error,
                null::bigint, m.message, m.headers, $3
         from pgmq.%1$I m left join queue_worker_data.trouble t
             on t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
         where m.msg_id = $2
         union all
         select a.msg_id, ''archived'', null::int, a.enqueued_at, null, a.archived_at, null, null, null,
                a.message, a.headers, $3
         from pgmq.%2$I a where a.msg_id = $2
         union all
         select d.msg_id, ''dead'', d.attempts, d.enqueued_at, null, d.dead_at, d.reason, d.error, d.dead_id,
                d.payload, d.headers, $3
         from queue_worker_data.dead_letters d where d.queue = $1 and d.msg_id = $2',
        'q_' || message.queue, 'a_' || message.queue)
        using message.queue, message.msg_id, coalesce(history, '[]');
exception when undefined_table then
    perform queue_worker_data.missing_queue(message.queue);
end $$;

create function queue_worker_data.queue_states()
returns table (queue text, waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
               paused_at timestamptz, pause_reason text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    one record;
begin
    for one in
        select m.queue_name::text, q.paused_at, q.pause_reason from pgmq.meta m
        left join queue_worker_data.queues q on q.queue = m.queue_name order by m.queue_name
    loop
        begin
            return query execute pg_catalog.format(
                'select $1, s.waiting, s.hidden - s.running, s.running,
                        (select count(*) from queue_worker_data.dead_letters d where d.queue = $1),
                        s.oldest, $2, $3
                 from (select count(*) filter (where m.vt <= now()) as waiting,
                              count(*) filter (where m.vt > now()) as hidden,
                              count(*) filter (where m.vt > now() and m.read_ct > 0 and not exists (
                                  select from queue_worker_data.trouble t
                                  where t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
                                    and t.settled_ct = m.read_ct)) as running,
                              pg_catalog.date_part(''epoch'', now() - min(m.vt) filter (
                                  where m.vt <= now() and pg_catalog.isfinite(m.vt))) as oldest
                       from pgmq.%I m) s', 'q_' || pg_catalog.lower(one.queue_name))
                using one.queue_name, one.paused_at, one.pause_reason;
        exception
            when undefined_table then
                -- A queue whose table was dropped by hand must not hide all the others.
                null;
            when insufficient_privilege then
                -- Nor must one that this role may not read.
                return query select one.queue_name, null::bigint, null::bigint, null::bigint, null::bigint,
                    null::double precision, one.paused_at, one.pause_reason;
        end;
    end loop;
end $$;

create view queue_worker.queues with (security_invoker = true) as
    select queue, waiting, delayed, running, dead, oldest_seconds, paused_at, pause_reason
    from queue_worker_data.queue_states();

create view queue_worker.dead_letters with (security_invoker = true) as
    select dead_id, queue, msg_id, payload, headers, attempts, reason, error, enqueued_at, dead_at, redriven_from
    from queue_worker_data.dead_letters;

create view queue_worker.failures with (security_invoker = true) as
    select failure_id, queue, msg_id, attempt, kind, error, retry_at, worker, failed_at
    from queue_worker_data.failures;

create view queue_worker.workers with (security_invoker = true) as
    select worker, host, pid, version, queues, slots, busy, started_at, last_seen,
           last_seen > now() - interval '45 seconds' as alive
    from queue_worker_data.workers;

create view queue_worker.audit with (security_invoker = true) as
    select audit_id, at, actor, action, queue, detail from queue_worker_data.audit;


-- ---------------------------------------------------------------------------------------------------- housekeeping

-- One per process and 15 seconds.
create function queue_worker.heartbeat(
    worker text, host text, pid int, version text, queues text[], slots int, busy int)
returns void
language sql set search_path = '' as $$
    insert into queue_worker_data.workers as w (worker, host, pid, version, queues, slots, busy)
        values (heartbeat.worker, heartbeat.host, heartbeat.pid, heartbeat.version, heartbeat.queues,
                heartbeat.slots, heartbeat.busy)
        on conflict (worker) do update set slots = excluded.slots, busy = excluded.busy,
            queues = excluded.queues, last_seen = pg_catalog.now();
$$;

-- A worker that stops takes itself off the lists.
create function queue_worker.sign_off(worker text) returns void
language sql set search_path = '' as $$
    delete from queue_worker_data.sleepers s where s.worker = sign_off.worker;
    delete from queue_worker_data.workers w where w.worker = sign_off.worker;
$$;

-- Deletes what is older than it is kept, at most max_count archived messages a call; returns how many of those.
create function queue_worker.prune(
    queue text, archive_seconds double precision, max_count int default 5000,
    failure_seconds double precision default 2592000)
returns bigint
language plpgsql set search_path = '' set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
    gone bigint;
begin
    perform queue_worker_data.check_queue_name(prune.queue);
    if not pg_catalog.pg_try_advisory_xact_lock(1903521, pg_catalog.hashtext(prune.queue)) then
        return 0;
    end if;
    execute pg_catalog.format(
        'delete from pgmq.%1$I a where a.ctid = any (array(
             select x.ctid from pgmq.%1$I x where x.archived_at < $1 order by x.archived_at limit $2))',
        'a_' || prune.queue)
        using pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => archive_seconds), max_count;
    get diagnostics gone = row_count;
    delete from queue_worker_data.failures f where f.failure_id in (
        select x.failure_id from queue_worker_data.failures x
        where x.queue = prune.queue
          and x.failed_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => failure_seconds)
        limit max_count);
    -- A plain pgmq.delete leaves its companion behind.
    execute pg_catalog.format(
        'delete from queue_worker_data.trouble t where t.queue = $1
             and t.updated_at < pg_catalog.clock_timestamp() - interval ''1 day''
             and not exists (select from pgmq.%I m where m.msg_id = t.msg_id and m.enqueued_at = t.enqueued_at)',
        'q_' || prune.queue) using prune.queue;
    delete from queue_worker_data.workers w where w.last_seen < pg_catalog.now() - interval '1 day';
    delete from queue_worker_data.sleepers s where s.until < pg_catalog.now() - interval '1 day';
    return gone;
end $$;
