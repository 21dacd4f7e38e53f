-- min_worker: 0.1.0
-- What operators do to messages and queues. See docs/operations.md.

-- A rate-limited redrive goes on where the one before it ended, and a dropped or purged queue forgets that.
create index audit_redrive_idx on queue_worker_data.audit (queue, audit_id desc)
    where action in ('redrive', 'purge', 'drop_queue');

-- Whoever waits for a lock in vain gets one line that says what to do.
create function queue_worker_data.busy(queue text) returns void
language plpgsql set search_path = '' as $$
begin
    raise exception 'queue "%" is busy: a transaction of a handler or of another person holds it', queue
        using errcode = '55P03', hint = pg_catalog.format('Try again, or pause it first: select queue_worker.pause(%L);', queue);
end $$;

-- Deletes what we keep beside live messages of a queue: those of `ids`, or all (null).
create function queue_worker_data.forget(queue text, ids bigint[]) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    companion text;
begin
    foreach companion in array array['trouble', 'progress', 'slots'] loop
        if pg_catalog.to_regclass('queue_worker_data.' || companion) is not null then
            execute pg_catalog.format('delete from queue_worker_data.%I c where c.queue = $1
                and ($2 is null or c.msg_id = any ($2))', companion) using forget.queue, forget.ids;
        end if;
    end loop;
    -- A trigger rings for the groups of single rows; a table that is emptied at once has nobody to wait for.
    foreach companion in array array['groups', 'bells'] loop
        if forget.ids is null and pg_catalog.to_regclass('queue_worker_data.' || companion) is not null then
            execute pg_catalog.format('delete from queue_worker_data.%I c where c.queue = $1', companion)
                using forget.queue;
        end if;
    end loop;
end $$;

-- Moves a live message to the archive, whatever it is doing, with `mark` added to its headers. Returns whether it was
-- claimed; null when it is not there. Its receipt matches nothing any more, so a late result changes nothing.
create function queue_worker_data.put_away(queue text, msg_id bigint, mark jsonb) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    claimed boolean;
begin
    perform queue_worker_data.check_queue(put_away.queue);
    execute pg_catalog.format(
        'with d as (
             delete from pgmq.%1$I m where m.msg_id = $1
             returning m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers),
         a as (
             insert into pgmq.%2$I (msg_id, read_ct, enqueued_at, vt, message, headers)
             select d.msg_id, d.read_ct, d.enqueued_at, d.vt, d.message,
                    nullif(case when d.headers is null or pg_catalog.jsonb_typeof(d.headers) = ''object''
                                then coalesce(d.headers, ''{}'')
                                else pg_catalog.jsonb_build_object(''headers'', d.headers) end || $2, ''{}'')
             from d)
         select d.read_ct > 0 and d.vt > pg_catalog.clock_timestamp() from d',
        'q_' || put_away.queue, 'a_' || put_away.queue)
        into claimed using put_away.msg_id, put_away.mark;
    if claimed is not null then
        perform queue_worker_data.forget(put_away.queue, array[put_away.msg_id]);
        -- A batch that it was a member of goes on without it.
        if pg_catalog.to_regprocedure('queue_worker_data.count_archived(text, bigint, boolean)') is not null then
            execute 'select queue_worker_data.count_archived($1, $2, $3)'
                using put_away.queue, put_away.msg_id, put_away.mark ? 'cancelled_at';
        end if;
    end if;
    return claimed;
exception when lock_not_available then
    perform queue_worker_data.busy(put_away.queue);
end $$;

-- Takes a message out of its queue in whatever state; false when it is not there. It stays in the archive as
-- `cancelled`. The worker that runs it is told, and whatever it answers changes nothing.
create function queue_worker.cancel(queue text, msg_id bigint) returns boolean
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    claimed constant boolean := queue_worker_data.put_away(cancel.queue, cancel.msg_id,
        pg_catalog.jsonb_build_object('cancelled_at', pg_catalog.clock_timestamp()));
begin
    if claimed is null then
        return false;
    end if;
    if claimed then
        perform pg_catalog.pg_notify('queue_worker', pg_catalog.format('cancel %s %s', cancel.queue, cancel.msg_id));
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('cancel', cancel.queue, pg_catalog.jsonb_build_object('msg_id', cancel.msg_id, 'running', claimed));
    return true;
end $$;

-- Settles a message by hand, as done; false when it is not there. It goes to the archive, also where the queue deletes
-- what is done.
create function queue_worker.complete(queue text, msg_id bigint) returns boolean
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    claimed constant boolean := queue_worker_data.put_away(complete.queue, complete.msg_id, '{}');
begin
    if claimed is null then
        return false;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('complete', complete.queue,
                pg_catalog.jsonb_build_object('msg_id', complete.msg_id, 'running', claimed));
    return true;
end $$;

-- Deletes every live message of a queue for good: waiting, delayed and running; returns how many. Dead letters and the
-- archive stay.
create function queue_worker.purge(queue text) returns bigint
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    gone bigint;
begin
    perform queue_worker_data.check_queue(purge.queue);
    perform queue_worker_data.note_now();
    -- Locked before it is counted: what is counted is what goes.
    begin
        execute pg_catalog.format('lock table pgmq.%I in access exclusive mode', 'q_' || purge.queue);
    exception when lock_not_available then
        perform queue_worker_data.busy(purge.queue);
    end;
    gone := pgmq.purge_queue(queue_name => purge.queue);
    perform queue_worker_data.forget(purge.queue, null);
    insert into queue_worker_data.audit (action, queue, detail)
        values ('purge', purge.queue, pg_catalog.jsonb_build_object('count', gone));
    return gone;
end $$;

-- Removes a queue with its live messages and its archive. Its dead letters stay: a queue that is made again under this
-- name can run them.
create function queue_worker.drop_queue(queue text) returns void
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
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
            perform pgmq.drop_queue(queue_name => drop_queue.queue);
        else
            -- Its table was dropped by hand, and pgmq leaves such a queue as it is.
            execute pg_catalog.format('drop table if exists pgmq.%I', 'a_' || drop_queue.queue);
            delete from pgmq.meta m where m.queue_name = drop_queue.queue;
        end if;
    exception when lock_not_available then
        perform queue_worker_data.busy(drop_queue.queue);
    end;
    perform queue_worker_data.forget(drop_queue.queue, null);
    foreach companion in array array['queues', 'limits', 'unique_keys'] loop
        if pg_catalog.to_regclass('queue_worker_data.' || companion) is not null then
            execute pg_catalog.format('delete from queue_worker_data.%I c where c.queue = $1', companion)
                using drop_queue.queue;
        end if;
    end loop;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('drop_queue', drop_queue.queue, pg_catalog.jsonb_build_object('count', waiting));
end $$;


-- ---------------------------------------------------------------------------------------------------- dead letters

-- Replaces the payload of a dead letter; false when the queue has no such dead letter.
create function queue_worker.edit_dead(queue text, dead_id bigint, payload jsonb) returns boolean
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue_name(edit_dead.queue);
    if edit_dead.payload is null or pg_catalog.jsonb_typeof(edit_dead.payload) <> 'object' then
        raise exception 'payload must be a JSON object, not %',
            coalesce(pg_catalog.jsonb_typeof(edit_dead.payload), 'null') using errcode = '22023';
    elsif pg_catalog.octet_length(edit_dead.payload::text) > 262144 then
        raise exception 'payload is % bytes, the limit is 262144; store it elsewhere and send its key',
            pg_catalog.octet_length(edit_dead.payload::text) using errcode = '22023';
    end if;
    update queue_worker_data.dead_letters d set payload = edit_dead.payload
        where d.queue = edit_dead.queue and d.dead_id = edit_dead.dead_id;
    if not found then
        return false;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('edit_dead', edit_dead.queue, pg_catalog.jsonb_build_object('dead_id', edit_dead.dead_id));
    return true;
end $$;

drop function queue_worker.redrive(text, bigint[], int);

-- Sends dead letters again, oldest first (null: all of the queue; at most max_count, and no more than four seconds'
-- work a call); returns how many. The new message keeps the payload, the headers, the history and a business key, but
-- for `expires_at`: whoever sends it again wants it to run. Two redrives at once give one message.
-- per_second spreads their due times, behind those that an earlier call has spread.
create function queue_worker.redrive(
    queue text, dead_ids bigint[] default null, max_count int default null, per_second double precision default null)
returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    deadline constant timestamptz := pg_catalog.clock_timestamp() + interval '4 s';
    due timestamptz := pg_catalog.clock_timestamp();
    earlier jsonb;
    one record;
    sent bigint := 0;
    fresh bigint;
    fresh_at timestamptz;
    keyed constant boolean := pg_catalog.to_regprocedure(
        'queue_worker_data.key_follows(text, bigint, timestamptz, jsonb, bigint, timestamptz)') is not null;
begin
    perform queue_worker_data.check_queue(redrive.queue);
    if not (per_second > 0 and per_second <= 1000000) then
        raise exception 'per_second must be more than 0 and at most 1000000' using errcode = '22023';
    end if;
    if per_second is not null then
        perform pg_catalog.pg_advisory_xact_lock(1903523, pg_catalog.hashtext(redrive.queue));
        select a.detail into earlier from queue_worker_data.audit a
            where a.queue = redrive.queue and a.action in ('redrive', 'purge', 'drop_queue')
              and (a.action <> 'redrive' or a.detail ? 'next_due_at')
            order by a.audit_id desc limit 1;
        due := greatest(due, (earlier ->> 'next_due_at')::timestamptz);
    end if;
    for one in
        select d.dead_id, d.msg_id, d.payload, d.headers, d.enqueued_at
        from queue_worker_data.dead_letters d
        where d.queue = redrive.queue and (dead_ids is null or d.dead_id = any (dead_ids))
        order by d.dead_id limit max_count for update skip locked
    loop
        execute pg_catalog.format(
            'insert into pgmq.%I (vt, message, headers) values ($3, $1, $2)
             returning msg_id, enqueued_at', 'q_' || redrive.queue)
            into fresh, fresh_at using one.payload,
                pg_catalog.jsonb_build_object(
                    'key', redrive.queue || ':' || one.msg_id || ':'
                           || (extract(epoch from one.enqueued_at) * 1000000)::bigint,
                                              'first_enqueued_at', one.enqueued_at)
                || case when pg_catalog.jsonb_typeof(one.headers) = 'object' then one.headers - 'expires_at'
                        else '{}' end
                || pg_catalog.jsonb_build_object('redriven_from', one.dead_id),
                due;
        if one.headers ? 'unique_key' and keyed then
            execute 'select queue_worker_data.key_follows($1, $2, $3, $4, $5, $6)'
                using redrive.queue, one.msg_id, one.enqueued_at, one.headers, fresh, fresh_at;
        end if;
        update queue_worker_data.failures f set msg_id = fresh
            where f.queue = redrive.queue and f.msg_id = one.msg_id;
        delete from queue_worker_data.dead_letters d where d.dead_id = one.dead_id;
        sent := sent + 1;
        due := due + pg_catalog.make_interval(secs => coalesce(1 / per_second, 0));
        exit when pg_catalog.clock_timestamp() > deadline;
    end loop;
    if sent = 0 then
        return 0;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('redrive', redrive.queue, pg_catalog.jsonb_build_object('count', sent, 'dead_ids', dead_ids)
            || case when per_second is null then '{}'
                    else pg_catalog.jsonb_build_object('per_second', per_second, 'next_due_at', due) end);
    return sent;
end $$;


-- ---------------------------------------------------------------------------------------------------- a person's data

-- Deletes what concerns one person: messages of every queue, archived ones and dead letters whose payload or headers
-- hold the JSON string `key` anywhere (or whose header `subject` is the key), with their failures and results; what
-- triggers could not send; keys of the other ledgers; rows of the mail ledger with that recipient. At most max_count
-- messages a call: call it again until it answers 0. The payments ledger stays, as book-keeping laws demand.
create function queue_worker.purge_subject(key text, max_count int default 10000) returns bigint
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    same constant text := 'pg_catalog.jsonb_path_exists(%1$s, ''$.** ? (@ == $key)'', $1, true)';
    subject constant jsonb := pg_catalog.jsonb_build_object('key', purge_subject.key);
    place record;
    companion text;
    ids bigint[];
    running bigint[];
    found_here bigint;
    gone bigint := 0;
begin
    if coalesce(pg_catalog.btrim(purge_subject.key), '') = '' or (max_count > 0) is not true then
        raise exception 'key must not be empty, and max_count must be at least 1' using errcode = '22023';
    end if;
    for place in
        select m.queue_name::text as queue, c.relname::text as name, c.relname like 'q\_%' as live
        from pgmq.meta m join pg_catalog.pg_class c
            on c.relname in ('q_' || pg_catalog.lower(m.queue_name), 'a_' || pg_catalog.lower(m.queue_name))
        where c.relnamespace = 'pgmq'::regnamespace
        -- The queue before its archive: a message that is done in between is found there.
        order by m.queue_name, live desc
    loop
        execute pg_catalog.format(
            'with d as (
                 delete from pgmq.%1$I m where m.msg_id = any (array(
                     select x.msg_id from pgmq.%1$I x
                     where ' || pg_catalog.format(same, 'x.message') || ' or ' || pg_catalog.format(same, 'x.headers') || '
                        or x.headers ->> ''subject'' = $2
                     limit $3))
                 returning m.msg_id, m.read_ct, m.vt)
             select coalesce(pg_catalog.array_agg(d.msg_id), ''{}''), pg_catalog.array_agg(d.msg_id)
                 filter (where d.read_ct > 0 and d.vt > pg_catalog.clock_timestamp()) from d', place.name)
            into ids, running using subject, purge_subject.key, max_count - gone;
        perform queue_worker_data.forget_history(place.queue, ids);
        if place.live and pg_catalog.cardinality(ids) > 0 then
            perform queue_worker_data.forget(place.queue, ids);
            perform pg_catalog.pg_notify('queue_worker', pg_catalog.format('cancel %s %s', place.queue, r.id))
                from unnest(running) r (id);
        end if;
        gone := gone + pg_catalog.cardinality(ids);
        exit when gone >= max_count;
    end loop;
    if gone < max_count then
        for place in
            execute 'with d as (
                         delete from queue_worker_data.dead_letters d where d.dead_id = any (array(
                             select x.dead_id from queue_worker_data.dead_letters x
                             where ' || pg_catalog.format(same, 'x.payload') || ' or '
                                     || pg_catalog.format(same, 'x.headers') || '
                                or x.headers ->> ''subject'' = $2
                             limit $3))
                         returning d.queue, d.msg_id)
                     select d.queue, pg_catalog.array_agg(d.msg_id) as ids from d group by d.queue'
                using subject, purge_subject.key, max_count - gone
        loop
            perform queue_worker_data.forget_history(place.queue, place.ids);
            gone := gone + pg_catalog.cardinality(place.ids);
        end loop;
    end if;
    if gone < max_count then
        foreach companion in array array['unsent', 'results', 'progress', 'unique_keys', 'once'] loop
            if pg_catalog.to_regclass('queue_worker_data.' || companion) is not null then
                execute pg_catalog.format('delete from queue_worker_data.%I c where ', companion)
                    || pg_catalog.format(same, 'pg_catalog.to_jsonb(c)') using subject;
                get diagnostics found_here = row_count;
                gone := gone + found_here;
            end if;
        end loop;
        -- Of messages that are gone; a shorter key would be part of many an innocent text.
        delete from queue_worker_data.failures f
            where pg_catalog.length(purge_subject.key) >= 6 and pg_catalog.strpos(f.error, purge_subject.key) > 0;
        get diagnostics found_here = row_count;
        gone := gone + found_here;
        delete from queue_worker_data.mails m where pg_catalog.lower(m.recipient) = pg_catalog.lower(purge_subject.key);
        get diagnostics found_here = row_count;
        gone := gone + found_here;
    end if;
    -- The hash answers "was it done for this key?" without naming anybody.
    insert into queue_worker_data.audit (action, queue, detail)
        values ('purge_subject', '*', pg_catalog.jsonb_build_object('count', gone, 'key_sha256',
            pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(purge_subject.key, 'UTF8')), 'hex')));
    return gone;
exception when lock_not_available then
    raise exception 'a message of this person is held by a transaction of a handler'
        using errcode = '55P03', hint = 'Cancel it, or try again in a moment.';
end $$;

-- Deletes the failures and kept results of messages that are deleted.
create function queue_worker_data.forget_history(queue text, ids bigint[]) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    if pg_catalog.cardinality(ids) = 0 then
        return;
    end if;
    delete from queue_worker_data.failures f where f.queue = forget_history.queue and f.msg_id = any (ids);
    if pg_catalog.to_regclass('queue_worker_data.results') is not null then
        execute 'delete from queue_worker_data.results r where r.queue = $1 and r.msg_id = any ($2)'
            using forget_history.queue, ids;
    end if;
end $$;

call queue_worker_data.lock_down();
