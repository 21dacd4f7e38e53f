-- min_worker: 0.1.0
-- Several environments in one database: each has schemas and roles of its own, and its own queues in schema pgmq, see
-- queue_worker_data.other_environment. Where an earlier version looks at all queues, this one leaves out those of others.

create or replace view queue_worker.queues with (security_invoker = true) as
    select s.queue, s.waiting, s.delayed, s.running, s.dead, s.oldest_seconds, s.paused_at, s.pause_reason,
           coalesce(q.ordered, false) as ordered, q.broken_until, q.broken_reason,
           q.rate_count, q.rate_seconds, q.fleet, q.per_group
    from queue_worker_data.queue_states() s
    left join queue_worker_data.queues q on q.queue = s.queue
    where queue_worker_data.other_environment(s.queue) is null
    order by s.queue;

-- See queue_worker.purge_subject. A person's data in another environment is that one's to delete.
create or replace function queue_worker_data.purge_subject(key text, max_count int default 10000) returns bigint
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
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
          and queue_worker_data.other_environment(m.queue_name::text) is null
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

call queue_worker_data.lock_down();
