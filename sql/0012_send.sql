-- min_worker: 0.1.0
-- Producers: priority, unique keys, groups, expiry. See docs/sql.md, "Send".

-- Which message took a key last. A hint: the queue's row is the truth, because plain pgmq.delete and purge know nothing
-- of keys. Nothing is written here when a message ends; prune_unique clears up.
create table queue_worker_data.unique_keys (
    queue       text not null,
    key         text not null,
    msg_id      bigint,
    enqueued_at timestamptz,
    until       timestamptz,
    primary key (queue, key)
);
alter table queue_worker_data.unique_keys enable row level security;


-- ---------------------------------------------------------------------------------------------------- options

drop function queue_worker_data.headers_of(jsonb, jsonb, int, text, text, timestamptz, int, int, int);

-- Checks one message's options and returns its headers; every refusal is 22023 and names the option. `due` is when the
-- message is due. What the caller's own headers say of an option stands where the option is not given.
create function queue_worker_data.headers_of(
    payload jsonb, headers jsonb, priority int, unique_key text, group_key text, expires_at timestamptz,
    max_attempts int, retry_delay_seconds int, timeout_seconds int, due timestamptz)
returns jsonb
language plpgsql volatile set search_path = '' as $$
begin
    if payload is null or pg_catalog.jsonb_typeof(payload) <> 'object' then
        raise exception 'payload must be a JSON object, not %', coalesce(pg_catalog.jsonb_typeof(payload), 'null')
            using errcode = '22023';
    elsif pg_catalog.octet_length(payload::text) > 262144 then
        raise exception 'payload is % bytes, the limit is 262144; store it elsewhere and send its key',
            pg_catalog.octet_length(payload::text) using errcode = '22023';
    elsif headers is not null and pg_catalog.jsonb_typeof(headers) <> 'object' then
        raise exception 'headers must be a JSON object' using errcode = '22023';
    end if;
    -- Ours alone: a handler that passes on the headers of its own message must not add a member to its batch.
    headers := headers - 'batch';
    if pg_catalog.num_nonnulls(max_attempts, retry_delay_seconds, timeout_seconds) > 0 then
        if max_attempts not between 1 and 1000 then
            raise exception 'max_attempts must be 1 to 1000' using errcode = '22023';
        elsif retry_delay_seconds not between 0 and 31536000 then
            raise exception 'retry_delay_seconds must be 0 to 31536000' using errcode = '22023';
        elsif timeout_seconds not between 1 and 86400 then
            raise exception 'timeout_seconds must be 1 to 86400' using errcode = '22023';
        end if;
        headers := coalesce(headers, '{}') || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'max_attempts', max_attempts, 'retry_delay_seconds', retry_delay_seconds,
            'timeout_seconds', timeout_seconds));
    end if;
    if pg_catalog.num_nonnulls(nullif(priority, 0), unique_key, group_key, expires_at) > 0 then
        if priority not between 0 and 100 then
            raise exception 'priority must be 0 to 100, not %; for less than 0 use another queue', priority
                using errcode = '22023';
        elsif pg_catalog.length(unique_key) not between 1 and 200 then
            raise exception 'unique_key must have 1 to 200 characters' using errcode = '22023';
        elsif pg_catalog.length(group_key) not between 1 and 200 then
            raise exception 'group_key must have 1 to 200 characters' using errcode = '22023';
        elsif expires_at not between '0001-01-01 UTC' and '9999-12-31 UTC' then
            raise exception 'expires_at must be a point in time, not %', expires_at using errcode = '22023';
        elsif expires_at <= pg_catalog.clock_timestamp() then
            raise exception 'expires_at is in the past: %', expires_at using errcode = '22023';
        elsif expires_at < due then
            raise exception 'expires_at is before the message is due: % is earlier than %', expires_at, due
                using errcode = '22023';
        end if;
        headers := coalesce(headers, '{}') || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'priority', nullif(priority, 0), 'unique_key', unique_key, 'group_key', group_key,
            'expires_at', pg_catalog.to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')));
    end if;
    return nullif(headers, '{}');
end $$;

-- Refuses a group_key where nothing would keep its order.
create function queue_worker_data.check_ordered(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    if not exists (select from queue_worker_data.queues q where q.queue = check_ordered.queue and q.ordered) then
        raise exception 'group_key: queue "%" is not ordered', check_ordered.queue
            using errcode = '22023',
                  hint = pg_catalog.format('select queue_worker.create_queue(%L, ordered => true);', check_ordered.queue);
    end if;
end $$;

create function queue_worker_data.check_unique(key text, mode text, seconds int, scope text) returns void
language plpgsql immutable set search_path = '' as $$
begin
    if mode not in ('keep', 'replace', 'preserve_run_at', 'unsafe_dedupe') then
        raise exception 'unique_mode must be keep, replace, preserve_run_at or unsafe_dedupe, not %',
            pg_catalog.quote_literal(left(mode, 60)) using errcode = '22023';
    elsif scope not in ('waiting', 'active') then
        raise exception 'unique_scope must be waiting or active, not %', pg_catalog.quote_literal(left(scope, 60))
            using errcode = '22023';
    elsif seconds not between 1 and 31536000 then
        raise exception 'unique_seconds must be 1 to 31536000' using errcode = '22023';
    elsif key is null then
        raise exception 'unique_mode, unique_seconds and unique_scope need a unique_key' using errcode = '22023';
    end if;
end $$;


-- ---------------------------------------------------------------------------------------------------- unique

-- Gives a message that waits a new payload, and a new time unless `due` is null. The caller has locked its row.
create function queue_worker_data.replace_message(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, payload jsonb, headers jsonb, due timestamptz)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    read_next int := replace_message.read_ct;
    head jsonb := replace_message.headers;
begin
    if read_next > 0 then
        update queue_worker_data.trouble t set failures = 0, last_error = null, updated_at = pg_catalog.clock_timestamp()
            where t.queue = replace_message.queue and t.msg_id = replace_message.msg_id
              and t.enqueued_at = replace_message.enqueued_at and t.settled_ct = read_next;
        if not found then
            -- Its lease has ended, but whoever ran it may yet answer: that must not settle the new payload, nor be
            -- taken for a settle that was resent. The losses stay, they bound how often a killer may start.
            read_next := read_next + 2;
            insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, settled_ct)
                values (replace_message.queue, replace_message.msg_id, replace_message.enqueued_at, read_next)
                on conflict (queue, msg_id) do update set failures = 0, last_error = null,
                    lost = case when t.enqueued_at = excluded.enqueued_at then t.lost else 0 end,
                    enqueued_at = excluded.enqueued_at, settled_ct = excluded.settled_ct,
                    updated_at = pg_catalog.clock_timestamp();
        end if;
        -- An earlier run may stand in a ledger under the message's name; the new payload is other work.
        head := pg_catalog.jsonb_build_object('key', pg_catalog.format('%s:%s:%s:%s', replace_message.queue,
            replace_message.msg_id, (extract(epoch from replace_message.enqueued_at) * 1000000)::bigint, read_next))
            || head;
    end if;
    execute pg_catalog.format(
        'update pgmq.%I m set message = $2, headers = $3, vt = coalesce($4, m.vt), read_ct = $5 where m.msg_id = $1',
        'q_' || replace_message.queue)
        using replace_message.msg_id, payload, head, due, read_next;
    -- What the triggers on insert do for a new message. No trigger on update: every claim would read each row once more.
    if head ? 'priority' then
        update queue_worker_data.queues q set has_priority = true
            where q.ctid = any (array(select x.ctid from queue_worker_data.queues x
                                      where x.queue = replace_message.queue and not x.has_priority
                                      for update skip locked));
    end if;
    if exists (select from queue_worker_data.sleepers s
               where s.queue = replace_message.queue and s.until > pg_catalog.clock_timestamp()) then
        perform pg_catalog.pg_notify('queue_worker', replace_message.queue);
    end if;
end $$;

-- Sends under a key: the id of the message that holds it, or of a new one. Rules in docs/sql.md, "Unique messages".
-- Modes as in graphile-worker's job_key_mode, the period as in River's unique by period.
create function queue_worker_data.send_unique(
    queue text, payload jsonb, headers jsonb, due timestamptz, key text, mode text, seconds int, scope text)
returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    updates constant boolean := mode in ('replace', 'preserve_run_at');
    holder record;
    found_row record;
    state text;
    sent bigint;
    sent_at timestamptz;
begin
    -- Locks the key: the next sender of it goes on when this transaction has ended, and sees what it has sent.
    insert into queue_worker_data.unique_keys as k (queue, key) values (send_unique.queue, send_unique.key)
        on conflict (queue, key) do update set until = k.until
        returning k.msg_id, k.enqueued_at, k.until into holder;
    if holder.msg_id is not null then
        -- SKIP LOCKED: a row that somebody else has locked is being claimed, run or settled, so it does not wait; and
        -- one that is found cannot be claimed before this sender's transaction is there to be seen.
        execute pg_catalog.format(
            'select m.read_ct, m.vt, m.headers from pgmq.%I m where m.msg_id = $1 and m.enqueued_at = $2 for %s skip locked',
            'q_' || send_unique.queue, case when updates then 'update' else 'share' end)
            into found_row using holder.msg_id, holder.enqueued_at;
        if found_row.read_ct is not null then
            state := queue_worker_data.state_of(send_unique.queue, holder.msg_id, found_row.read_ct,
                holder.enqueued_at, found_row.vt);
        elsif mode = 'unsafe_dedupe' or scope = 'active' then
            execute pg_catalog.format(
                'select ''running'' from pgmq.%I m where m.msg_id = $1 and m.enqueued_at = $2', 'q_' || send_unique.queue)
                into state using holder.msg_id, holder.enqueued_at;
        end if;
        if state in ('waiting', 'delayed') and updates then
            perform queue_worker_data.replace_message(send_unique.queue, holder.msg_id, found_row.read_ct,
                holder.enqueued_at, send_unique.payload, send_unique.headers,
                case when mode = 'replace' then send_unique.due end);
            return holder.msg_id;
        elsif state in ('waiting', 'delayed')
                  and (mode = 'unsafe_dedupe' or not queue_worker_data.has_expired(found_row.headers))
              or state = 'running' and (scope = 'active' or mode = 'unsafe_dedupe')
              or mode = 'unsafe_dedupe' and exists (
                  select from queue_worker_data.dead_letters d where d.queue = send_unique.queue
                      and d.msg_id = holder.msg_id and d.enqueued_at = holder.enqueued_at)
              -- A queue that was made after the key was taken counts its ids from 1 again.
              or holder.until > pg_catalog.clock_timestamp() and holder.enqueued_at >= (
                  select m.created_at from pgmq.meta m where m.queue_name = send_unique.queue)
        then
            return holder.msg_id;
        end if;
    end if;
    execute pg_catalog.format(
        'insert into pgmq.%I (vt, message, headers) values ($1, $2, $3) returning msg_id, enqueued_at',
        'q_' || send_unique.queue)
        into sent, sent_at using due, payload, send_unique.headers;
    update queue_worker_data.unique_keys k
        set msg_id = sent, enqueued_at = sent_at,
            until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => seconds)
        where k.queue = send_unique.queue and k.key = send_unique.key;
    return sent;
end $$;

-- Whether a message's own `expires_at`, as `send` writes it, is over. Anybody may write headers: compared as text.
create function queue_worker_data.has_expired(headers jsonb) returns boolean
language sql volatile set search_path = '' as $$
    select coalesce(headers ->> 'expires_at' ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$'
        and (headers ->> 'expires_at') collate "C"
            <= pg_catalog.to_char(pg_catalog.clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        false);
$$;

-- For a redrive: the message goes on under a new id, and keeps its key unless a newer one has taken it.
create function queue_worker_data.key_follows(
    queue text, msg_id bigint, enqueued_at timestamptz, headers jsonb, new_id bigint, new_at timestamptz)
returns void
language sql set search_path = '' as $$
    update queue_worker_data.unique_keys k set msg_id = new_id, enqueued_at = new_at
        where k.queue = key_follows.queue and k.key = key_follows.headers ->> 'unique_key'
          and k.msg_id = key_follows.msg_id and k.enqueued_at = key_follows.enqueued_at;
$$;

-- Deletes keys that hold nothing any more, at most max_count; returns how many.
create function queue_worker_data.prune_unique(queue text, max_count int) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    there constant boolean := pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || prune_unique.queue)) is not null;
    is_free constant text :=
        'k.queue = $1 and (k.until is null or k.until <= pg_catalog.clock_timestamp())
         and not exists (select from pgmq.%I m where m.msg_id = k.msg_id and m.enqueued_at = k.enqueued_at)
         and not exists (select from queue_worker_data.dead_letters d
                         where d.queue = $1 and d.msg_id = k.msg_id and d.enqueued_at = k.enqueued_at)';
    condition constant text := case when there then pg_catalog.format(is_free, 'q_' || prune_unique.queue)
                                    else 'k.queue = $1' end;
    free text[];
    gone bigint;
begin
    execute 'select pg_catalog.array_agg(x.key) from (
                 select k.key from queue_worker_data.unique_keys k where ' || condition || '
                 limit $2 for update of k skip locked) x' into free using prune_unique.queue, max_count;
    -- Looked at again under the lock: a sender may have taken the key with a message that the first look did not see.
    execute 'delete from queue_worker_data.unique_keys k where k.key = any ($2) and ' || condition
        using prune_unique.queue, coalesce(free, '{}');
    get diagnostics gone = row_count;
    return gone;
end $$;


-- ---------------------------------------------------------------------------------------------------- send

-- Sends one message and returns its id. See docs/sql.md for the options.
create function queue_worker.send(
    queue text, payload jsonb, delay_seconds int default 0, run_at timestamptz default null,
    priority int default 0, unique_key text default null, unique_mode text default 'keep',
    unique_seconds int default null, group_key text default null, expires_at timestamptz default null,
    max_attempts int default null, retry_delay_seconds int default null, timeout_seconds int default null,
    headers jsonb default null, unique_scope text default 'waiting')
returns bigint
language plpgsql set search_path = '' as $$
declare
    due timestamptz;
    head jsonb;
    sent bigint;
begin
    perform queue_worker_data.check_queue(send.queue);
    due := queue_worker_data.due_at(delay_seconds, run_at);
    head := queue_worker_data.headers_of(payload, headers, priority, unique_key, group_key, expires_at,
        max_attempts, retry_delay_seconds, timeout_seconds, due);
    if group_key is not null then
        perform queue_worker_data.check_ordered(send.queue);
    end if;
    if unique_key is not null or unique_seconds is not null or unique_mode <> 'keep' or unique_scope <> 'waiting' then
        perform queue_worker_data.check_unique(unique_key, unique_mode, unique_seconds, unique_scope);
        return queue_worker_data.send_unique(send.queue, payload, head, due, unique_key,
            coalesce(unique_mode, 'keep'), unique_seconds, coalesce(unique_scope, 'waiting'));
    end if;
    execute pg_catalog.format(
        'insert into pgmq.%I (vt, message, headers) values ($1, $2, $3) returning msg_id', 'q_' || send.queue)
        into sent using due, payload, head;
    return sent;
end $$;

-- Sends many: [{"payload": {...}, "delay_seconds": 5}, ...]; returns the ids in the order of the array. then_queue:
-- when all of them are done, then_payload is sent there.
create function queue_worker.send_batch(
    queue text, messages jsonb, then_queue text default null, then_payload jsonb default null)
returns setof bigint
language plpgsql set search_path = '' as $$
declare
    known constant text[] := array['payload', 'delay_seconds', 'run_at', 'priority', 'unique_key', 'unique_mode',
        'unique_seconds', 'unique_scope', 'group_key', 'expires_at', 'max_attempts', 'retry_delay_seconds',
        'timeout_seconds', 'headers'];
    wrong bigint;
    grouped boolean;
    keyed boolean;
    one jsonb;
    batch jsonb;
begin
    perform queue_worker_data.check_queue(send_batch.queue);
    if messages is null or pg_catalog.jsonb_typeof(messages) <> 'array' then
        raise exception 'messages must be a JSON array of {"payload": {...}, ...options}' using errcode = '22023';
    elsif then_payload is not null and then_queue is null then
        raise exception 'then_payload needs a then_queue' using errcode = '22023';
    end if;
    select min(e.n) filter (where case when pg_catalog.jsonb_typeof(e.one) = 'object' then e.one - known <> '{}' else true end),
           pg_catalog.bool_or(e.one ->> 'group_key' is not null),
           pg_catalog.bool_or(e.one ?| array['unique_key', 'unique_mode', 'unique_seconds', 'unique_scope'])
        into wrong, grouped, keyed
        from pg_catalog.jsonb_array_elements(messages) with ordinality e (one, n);
    if wrong is not null then
        one := messages -> (wrong - 1)::int;
        raise exception 'messages[%]: %', wrong - 1,
            case when pg_catalog.jsonb_typeof(one) <> 'object' then 'not an object'
                 else pg_catalog.format('unknown option "%s"',
                     (select k.name from pg_catalog.jsonb_object_keys(one - known) k (name) limit 1)) end
            using errcode = '22023';
    end if;
    if grouped then
        perform queue_worker_data.check_ordered(send_batch.queue);
    end if;
    if then_queue is not null then
        if keyed then
            raise exception 'unique_key and then_queue do not go together: a message that waits already is no member'
                using errcode = '22023';
        end if;
        batch := queue_worker_data.open_batch(send_batch.queue, pg_catalog.jsonb_array_length(messages), then_queue,
            coalesce(then_payload, '{}'));
    end if;
    if keyed then
        -- All keys are locked first, in one order for everybody; the messages keep the order of the array.
        insert into queue_worker_data.unique_keys as k (queue, key)
            select send_batch.queue, x.key
            from (select distinct (e.one ->> 'unique_key') collate "C" as key
                  from pg_catalog.jsonb_array_elements(messages) e (one)
                  where pg_catalog.length(e.one ->> 'unique_key') between 1 and 200) x
            order by x.key
            on conflict on constraint unique_keys_pkey do update set until = k.until;
        for one in select e.one from pg_catalog.jsonb_array_elements(messages) with ordinality e (one, n) order by e.n loop
            return next queue_worker.send(send_batch.queue, one -> 'payload',
                delay_seconds => (one ->> 'delay_seconds')::int, run_at => (one ->> 'run_at')::timestamptz,
                priority => (one ->> 'priority')::int, unique_key => one ->> 'unique_key',
                unique_mode => coalesce(one ->> 'unique_mode', 'keep'),
                unique_seconds => (one ->> 'unique_seconds')::int, group_key => one ->> 'group_key',
                expires_at => (one ->> 'expires_at')::timestamptz, max_attempts => (one ->> 'max_attempts')::int,
                retry_delay_seconds => (one ->> 'retry_delay_seconds')::int,
                timeout_seconds => (one ->> 'timeout_seconds')::int, headers => nullif(one -> 'headers', 'null'),
                unique_scope => coalesce(one ->> 'unique_scope', 'waiting'));
        end loop;
        return;
    end if;
    return query execute pg_catalog.format(
        'insert into pgmq.%I (vt, message, headers)
         select x.due, x.one -> ''payload'',
                %squeue_worker_data.headers_of(x.one -> ''payload'', nullif(x.one -> ''headers'', ''null''),
                    (x.one ->> ''priority'')::int, null, x.one ->> ''group_key'',
                    (x.one ->> ''expires_at'')::timestamptz, (x.one ->> ''max_attempts'')::int,
                    (x.one ->> ''retry_delay_seconds'')::int, (x.one ->> ''timeout_seconds'')::int, x.due)%s
         from (select e.one, e.n, queue_worker_data.due_at((e.one ->> ''delay_seconds'')::int,
                          (e.one ->> ''run_at'')::timestamptz) as due
               from pg_catalog.jsonb_array_elements($1) with ordinality e (one, n)) x order by x.n
         returning msg_id', 'q_' || send_batch.queue, case when batch is not null then 'coalesce($2 || ' end,
        case when batch is not null then ', $2)' end)
        using messages, batch;
end $$;

-- Producers keep their right to call what now has more arguments.
do $$
declare
    given record;
begin
    for given in
        select p.proname, n.oid::regprocedure as function_now, pg_catalog.quote_ident(r.rolname) as grantee,
               a.is_grantable
        from pg_catalog.pg_proc p
        join pg_catalog.pg_proc n on n.proname = p.proname and n.pronamespace = p.pronamespace and n.pronargs > p.pronargs
        cross join lateral pg_catalog.aclexplode(p.proacl) a
        join pg_catalog.pg_roles r on r.oid = a.grantee
        where p.pronamespace = 'queue_worker'::regnamespace and p.proname in ('send', 'send_batch')
          and a.grantee <> p.proowner
    loop
        execute pg_catalog.format('grant execute on function %s to %s%s', given.function_now, given.grantee,
            case when given.is_grantable then ' with grant option' end);
    end loop;
end $$;

drop function queue_worker.send(
    text, jsonb, int, timestamptz, int, text, text, int, text, timestamptz, int, int, int, jsonb);
drop function queue_worker.send_batch(text, jsonb);

call queue_worker_data.lock_down();
