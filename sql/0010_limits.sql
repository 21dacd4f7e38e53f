-- min_worker: 0.1.0
-- Limits of the whole fleet: starts per time, how many run at once; and the breaker. See docs/limits.md.

-- When a queue with a rate limit started messages, and how many; locked by every claim of such a queue.
create table queue_worker_data.limits (
    queue   text primary key,
    used_at timestamptz[] not null default '{}',
    used    int[] not null default '{}'
);

-- Receipts of what runs in a queue with a fleet limit. A receipt that no row of the queue matches any more is spent.
create table queue_worker_data.slots (
    queue       text not null,
    msg_id      bigint not null,
    read_ct     int not null,
    enqueued_at timestamptz not null,
    primary key (queue, msg_id, read_ct, enqueued_at)
);

alter table queue_worker_data.limits enable row level security;
alter table queue_worker_data.slots enable row level security;

-- How many messages a queue with limits may start now. The row that it locks stays locked until the claim has written
-- what it started. Sets wait_seconds where there is nothing to be had: when the rate allows the next, or null.
create function queue_worker_data.allowance(
    queue text, rate_count int, rate_seconds int, fleet int, out allowed int, out wait_seconds double precision)
-- Less than the server's deadlock_timeout: whoever waits has settled before, and may hold what the other one needs.
language plpgsql set search_path = '' set lock_timeout = '200ms' as $$
#variable_conflict use_column
declare
    l record;
    read_at timestamptz;
    running int;
    free int;
begin
    allowed := 2147483647;
    begin
        select x.used_at, x.used into l from queue_worker_data.limits x where x.queue = allowance.queue for update;
        if not found then
            insert into queue_worker_data.limits (queue) values (allowance.queue) on conflict do nothing;
            select x.used_at, x.used into l from queue_worker_data.limits x where x.queue = allowance.queue for update;
        end if;
    exception when lock_not_available then
        allowed := 0;
        wait_seconds := 0.05;
        return;
    end;
    -- Read after the lock was had: what another claim wrote lies before it.
    read_at := pg_catalog.clock_timestamp();
    if allowance.fleet is not null then
        execute pg_catalog.format(
            -- A lease that has ended may yet be extended, so that only a receipt without a row is deleted. LIMIT keeps
            -- the plan at the primary key.
            'with held as materialized (
                 select s.ctid as tid, h.vt from queue_worker_data.slots s left join lateral (
                     select m.vt from pgmq.%1$I m where m.msg_id = s.msg_id and m.read_ct = s.read_ct
                         and m.enqueued_at = s.enqueued_at limit 1) h on true
                 where s.queue = $1),
             spent as (
                 delete from queue_worker_data.slots s
                 where s.ctid = any (array(select held.tid from held where held.vt is null)))
             select count(*) filter (where held.vt > $2) from held',
            'q_' || allowance.queue) into running using allowance.queue, read_at;
        allowed := greatest(allowance.fleet - running, 0);
    end if;
    if allowance.rate_count is not null then
        select allowance.rate_count - coalesce(sum(u.used), 0),
               pg_catalog.date_part('epoch', min(u.at) - read_at) + allowance.rate_seconds
            into free, wait_seconds
            from unnest(l.used_at, l.used) u (at, used)
            where u.at > read_at - pg_catalog.make_interval(secs => allowance.rate_seconds);
        allowed := least(allowed, greatest(free, 0));
        if free > 0 then
            wait_seconds := null;
        end if;
    end if;
end $$;

-- Writes down what a queue with limits has started.
create function queue_worker_data.note_started(
    queue text, rate_seconds int, fleet int, ids bigint[], read_cts int[], enqueued_ats timestamptz[])
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    now_at constant timestamptz := pg_catalog.clock_timestamp();
    -- Starts of one 250th of the window are one entry, dated to its end, so that the row stays small and no window ever
    -- holds more than is allowed.
    grain constant double precision := note_started.rate_seconds / 250.0;
    entry_at constant timestamptz := pg_catalog.to_timestamp(
        pg_catalog.ceil(pg_catalog.date_part('epoch', now_at) / grain) * grain);
begin
    if note_started.fleet is not null then
        insert into queue_worker_data.slots (queue, msg_id, read_ct, enqueued_at)
            select note_started.queue, r.msg_id, r.read_ct, r.enqueued_at
            from unnest(ids, read_cts, enqueued_ats) r (msg_id, read_ct, enqueued_at)
            on conflict do nothing;
    end if;
    if note_started.rate_seconds is not null then
        update queue_worker_data.limits l set (used_at, used) = (
            select pg_catalog.array_agg(x.at order by x.at), pg_catalog.array_agg(x.used order by x.at) from (
                select u.at, sum(u.used)::int as used from (
                    select p.at, p.used from unnest(l.used_at, l.used) p (at, used)
                        where p.at > now_at - pg_catalog.make_interval(secs => note_started.rate_seconds)
                    union all
                    select entry_at, pg_catalog.cardinality(ids)) u
                group by u.at) x)
            where l.queue = note_started.queue;
    end if;
end $$;

-- Of a queue whose breaker is open: true if this claim may try one message.
create function queue_worker_data.may_probe(queue text, read_at timestamptz) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    -- As in claim_lanes: the queue's table comes before our rows.
    execute pg_catalog.format('lock table pgmq.%I in row exclusive mode', 'q_' || may_probe.queue);
    update queue_worker_data.queues q
        set broken_until = read_at + pg_catalog.make_interval(secs => coalesce(q.broken_seconds, 10))
        where q.ctid = any (array(select x.ctid from queue_worker_data.queues x
                                  where x.queue = may_probe.queue and x.broken_until <= read_at
                                  for update skip locked));
    return found;
end $$;

-- At most `count` starts in any `per_seconds` of the queue, by all workers together; null, null lifts the limit.
create function queue_worker.set_rate_limit(queue text, count int, per_seconds int default 1) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(set_rate_limit.queue);
    if set_rate_limit.count not between 1 and 1000000 then
        raise exception 'count must be 1 to 1000000, or null for no limit' using errcode = '22023';
    elsif set_rate_limit.count is not null and coalesce(per_seconds, 0) not between 1 and 86400 then
        raise exception 'per_seconds must be 1 to 86400' using errcode = '22023';
    end if;
    insert into queue_worker_data.queues as q (queue, rate_count, rate_seconds)
        values (set_rate_limit.queue, set_rate_limit.count, case when set_rate_limit.count is not null then per_seconds end)
        on conflict (queue) do update set rate_count = excluded.rate_count, rate_seconds = excluded.rate_seconds;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('set_rate_limit', set_rate_limit.queue,
                pg_catalog.jsonb_build_object('count', set_rate_limit.count, 'per_seconds', per_seconds));
    perform pg_catalog.pg_notify('queue_worker', set_rate_limit.queue);
end $$;

-- At most `fleet` messages of the queue run at a time, in all workers together; null lifts the limit. per_group: of an
-- ordered queue, how many messages of one group (null: 1, strict order; more: they start in order and may overlap).
create function queue_worker.set_concurrency(queue text, fleet int default null, per_group int default null)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(set_concurrency.queue);
    if set_concurrency.fleet not between 1 and 100000 then
        raise exception 'fleet must be 1 to 100000, or null for no limit' using errcode = '22023';
    elsif set_concurrency.per_group not between 1 and 1000 then
        raise exception 'per_group must be 1 to 1000, or null for strict order' using errcode = '22023';
    elsif set_concurrency.per_group is not null and not exists (
            select from queue_worker_data.queues q where q.queue = set_concurrency.queue and q.ordered) then
        raise exception 'queue "%" has no groups, so per_group says nothing', set_concurrency.queue
            using errcode = '22023',
                  hint = pg_catalog.format('select queue_worker.create_queue(%L, ordered => true);',
                                           set_concurrency.queue);
    end if;
    insert into queue_worker_data.queues as q (queue, fleet, per_group)
        values (set_concurrency.queue, set_concurrency.fleet, set_concurrency.per_group)
        on conflict (queue) do update set fleet = excluded.fleet, per_group = excluded.per_group;
    if set_concurrency.fleet is not null then
        -- What was started while there was no limit runs too.
        execute pg_catalog.format(
            'insert into queue_worker_data.slots (queue, msg_id, read_ct, enqueued_at)
             select $1, m.msg_id, m.read_ct, m.enqueued_at from pgmq.%I m
             where m.vt > $2 and m.vt < ''infinity'' and m.read_ct > 0 and not exists (
                 select from queue_worker_data.trouble t where t.queue = $1 and t.msg_id = m.msg_id
                     and t.enqueued_at = m.enqueued_at and t.settled_ct = m.read_ct)
             on conflict do nothing', 'q_' || set_concurrency.queue)
            using set_concurrency.queue, pg_catalog.clock_timestamp();
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('set_concurrency', set_concurrency.queue,
                pg_catalog.jsonb_build_object('fleet', set_concurrency.fleet, 'per_group', set_concurrency.per_group));
    perform pg_catalog.pg_notify('queue_worker', set_concurrency.queue);
end $$;

-- The lanes and limits of a queue; always one row.
create function queue_worker.limits(queue text)
returns table (ordered boolean, rate_count int, rate_seconds int, fleet int, per_group int)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(limits.queue);
    return query select coalesce(q.ordered, false), q.rate_count, q.rate_seconds, q.fleet, q.per_group
        from (select) x left join queue_worker_data.queues q on q.queue = limits.queue;
end $$;

-- Opens the breaker: nothing of the queue is claimed for `seconds`, then one message per `probe_seconds` until one
-- succeeds. Workers call it; it never shortens a pause under way.
create function queue_worker.trip(
    queue text, seconds double precision, probe_seconds double precision, reason text, worker text default '')
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := pg_catalog.clock_timestamp();
    first_time boolean;
begin
    perform queue_worker_data.check_queue(trip.queue);
    insert into queue_worker_data.queues as q (queue, broken_at, broken_until, broken_seconds, broken_reason)
        values (trip.queue, read_at, read_at + pg_catalog.make_interval(secs => least(greatest(seconds, 1), 86400)),
                least(greatest(probe_seconds, 1), 86400), trip.reason)
        on conflict (queue) do update set broken_at = coalesce(q.broken_at, excluded.broken_at),
            broken_until = greatest(q.broken_until, excluded.broken_until),
            broken_seconds = excluded.broken_seconds, broken_reason = excluded.broken_reason
        returning q.broken_at = read_at into first_time;
    if first_time then
        insert into queue_worker_data.audit (action, queue, detail)
            values ('trip', trip.queue, pg_catalog.jsonb_build_object(
                'reason', trip.reason, 'seconds', trip.seconds, 'worker', trip.worker));
    end if;
end $$;

-- Closes the breaker; true if it was open. Workers call it after a trial that succeeded.
create function queue_worker.close_breaker(queue text, worker text default '') returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(close_breaker.queue);
    update queue_worker_data.queues q
        set broken_at = null, broken_until = null, broken_seconds = null, broken_reason = null
        where q.queue = close_breaker.queue and q.broken_at is not null;
    if not found then
        return false;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('close_breaker', close_breaker.queue, pg_catalog.jsonb_build_object('worker', close_breaker.worker));
    perform pg_catalog.pg_notify('queue_worker', close_breaker.queue);
    return true;
end $$;

-- Ends a pause, whether a person or the breaker made it.
create or replace function queue_worker.resume(queue text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(resume.queue);
    update queue_worker_data.queues q set paused_at = null, pause_reason = null, broken_at = null, broken_until = null,
            broken_seconds = null, broken_reason = null
        where q.queue = resume.queue;
    insert into queue_worker_data.audit (action, queue) values ('resume', resume.queue);
    perform pg_catalog.pg_notify('queue_worker', resume.queue);
end $$;

call queue_worker_data.lock_down();
