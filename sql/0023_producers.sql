-- min_worker: 0.1.0
-- Producers with few rights: a role such as Supabase's authenticated may send to one queue, within limits. See
-- docs/security.md, "Sending from a browser".

-- How many messages a sender has sent since `since`; `subject`: who, as the token says, or the role.
create table queue_worker_data.producer_counts (
    queue   text not null,
    role    text not null,
    subject text not null,
    since   timestamptz not null,
    sent    int not null,
    primary key (queue, role, subject)
);
alter table queue_worker_data.producer_counts enable row level security;
create index producer_counts_since_idx on queue_worker_data.producer_counts (since);

-- Who sends, as the token says: PostgREST hands its claims on as a setting.
create function queue_worker_data.subject(fallback text) returns text
language plpgsql stable set search_path = '' as $$
begin
    return left(coalesce(nullif(pg_catalog.current_setting('request.jwt.claims', true)::jsonb ->> 'sub', ''), fallback),
                200);
exception when others then
    return fallback;
end $$;

-- Counts messages against the sender's limit a minute; raises where it is used up. PT429: PostgREST answers 429.
create function queue_worker_data.count_sent(permit queue_worker_data.producers, subject text, count int) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    sent_now int;
begin
    insert into queue_worker_data.producer_counts as c (queue, role, subject, since, sent)
        values (permit.queue, permit.role, count_sent.subject, pg_catalog.clock_timestamp(), count_sent.count)
        on conflict (queue, role, subject) do update set
            since = case when c.since < excluded.since - interval '1 minute' then excluded.since else c.since end,
            sent = case when c.since < excluded.since - interval '1 minute' then excluded.sent
                        else c.sent + excluded.sent end
        returning c.sent into sent_now;
    if sent_now > permit.per_minute then
        raise exception 'queue "%": more than % messages a minute', permit.queue, permit.per_minute
            using errcode = 'PT429', hint = 'Try again in a minute.';
    end if;
end $$;

-- The permit of whoever acts for a queue; raises 42501 without one. By the role that was set, because inside a function
-- with its owner's rights current_user is the owner; nobody can set a role that was not granted.
create function queue_worker_data.permit_for(queue text) returns queue_worker_data.producers
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    acting constant text := queue_worker_data.actor();
    permit queue_worker_data.producers;
begin
    select p.* into permit from queue_worker_data.producers p
        where p.queue = permit_for.queue
          and exists (select from pg_catalog.pg_roles r
                      where r.rolname = p.role and pg_catalog.pg_has_role(acting, r.oid, 'usage'))
        order by p.per_minute desc limit 1;
    if permit.queue is null then
        raise exception 'role "%" may not send to queue "%"', acting, permit_for.queue
            using errcode = '42501',
                  hint = pg_catalog.format('select queue_worker.allow_producer(%L, %L);', permit_for.queue, acting);
    end if;
    return permit;
end $$;

-- Sends for somebody who has a permit and no more: checks it, the limits, and every option. Safe however it is called.
create function queue_worker_data.send_limited(
    queue text, payload jsonb, delay_seconds int, run_at timestamptz, unique_key text)
returns bigint
language plpgsql security definer set search_path = '' as $$
declare
    permit queue_worker_data.producers;
    sender text;
begin
    perform queue_worker_data.check_queue_name(send_limited.queue);
    permit := queue_worker_data.permit_for(send_limited.queue);
    sender := queue_worker_data.subject(permit.role);
    if pg_catalog.octet_length(payload::text) > permit.max_bytes then
        raise exception 'payload is % bytes, the limit for role "%" is %', pg_catalog.octet_length(payload::text),
            permit.role, permit.max_bytes using errcode = '22023';
    elsif pg_catalog.jsonb_path_exists(payload, pg_catalog.format('$.**{%s}', permit.max_depth + 1)::jsonpath) then
        raise exception 'payload is nested more than % deep', permit.max_depth using errcode = '22023';
    elsif pg_catalog.jsonb_path_exists(payload, '$.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))') then
        raise exception 'payload has a number outside -1e308 to 1e308' using errcode = '22023';
    elsif queue_worker_data.due_at(delay_seconds, run_at)
          > pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => permit.max_delay_seconds + 1) then
        raise exception 'a message may be delayed by % seconds at most', permit.max_delay_seconds
            using errcode = '22023';
    end if;
    perform queue_worker_data.count_sent(permit, sender, 1);
    -- A key is the sender's own: nobody can keep a message of somebody else from being sent.
    return queue_worker_data.send(send_limited.queue, payload, delay_seconds => send_limited.delay_seconds,
        run_at => send_limited.run_at,
        unique_key => case when send_limited.unique_key is not null
                           then pg_catalog.format('%s:%s', sender, send_limited.unique_key) end);
end $$;

-- Refuses what only a worker, an operator or a producer may say of a message.
create function queue_worker_data.refuse_options(given jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
    wrong constant text := (select pg_catalog.min(k.name) from pg_catalog.jsonb_object_keys(
        pg_catalog.jsonb_strip_nulls(given) - array['payload', 'delay_seconds', 'run_at', 'unique_key']) k (name));
begin
    if wrong is not null then
        raise exception 'option "%" is not for role "%": it may say delay_seconds, run_at and unique_key', wrong,
            queue_worker_data.actor() using errcode = '42501';
    end if;
end $$;

alter function queue_worker.send set schema queue_worker_data;
alter function queue_worker_data.send security definer;
alter function queue_worker.send_batch set schema queue_worker_data;
alter function queue_worker_data.send_batch security definer;

-- Sends one message; returns its id. SECURITY INVOKER: who may send anything has EXECUTE on the function inside, and all
-- others need a permit of allow_producer.
create function queue_worker.send(
    queue text, payload jsonb, delay_seconds int default 0, run_at timestamptz default null, priority int default 0,
    unique_key text default null, unique_mode text default 'keep', unique_seconds int default null,
    group_key text default null, expires_at timestamptz default null, max_attempts int default null,
    retry_delay_seconds int default null, timeout_seconds int default null, headers jsonb default null,
    unique_scope text default 'waiting')
returns bigint
language plpgsql set search_path = '' as $$
begin
    if pg_catalog.has_function_privilege('queue_worker_data.send'::regproc::oid, 'execute') then
        return queue_worker_data.send(send.queue, send.payload, send.delay_seconds, send.run_at, send.priority,
            send.unique_key, send.unique_mode, send.unique_seconds, send.group_key, send.expires_at, send.max_attempts,
            send.retry_delay_seconds, send.timeout_seconds, send.headers, send.unique_scope);
    end if;
    perform queue_worker_data.refuse_options(pg_catalog.jsonb_build_object(
        'priority', nullif(send.priority, 0), 'unique_mode', nullif(send.unique_mode, 'keep'),
        'unique_seconds', send.unique_seconds, 'group_key', send.group_key, 'expires_at', send.expires_at,
        'max_attempts', send.max_attempts, 'retry_delay_seconds', send.retry_delay_seconds,
        'timeout_seconds', send.timeout_seconds, 'headers', send.headers,
        'unique_scope', nullif(send.unique_scope, 'waiting')));
    return queue_worker_data.send_limited(send.queue, send.payload, send.delay_seconds, send.run_at, send.unique_key);
end $$;

-- Sends many messages: [{"payload": {...}, ...options}]; returns their ids in the order of the array. With `then_queue`
-- they are a batch: when all have ended, a message goes to that queue.
create function queue_worker.send_batch(
    queue text, messages jsonb, then_queue text default null, then_payload jsonb default null)
returns setof bigint
language plpgsql set search_path = '' as $$
declare
    most constant int := 100;
    one jsonb;
begin
    if pg_catalog.has_function_privilege('queue_worker_data.send_batch'::regproc::oid, 'execute') then
        return query select * from queue_worker_data.send_batch(send_batch.queue, send_batch.messages,
            send_batch.then_queue, send_batch.then_payload);
        return;
    end if;
    if pg_catalog.jsonb_typeof(messages) is distinct from 'array' or pg_catalog.jsonb_array_length(messages) > most
       or then_queue is not null or then_payload is not null then
        raise exception 'messages must be a JSON array of at most % {"payload": {...}}, without then_queue', most
            using errcode = '22023';
    end if;
    for one in select e.one from pg_catalog.jsonb_array_elements(messages) with ordinality e (one, n) order by e.n loop
        if pg_catalog.jsonb_typeof(one) <> 'object' then
            raise exception 'messages must be a JSON array of {"payload": {...}}' using errcode = '22023';
        end if;
        perform queue_worker_data.refuse_options(one);
        return next queue_worker_data.send_limited(send_batch.queue, one -> 'payload', (one ->> 'delay_seconds')::int,
            (one ->> 'run_at')::timestamptz, one ->> 'unique_key');
    end loop;
end $$;

-- See queue_worker.allow_producer.
create function queue_worker_data.allow_producer(
    queue text, role text, max_bytes int, max_depth int, max_delay_seconds int, per_minute int)
returns void
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(allow_producer.queue);
    if not exists (select from pg_catalog.pg_roles r where r.rolname = allow_producer.role) then
        raise exception 'role % does not exist', coalesce(pg_catalog.quote_literal(allow_producer.role), 'null')
            using errcode = '22023';
    elsif allow_producer.max_bytes not between 2 and 262144 then
        raise exception 'max_bytes must be 2 to 262144' using errcode = '22023';
    elsif allow_producer.max_depth not between 1 and 1000 then
        raise exception 'max_depth must be 1 to 1000' using errcode = '22023';
    elsif allow_producer.max_delay_seconds not between 0 and 31536000 then
        raise exception 'max_delay_seconds must be 0 to 31536000' using errcode = '22023';
    elsif allow_producer.per_minute not between 1 and 1000000 then
        raise exception 'per_minute must be 1 to 1000000' using errcode = '22023';
    end if;
    insert into queue_worker_data.producers as p (queue, role, max_bytes, max_depth, max_delay_seconds, per_minute)
        values (allow_producer.queue, allow_producer.role, allow_producer.max_bytes, allow_producer.max_depth,
                allow_producer.max_delay_seconds, allow_producer.per_minute)
        on conflict (queue, role) do update set max_bytes = excluded.max_bytes, max_depth = excluded.max_depth,
            max_delay_seconds = excluded.max_delay_seconds, per_minute = excluded.per_minute;
    call queue_worker_data.open_producers();
    insert into queue_worker_data.audit (action, queue, detail)
        values ('allow_producer', allow_producer.queue, pg_catalog.jsonb_build_object('role', allow_producer.role,
            'max_bytes', allow_producer.max_bytes, 'per_minute', allow_producer.per_minute));
end $$;

-- Lets `role` send to one queue by queue_worker.send and send_batch, and nothing else: payloads of at most max_bytes as
-- text, nested at most max_depth deep, delayed by at most max_delay_seconds, and per_minute messages a minute for each
-- user (the token's `sub`, else the role). A second call changes the limits.
create function queue_worker.allow_producer(
    queue text, role text, max_bytes int default 65536, max_depth int default 64,
    max_delay_seconds int default 2592000, per_minute int default 60)
returns void
language sql set search_path = '' as $$
    select queue_worker_data.allow_producer(allow_producer.queue, allow_producer.role, allow_producer.max_bytes,
        allow_producer.max_depth, allow_producer.max_delay_seconds, allow_producer.per_minute);
$$;

-- See queue_worker.disallow_producer.
create function queue_worker_data.disallow_producer(queue text, role text) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
    gone boolean;
begin
    delete from queue_worker_data.producers p
        where p.queue = disallow_producer.queue and p.role = disallow_producer.role;
    gone := found;
    if gone and not exists (select from queue_worker_data.producers p where p.role = disallow_producer.role) then
        execute pg_catalog.format('revoke execute on function queue_worker.send, queue_worker.send_batch,
            queue_worker_data.send_limited, queue_worker_data.refuse_options, queue_worker_data.actor from %I',
            disallow_producer.role);
        -- A role of ours that was a producer too keeps what it had.
        call queue_worker_data.lock_down();
    end if;
    if gone then
        insert into queue_worker_data.audit (action, queue, detail) values ('disallow_producer', disallow_producer.queue,
            pg_catalog.jsonb_build_object('role', disallow_producer.role));
    end if;
    return gone;
end $$;

-- Takes back what allow_producer gave; whether there was something to take.
create function queue_worker.disallow_producer(queue text, role text) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.disallow_producer(disallow_producer.queue, disallow_producer.role);
$$;

-- Who may send to which queue, and how much.
create function queue_worker_data.list_producers()
returns table (queue text, role text, max_bytes int, max_depth int, max_delay_seconds int, per_minute int)
language sql stable security definer set search_path = '' as $$
    select p.queue, p.role, p.max_bytes, p.max_depth, p.max_delay_seconds, p.per_minute
    from queue_worker_data.producers p order by p.queue, p.role;
$$;
create function queue_worker.list_producers()
returns table (queue text, role text, max_bytes int, max_depth int, max_delay_seconds int, per_minute int)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_producers();
$$;

call queue_worker_data.carry_over();
drop procedure queue_worker_data.carry_over();

call queue_worker_data.allow('queue_operator', array['allow_producer', 'disallow_producer', 'list_producers']);

call queue_worker_data.lock_down();
