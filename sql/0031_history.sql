-- min_worker: 0.1.0
-- What was done when: counters that are exact and survive deletion and pruning, and the page that shows all queues at once.

-- One row for each settle, in its transaction, so that the numbers are neither early nor late. Only ever appended to:
-- two workers never wait for each other here. fold_tally adds them up.
create table queue_worker_data.tally (
    tally_id bigint generated always as identity primary key,
    queue    text not null,
    at       timestamptz not null default pg_catalog.clock_timestamp(),
    done     int not null default 0,
    retried  int not null default 0,
    dead     int not null default 0,
    lost     int not null default 0,
    -- Of a claim: for how long each message had been due, in seconds.
    pickups  real[]
);

create table queue_worker_data.minutes (
    queue   text not null,
    minute  timestamptz not null,
    done    bigint not null default 0,
    retried bigint not null default 0,
    dead    bigint not null default 0,
    lost    bigint not null default 0,
    primary key (queue, minute)
);
create index minutes_minute_idx on queue_worker_data.minutes (minute);

create table queue_worker_data.totals (
    queue   text primary key,
    done    bigint not null default 0,
    retried bigint not null default 0,
    dead    bigint not null default 0,
    lost    bigint not null default 0,
    since   timestamptz not null default pg_catalog.clock_timestamp()
);

-- Durations by bucket: counts[1] up to the first of `bounds` (seconds), the last one above all of them. `kind`: pickup
-- (due until claimed) or duration (of a handler).
create table queue_worker_data.timings (
    queue  text not null,
    kind   text not null,
    bounds double precision[] not null,
    counts bigint[] not null,
    total  double precision not null default 0,
    primary key (queue, kind, bounds)
);

-- How often leases were lost and connections came back, as workers report with record_counts.
create table queue_worker_data.counts (
    name  text not null,
    queue text not null,
    count bigint not null default 0,
    primary key (name, queue)
);

alter table queue_worker_data.counts enable row level security;
alter table queue_worker_data.timings enable row level security;
alter table queue_worker_data.tally enable row level security;
alter table queue_worker_data.minutes enable row level security;
alter table queue_worker_data.totals enable row level security;

create function queue_worker_data.pickup_bounds() returns double precision[]
language sql immutable set search_path = '' as $$
    select array[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800]::double precision[];
$$;

-- Adds counts by bucket to those of before; whoever comes from another version has bounds of its own.
create function queue_worker_data.add_timings(
    queue text, kind text, bounds double precision[], counts bigint[], total double precision)
returns void
language sql set search_path = '' as $$
    insert into queue_worker_data.timings as t (queue, kind, bounds, counts, total)
        values (add_timings.queue, add_timings.kind, add_timings.bounds, add_timings.counts, add_timings.total)
        on conflict (queue, kind, bounds) do update set total = t.total + excluded.total, counts = array(
            select a.n + b.n from pg_catalog.unnest(t.counts) with ordinality a (n, place)
            join pg_catalog.unnest(excluded.counts) with ordinality b (n, place) on b.place = a.place
            order by a.place);
$$;

-- Adds up what was settled since the last time; returns how many rows it took. One at a time: whoever comes second has
-- nothing to do. Minutes are kept for a week.
create function queue_worker_data.fold_tally(max_count int default 100000) returns bigint
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
    -- A queue that is made anew under the name of a dropped one counts from 0.
    with dropped as (
        delete from queue_worker_data.totals o
        where not exists (select from pgmq.meta m where m.queue_name = o.queue) returning o.queue),
    untimed as (delete from queue_worker_data.timings t using dropped d where t.queue = d.queue),
    uncounted as (delete from queue_worker_data.counts c using dropped d where c.queue = d.queue)
    delete from queue_worker_data.minutes m using dropped d where m.queue = d.queue;
    return taken;
end $$;

create function queue_worker_data.count_settled(
    queue text, done int default 0, retried int default 0, dead int default 0, lost int default 0)
returns void
language plpgsql set search_path = '' as $$
begin
    insert into queue_worker_data.tally (queue, done, retried, dead, lost)
        values (count_settled.queue, count_settled.done, count_settled.retried, count_settled.dead, count_settled.lost);
    -- Whoever only fetches by hand sends no heartbeat, which folds otherwise.
    if pg_catalog.random() < 0.0005 then
        perform queue_worker_data.fold_tally();
    end if;
end $$;


-- ---------------------------------------------------------------------------------------------------- settle

create or replace function queue_worker_data.bury(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, kind text, reason text, error text, worker text)
returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    ran constant int := case when bury.reason = 'expired' then 0 else 1 end;
    body jsonb;
    head jsonb;
    charged int;
    found_id bigint;
begin
    execute pg_catalog.format(
        'delete from pgmq.%I m where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3
         returning m.msg_id, m.message, m.headers', 'q_' || bury.queue)
        into found_id, body, head using bury.msg_id, bury.read_ct, bury.enqueued_at;
    if found_id is null then
        return false;
    end if;
    delete from queue_worker_data.trouble t
        where t.queue = bury.queue and t.msg_id = bury.msg_id and t.enqueued_at = bury.enqueued_at
        returning case when bury.kind = 'lost' then t.lost else t.failures + ran end into charged;
    charged := coalesce(charged, ran);
    insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, worker)
        values (bury.queue, bury.msg_id, charged, bury.kind, bury.error, bury.worker);
    insert into queue_worker_data.dead_letters
        (queue, msg_id, payload, headers, attempts, reason, error, enqueued_at, redriven_from)
        values (bury.queue, bury.msg_id, body, head, charged, bury.reason, bury.error, bury.enqueued_at,
                case when pg_catalog.jsonb_typeof(head -> 'redriven_from') = 'number'
                          and head ->> 'redriven_from' ~ '^[0-9]{1,18}$'
                     then (head ->> 'redriven_from')::bigint end);
    perform queue_worker_data.count_settled(bury.queue, dead => case when bury.kind = 'lost' then 0 else 1 end,
        lost => case when bury.kind = 'lost' then 1 else 0 end);
    return true;
end $$;

-- Deletes or archives a set of leased messages; returns the ids that were really held.
create or replace function queue_worker_data.settle_done(
    queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[], on_success text)
returns bigint[]
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    done bigint[];
    troubled boolean;
begin
    -- EXECUTE: a static plan would keep the shape of the empty table it was first planned on. `= any ($1)` says the
    -- same as the join once more, and keeps the primary key in the plan where a hash join would read the table.
    if on_success = 'delete' then
        execute pg_catalog.format(
            'with d as (
                 delete from pgmq.%1$I m using unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
                 where m.msg_id = any ($1)
                   and m.msg_id = r.msg_id and m.read_ct = r.read_ct and m.enqueued_at = r.enqueued_at
                 returning m.msg_id, m.read_ct)
             select pg_catalog.array_agg(d.msg_id), coalesce(pg_catalog.bool_or(d.read_ct > 1), false) from d',
            'q_' || settle_done.queue)
            into done, troubled using ids, read_cts, enqueued_ats;
    else
        execute pg_catalog.format(
            'with d as (
                 delete from pgmq.%1$I m using unnest($1, $2, $3) r (msg_id, read_ct, enqueued_at)
                 where m.msg_id = any ($1)
                   and m.msg_id = r.msg_id and m.read_ct = r.read_ct and m.enqueued_at = r.enqueued_at
                 returning m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers),
             a as (
                 insert into pgmq.%2$I (msg_id, read_ct, enqueued_at, vt, message, headers)
                 select d.msg_id, d.read_ct, d.enqueued_at, d.vt, d.message, d.headers from d)
             select pg_catalog.array_agg(d.msg_id), coalesce(pg_catalog.bool_or(d.read_ct > 1), false) from d',
            'q_' || settle_done.queue, 'a_' || settle_done.queue)
            into done, troubled using ids, read_cts, enqueued_ats;
    end if;
    if troubled then
        delete from queue_worker_data.trouble t
            where t.queue = settle_done.queue and t.msg_id = any (done);
    end if;
    if done is not null then
        perform queue_worker_data.count_settled(settle_done.queue, done => pg_catalog.cardinality(done));
    end if;
    return coalesce(done, '{}');
end $$;

-- Settles one message that is not done. Returns 'done' or null when the receipt did not match.
create or replace function queue_worker_data.settle_other(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz,
    kind text, delay_seconds double precision, reason text, error text, worker text)
returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    due timestamptz;
    charged int;
begin
    if kind = 'dead' then
        return case when queue_worker_data.bury(settle_other.queue, settle_other.msg_id, settle_other.read_ct,
            settle_other.enqueued_at, 'dead', reason, error, settle_other.worker) then 'done' end;
    end if;
    -- read_ct + 1 spends the receipt: a late extend or a resent settle with it must change nothing.
    execute pg_catalog.format(
        'update pgmq.%I m set vt = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4),
                read_ct = m.read_ct + 1
         where m.msg_id = $1 and m.read_ct = $2 and m.enqueued_at = $3 returning m.vt', 'q_' || settle_other.queue)
        into due using settle_other.msg_id, settle_other.read_ct, settle_other.enqueued_at,
            least(greatest(delay_seconds, 0), 31536000);
    if due is null then
        return null;
    end if;
    if kind = 'release' then
        -- A start that a living worker gives back was no kill, so a suspect gets its recorded start back.
        insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, settled_ct)
            values (settle_other.queue, settle_other.msg_id, settle_other.enqueued_at, settle_other.read_ct + 1)
            on conflict (queue, msg_id) do update set
                failures = case when t.enqueued_at = excluded.enqueued_at then t.failures else 0 end,
                lost = case when t.enqueued_at <> excluded.enqueued_at then 0
                            when t.settled_ct = excluded.settled_ct - 2 then t.lost
                            else greatest(t.lost - 1, 0) end,
                enqueued_at = excluded.enqueued_at, settled_ct = excluded.settled_ct,
                updated_at = pg_catalog.clock_timestamp();
        return 'done';
    end if;
    insert into queue_worker_data.trouble as t (queue, msg_id, enqueued_at, failures, settled_ct, last_error)
        values (settle_other.queue, settle_other.msg_id, settle_other.enqueued_at, 1, settle_other.read_ct + 1,
                settle_other.error)
        on conflict (queue, msg_id) do update set
            failures = case when t.enqueued_at = excluded.enqueued_at then t.failures + 1 else 1 end,
            lost = 0, enqueued_at = excluded.enqueued_at, settled_ct = excluded.settled_ct,
            last_error = excluded.last_error, updated_at = pg_catalog.clock_timestamp()
        returning t.failures into charged;
    insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, retry_at, worker)
        values (settle_other.queue, settle_other.msg_id, charged, settle_other.kind, settle_other.error, due,
                settle_other.worker);
    perform queue_worker_data.count_settled(settle_other.queue, retried => 1);
    return 'done';
end $$;

-- See queue_worker.cancel and queue_worker.complete.
create or replace function queue_worker_data.put_away(queue text, msg_id bigint, mark jsonb) returns boolean
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
        if not put_away.mark ? 'cancelled_at' then
            perform queue_worker_data.count_settled(put_away.queue, done => 1);
        end if;
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


-- ---------------------------------------------------------------------------------------------------- look

-- What was settled by minute, folded or not.
create view queue_worker_data.settled with (security_invoker = true) as
    select m.queue, m.minute, m.done, m.retried, m.dead, m.lost from queue_worker_data.minutes m
    union all
    select t.queue, pg_catalog.date_trunc('minute', t.at), t.done, t.retried, t.dead, t.lost
    from queue_worker_data.tally t where t.pickups is null;

-- How many runs of each queue ended in which way, since `since`: exact, whatever was deleted or pruned meanwhile.
create function queue_worker_data.counters()
returns table (queue text, done bigint, retried bigint, dead bigint, lost bigint, since timestamptz)
language sql stable security definer set search_path = '' as $$
    select c.queue, sum(c.done)::bigint, sum(c.retried)::bigint, sum(c.dead)::bigint, sum(c.lost)::bigint, min(c.since)
    from (select o.queue, o.done, o.retried, o.dead, o.lost, o.since from queue_worker_data.totals o
          union all
          select t.queue, t.done, t.retried, t.dead, t.lost, t.at from queue_worker_data.tally t
          where t.pickups is null) c
    where queue_worker_data.other_environment(c.queue) is null
    group by c.queue order by c.queue;
$$;

-- The same by minute, of one queue or (null) of all, for at most a week; minutes in which nothing ended have no row.
create function queue_worker_data.history(minutes int default 60, queue text default null)
returns setof queue_worker_data.settled
language sql stable security definer set search_path = '' as $$
    select s.queue, s.minute, sum(s.done)::bigint, sum(s.retried)::bigint, sum(s.dead)::bigint, sum(s.lost)::bigint
    from queue_worker_data.settled s
    where s.minute > pg_catalog.date_trunc('minute', pg_catalog.clock_timestamp())
              - pg_catalog.make_interval(mins => history.minutes)
      and (history.queue is null or s.queue = history.queue)
      and queue_worker_data.other_environment(s.queue) is null
    group by s.queue, s.minute order by s.queue, s.minute;
$$;

-- The messages of one queue by state. Counts up to `cap` of a state (null: all); beyond it `capped`, and waiting is an
-- estimate from the server's statistics: to count a million index entries takes longer than a page may.
create function queue_worker_data.count_states(queue text, cap bigint default 10000)
returns table (waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
               capped boolean)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
    hidden bigint;
    relation constant regclass := pg_catalog.to_regclass(
        pg_catalog.format('pgmq.%I', 'q_' || pg_catalog.lower(count_states.queue)));
begin
    if relation is null then
        return;
    end if;
    select count(*) into dead
        from (select from queue_worker_data.dead_letters d where d.queue = count_states.queue limit cap + 1) d;
    execute pg_catalog.format(
        'select (select count(*) from (select from %1$s m where m.vt <= $2 limit $3) w),
                (select pg_catalog.date_part(''epoch'', $2 - m.vt) from %1$s m
                 where m.vt <= $2 and m.vt > ''-infinity'' order by m.vt limit 1),
                h.hidden, h.running
         from (select count(*) as hidden, count(*) filter (where m.read_ct > 0 and not exists (
                          select from queue_worker_data.trouble t
                          where t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
                            and t.settled_ct = m.read_ct)) as running
               from (select x.msg_id, x.read_ct, x.enqueued_at from %1$s x where x.vt > $2 order by x.vt limit $3) m) h',
        relation)
        into waiting, oldest_seconds, hidden, running
        using count_states.queue, pg_catalog.now(), cap + 1;
    delayed := hidden - running;
    capped := coalesce(greatest(waiting, hidden, dead) > cap, false);
    if waiting > cap then
        select greatest(waiting, coalesce(nullif(pg_catalog.pg_stat_get_live_tuples(c.oid), 0), c.reltuples::bigint)
                   - hidden)
            into waiting from pg_catalog.pg_class c where c.oid = relation;
    end if;
    return next;
exception when insufficient_privilege then
    -- A queue that nobody has taken over: it must not hide all the others.
    capped := false;
    return next;
end $$;

-- Every queue at once, for a page that looks every few seconds: states (see count_states), what ended in the last
-- minutes as [minute in epoch seconds, done, retried, dead or lost], runs per minute and the part of them that failed,
-- both over the last five minutes.
create function queue_worker_data.overview(minutes int default 60)
returns table (
    queue text, waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
    paused_at timestamptz, pause_reason text, broken_until timestamptz, broken_reason text, ordered boolean,
    capped boolean, completed bigint, counters jsonb, rate double precision, error_rate double precision, history jsonb)
language sql stable security definer set search_path = '' as $$
    with h as materialized (select * from queue_worker_data.history(overview.minutes)),
    plots as (
        select h.queue, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                   pg_catalog.date_part('epoch', h.minute)::bigint, h.done, h.retried, h.dead + h.lost)
                   order by h.minute) as history
        from h group by h.queue),
    recent as (
        select h.queue, sum(h.done) as done, sum(h.retried + h.dead + h.lost) as failed
        from queue_worker_data.history(5) h group by h.queue)
    select m.queue_name::text, s.waiting, s.delayed, s.running, s.dead, s.oldest_seconds, q.paused_at, q.pause_reason,
           q.broken_until, q.broken_reason, coalesce(q.ordered, false), s.capped, coalesce(c.done, 0),
           pg_catalog.jsonb_build_object('done', coalesce(c.done, 0), 'retried', coalesce(c.retried, 0),
               'dead', coalesce(c.dead, 0), 'lost', coalesce(c.lost, 0)),
           -- Four whole minutes and the one that runs.
           pg_catalog.round((coalesce(r.done + r.failed, 0) * 60 / (240 + pg_catalog.date_part('second',
               pg_catalog.clock_timestamp())))::numeric, 2)::double precision,
           case when r.done + r.failed > 0 then (r.failed / (r.done + r.failed))::double precision end,
           coalesce(p.history, '[]')
    from pgmq.meta m
    cross join lateral queue_worker_data.count_states(m.queue_name::text) s
    left join queue_worker_data.queues q on q.queue = m.queue_name
    left join queue_worker_data.counters() c on c.queue = m.queue_name
    left join recent r on r.queue = m.queue_name
    left join plots p on p.queue = m.queue_name
    where queue_worker_data.other_environment(m.queue_name::text) is null
    order by m.queue_name;
$$;

-- One queue, counted to the last message.
create function queue_worker_data.queue_status(queue text)
returns table (
    waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
    paused_at timestamptz, pause_reason text, broken_until timestamptz, broken_reason text, ordered boolean,
    completed bigint, retried bigint)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
    perform queue_worker_data.check_queue(queue_status.queue);
    return query
        select s.waiting, s.delayed, s.running, s.dead, s.oldest_seconds, q.paused_at,
               q.pause_reason, q.broken_until, q.broken_reason, coalesce(q.ordered, false), coalesce(c.done, 0),
               coalesce(c.retried, 0)
        from queue_worker_data.count_states(queue_status.queue, null) s
        left join queue_worker_data.queues q on q.queue = queue_status.queue
        left join queue_worker_data.counters() c on c.queue = queue_status.queue;
end $$;

-- Somebody reads payloads in full: who, of what.
create function queue_worker_data.note_reading(queue text, msg_id bigint) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    insert into queue_worker_data.audit (action, queue, detail)
        values ('read_payload', note_reading.queue, pg_catalog.jsonb_build_object('msg_id', note_reading.msg_id));
    return true;
end $$;

create or replace function queue_worker_data.heartbeat(
    worker text, host text, pid int, version text, queues text[], slots int, busy int)
returns void
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
    insert into queue_worker_data.workers as w (worker, host, pid, version, queues, slots, busy)
        values (heartbeat.worker, heartbeat.host, heartbeat.pid, heartbeat.version, heartbeat.queues,
                heartbeat.slots, heartbeat.busy)
        on conflict (worker) do update set slots = excluded.slots, busy = excluded.busy,
            queues = excluded.queues, last_seen = pg_catalog.now();
    perform queue_worker_data.fold_tally();
end $$;

create function queue_worker.counters()
returns table (queue text, done bigint, retried bigint, dead bigint, lost bigint, since timestamptz)
language sql set search_path = '' as $$
    select * from queue_worker_data.counters();
$$;
create function queue_worker.history(minutes int default 60, queue text default null)
returns setof queue_worker_data.settled
language sql set search_path = '' as $$
    select * from queue_worker_data.history(history.minutes, history.queue);
$$;
create function queue_worker.overview(minutes int default 60)
returns table (
    queue text, waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
    paused_at timestamptz, pause_reason text, broken_until timestamptz, broken_reason text, ordered boolean,
    capped boolean, completed bigint, counters jsonb, rate double precision, error_rate double precision, history jsonb)
language sql set search_path = '' as $$
    select * from queue_worker_data.overview(overview.minutes);
$$;
create function queue_worker.queue_status(queue text)
returns table (
    waiting bigint, delayed bigint, running bigint, dead bigint, oldest_seconds double precision,
    paused_at timestamptz, pause_reason text, broken_until timestamptz, broken_reason text, ordered boolean,
    completed bigint, retried bigint)
language sql set search_path = '' as $$
    select * from queue_worker_data.queue_status(queue_status.queue);
$$;
create function queue_worker.note_reading(queue text, msg_id bigint) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.note_reading(note_reading.queue, note_reading.msg_id);
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['counters', 'history', 'overview', 'queue_status']);
    end loop;
end $$;
call queue_worker_data.allow('queue_operator', array['note_reading']);

call queue_worker_data.lock_down();
call queue_worker_data.remember();
