-- min_worker: 0.1.0
-- What a queue can be told beyond its name: lanes, limits, and the breaker's state. See docs/limits.md.

-- has_priority: the priority lane of a claim runs only where some message has used it. The limits are null where there
-- are none. broken_until: the breaker is open until then, and afterwards lets one message per broken_seconds through.
alter table queue_worker_data.queues
    add column ordered        boolean not null default false,
    add column has_priority   boolean not null default false,
    add column rate_count     int,
    add column rate_seconds   int,
    add column fleet          int,
    add column per_group      int,
    add column broken_at      timestamptz,
    add column broken_until   timestamptz,
    add column broken_seconds double precision,
    add column broken_reason  text;

-- Takes from everybody but the owner what is ours; every migration that makes something ends with it.
create procedure queue_worker_data.lock_down()
language plpgsql set search_path = '' as $$
declare
    outsider text;
begin
    -- Supabase's default privileges grant to these two by name, so that a revoke from public is not enough.
    for outsider in
        select 'public' union all
        select pg_catalog.quote_ident(r.rolname) from pg_catalog.pg_roles r
            where r.rolname in ('anon', 'authenticated')
    loop
        execute 'revoke all on all functions in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on all procedures in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on all tables in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on all sequences in schema queue_worker, queue_worker_data from ' || outsider;
    end loop;
end $$;

-- Notes that a queue has used its priority lane. SECURITY DEFINER: it runs as whoever inserts into the queue, at the end
-- of the transaction: a breaker or a pause must not wait for a sender's long one.
create function queue_worker_data.note_priority() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    if not exists (select from queue_worker_data.queues q where q.queue = tg_argv[0] and q.has_priority) then
        -- SKIP LOCKED: a sender must not wait for another one's transaction; housekeeping mends what was skipped.
        update queue_worker_data.queues q set has_priority = true
            where q.ctid = any (array(select x.ctid from queue_worker_data.queues x
                                      where x.queue = tg_argv[0] for update skip locked));
    end if;
    return null;
end $$;

-- Lets what is to be noted be noted now: a table with a trigger that is yet to run can be neither emptied nor changed.
create function queue_worker_data.note_now() returns void
language plpgsql set search_path = '' as $$
begin
    set constraints pgmq.queue_worker_priority immediate;
    set constraints pgmq.queue_worker_priority deferred;
exception when undefined_object then
    null;
end $$;

-- The priority of a message, 0 to 100, from headers that anybody may have written: built-ins only, and total, because
-- an index expression that raises would break plain pgmq.send.
create function queue_worker_data.priority_expression() returns text
language sql immutable set search_path = '' as $$
    select $x$(case when pg_catalog.jsonb_typeof(headers -> 'priority') = 'number'
        then least(greatest((headers ->> 'priority')::numeric, 0), 100)::smallint else 0::smallint end)$x$;
$$;

-- Gives a queue's table what claims need of it: the wake trigger, the priority lane's index, vacuum settings.
create function queue_worker_data.equip(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    name constant text := 'q_' || equip.queue;
    is_there constant regclass := pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || equip.queue));
begin
    if not exists (select from pg_catalog.pg_trigger g where g.tgrelid = is_there and g.tgname = 'queue_worker_wake') then
        execute pg_catalog.format(
            'create trigger queue_worker_wake after insert on pgmq.%I for each statement
             execute function queue_worker_data.wake(%L)', name, equip.queue);
    end if;
    if not exists (select from pg_catalog.pg_trigger g
                   where g.tgrelid = is_there and g.tgname = 'queue_worker_priority') then
        execute pg_catalog.format(
            'create constraint trigger queue_worker_priority after insert on pgmq.%I
             deferrable initially deferred for each row
             when (new.headers ? ''priority'') execute function queue_worker_data.note_priority(%L)',
            name, equip.queue);
    end if;
    execute pg_catalog.format('create index if not exists %I on pgmq.%I (%s desc, vt) where headers ? ''priority''',
        name || '_priority_idx', name, queue_worker_data.priority_expression());
end $$;

-- Queues made by an earlier version.
do $$
declare
    one record;
begin
    for one in select q.queue from queue_worker_data.queues q
               where pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || q.queue)) is not null
    loop
        perform queue_worker_data.equip(one.queue);
    end loop;
end $$;

call queue_worker_data.lock_down();
