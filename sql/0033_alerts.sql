-- min_worker: 0.1.0
-- Alerts: what is wrong with queues, workers and schedules, opened once and cleared once for the whole fleet, and who
-- tells people about it. Thresholds come from the settings of the workers: see docs/alerts.md.

-- subject: which worker or schedule, where the queue alone does not say it. quiet_since: since when the cause is gone.
create table queue_worker_data.alerts (
    alert_id    bigint generated always as identity primary key,
    name        text not null,
    queue       text not null default '',
    subject     text not null default '',
    detail      text not null,
    value       double precision not null,
    fired_at    timestamptz not null default pg_catalog.clock_timestamp(),
    quiet_since timestamptz,
    cleared_at  timestamptz
);
create unique index alerts_open_idx on queue_worker_data.alerts (name, queue, subject) where cleared_at is null;
create index alerts_cleared_at_idx on queue_worker_data.alerts (cleared_at);

-- What people are to be told: a row for each time an alert fires or clears. Whoever claims it has until due_at; channels:
-- those that have it already. attempts is the receipt: who comes late changes nothing.
create table queue_worker_data.alert_notices (
    alert_id     bigint not null references queue_worker_data.alerts on delete cascade,
    event        text not null check (event in ('fired', 'cleared')),
    attempts     int not null default 0,
    due_at       timestamptz not null default pg_catalog.clock_timestamp(),
    channels     text[] not null default '{}',
    delivered_at timestamptz,
    primary key (alert_id, event)
);
create index alert_notices_open_idx on queue_worker_data.alert_notices (due_at) where delivered_at is null;

-- When all rules were looked at last: a fleet looks as often as one worker.
create table queue_worker_data.alert_checks (
    only_row   boolean primary key default true check (only_row),
    checked_at timestamptz not null
);

alter table queue_worker_data.alerts enable row level security;
alter table queue_worker_data.alert_checks enable row level security;
alter table queue_worker_data.alert_notices enable row level security;


-- ---------------------------------------------------------------------------------------------------- conditions

-- A threshold; null where the rule is off.
create function queue_worker_data.alert_rule(rules jsonb, name text) returns double precision
language sql immutable set search_path = '' as $$
    select nullif(greatest((alert_rule.rules ->> alert_rule.name)::double precision, 0), 0);
$$;

-- Looks at one queue. Each look ends at the threshold: a queue of a million messages costs what a short one does.
-- A row whose `firing` is false is below the threshold, but not far enough for an alert that is open to clear.
create function queue_worker_data.alert_queue(rules jsonb, queue text, relation regclass)
returns table (name text, detail text, value double precision, firing boolean)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    most constant double precision := queue_worker_data.alert_rule(rules, 'backlog');
    oldest constant double precision := queue_worker_data.alert_rule(rules, 'oldest');
    dead constant double precision := queue_worker_data.alert_rule(rules, 'dead');
    stalled double precision := queue_worker_data.alert_rule(rules, 'stalled');
    read_at constant timestamptz := pg_catalog.clock_timestamp();
    own queue_worker_data.queues;
    waits double precision;
    number bigint;
    busy boolean;
begin
    if most is not null then
        execute pg_catalog.format('select count(*) from (select from %s m where m.vt <= $1 limit $2) w', relation)
            into number using read_at, pg_catalog.floor(most)::bigint + 1;
        if number > most then
            execute pg_catalog.format('select count(*) from (select from %s m where m.vt <= $1 limit 10000) w', relation)
                into waits using read_at;
            number := greatest(number, waits::bigint);
        end if;
        if number > most * 0.8 then
            name := 'backlog';
            value := number;
            detail := pg_catalog.format('%s%s messages wait, more than %s', number,
                case when number > most and number >= 10000 then ' or more' end, most);
            firing := number > most;
            return next;
        end if;
    end if;
    execute pg_catalog.format('select pg_catalog.date_part(''epoch'', $1 - m.vt) from %s m
        where m.vt <= $1 and m.vt > ''-infinity'' order by m.vt limit 1', relation) into waits using read_at;
    if waits > oldest * 0.8 then
        name := 'oldest';
        value := pg_catalog.round(waits);
        detail := pg_catalog.format('a message waits for %s s, more than %s', value, oldest);
        firing := waits > oldest;
        return next;
    end if;
    if dead is not null then
        select count(*) into number from (select from queue_worker_data.dead_letters d where d.queue = alert_queue.queue
                                         limit greatest(dead, 1000)::bigint) d;
        if number >= dead then
            name := 'dead';
            value := number;
            detail := pg_catalog.format('%s%s dead letter%s', number, case when number >= 1000 then ' or more' end,
                case when number > 1 then 's' end);
            firing := true;
            return next;
        end if;
    end if;
    select q.* into own from queue_worker_data.queues q where q.queue = alert_queue.queue;
    -- A queue with a rate limit may rest for as long as its window.
    stalled := stalled + coalesce(2 * own.rate_seconds, 0);
    if waits > stalled and own.paused_at is null and coalesce(own.broken_until <= read_at, true) then
        execute pg_catalog.format(
            'select exists (select from (select x.msg_id, x.read_ct, x.enqueued_at from %s x
                                         where x.vt > $2 order by x.vt limit 1000) m
                            where m.read_ct > 0 and not exists (
                                select from queue_worker_data.trouble t
                                where t.queue = $1 and t.msg_id = m.msg_id and t.enqueued_at = m.enqueued_at
                                  and t.settled_ct = m.read_ct))', relation)
            into busy using alert_queue.queue, read_at;
        if not busy and not exists (
               select from queue_worker_data.settled s
               where s.queue = alert_queue.queue
                 and s.minute > read_at - pg_catalog.make_interval(secs => stalled + 60)) then
            name := 'stalled';
            value := pg_catalog.round(waits);
            detail := pg_catalog.format('a message is due since %s s, nothing runs, and it is not paused', value);
            firing := true;
            return next;
        end if;
    end if;
end $$;

-- Queues that had at least `error_runs` runs in ten minutes, of which more than `error_rate` percent failed.
create function queue_worker_data.alert_errors(rules jsonb)
returns table (queue text, detail text, value double precision, firing boolean)
language sql stable set search_path = '' as $$
    select r.queue, pg_catalog.format('%s %% of %s runs in 10 minutes failed, more than %s %%',
               pg_catalog.round(r.percent, 1), r.runs, r.most), r.percent, r.percent > r.most
    from (select h.queue, sum(h.done + h.retried + h.dead + h.lost) as runs,
                 100 * sum(h.retried + h.dead + h.lost) / nullif(sum(h.done + h.retried + h.dead + h.lost), 0) as percent,
                 queue_worker_data.alert_rule(alert_errors.rules, 'error_rate') as most
          from queue_worker_data.history(10) h group by h.queue) r
    where r.percent > r.most * 0.8
      and r.runs >= coalesce(queue_worker_data.alert_rule(alert_errors.rules, 'error_runs'), 1);
$$;

-- Workers that were seen within the last hour, not lately, and did not sign off; but not where one that began later serves
-- the same queues.
create function queue_worker_data.alert_workers(rules jsonb)
returns table (subject text, detail text, value double precision)
language sql stable set search_path = '' as $$
    select w.worker, pg_catalog.format('worker %s was last seen %s s ago and did not sign off; it served %s', w.worker,
               pg_catalog.round(s.seconds::numeric), pg_catalog.array_to_string(w.queues, ', ')),
           pg_catalog.round(s.seconds)
    from queue_worker_data.workers w
    cross join lateral (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - w.last_seen) as seconds,
                               queue_worker_data.alert_rule(alert_workers.rules, 'worker') as most) s
    where s.seconds > s.most and s.seconds < s.most + 3600
      and not exists (select from queue_worker_data.workers n
                      where n.started_at > w.last_seen and n.queues @> w.queues
                        and n.last_seen > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => s.most));
$$;

-- Schedules whose time has passed, or is not computed, for longer than `schedule` seconds: nobody fires them.
create function queue_worker_data.alert_schedules(rules jsonb)
returns table (queue text, subject text, detail text, value double precision)
language sql stable set search_path = '' as $$
    select s.queue, s.name, pg_catalog.format('schedule %s should have fired %s s ago%s', s.name,
               pg_catalog.round(l.seconds::numeric), ': ' || pg_catalog.left(s.error, 300)), pg_catalog.round(l.seconds)
    from queue_worker_data.schedules s
    cross join lateral (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()
                            - coalesce(s.next_fire_at, s.updated_at)) as seconds) l
    where s.enabled and l.seconds > queue_worker_data.alert_rule(alert_schedules.rules, 'schedule');
$$;

-- All that is wrong now. A row without a name: a queue that could not be looked at, so that nobody knows.
create function queue_worker_data.alert_conditions(rules jsonb)
returns table (name text, queue text, subject text, detail text, value double precision, firing boolean)
language plpgsql stable set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    one record;
begin
    for one in
        select n.queue, c.oid::regclass as relation
        from (select q.queue from queue_worker_data.queues q
              union
              select pg_catalog.unnest(w.queues) from queue_worker_data.workers w
              where w.last_seen > pg_catalog.now() - interval '1 hour') n
        join pg_catalog.pg_class c on c.relnamespace = 'pgmq'::regnamespace and c.relkind = 'r'
            and c.relname = 'q_' || n.queue
        where queue_worker_data.other_environment(n.queue) is null
    loop
        begin
            return query select a.name, one.queue, '', a.detail, a.value, a.firing
                from queue_worker_data.alert_queue(rules, one.queue, one.relation) a;
        exception
            when undefined_table then
                null;
            when lock_not_available or insufficient_privilege then
                return query select null::text, one.queue, '', null::text, null::double precision, false;
        end;
    end loop;
    return query select 'error_rate', e.queue, '', e.detail, e.value, e.firing
        from queue_worker_data.alert_errors(rules) e
        where pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || e.queue)) is not null;
    return query select 'worker_gone', '', w.subject, w.detail, w.value, true
        from queue_worker_data.alert_workers(rules) w;
    return query select 'schedule_missed', s.queue, s.subject, s.detail, s.value, true
        from queue_worker_data.alert_schedules(rules) s
        where queue_worker_data.other_environment(s.queue) is null;
end $$;


-- ---------------------------------------------------------------------------------------------------- check

-- Opens and clears alerts, each once whoever checks. `hold`: how long a cause must be gone, in seconds; a queue that was
-- dropped takes its alerts along at once. `every`: the pause of each worker; nothing is done within half of it.
create function queue_worker_data.update_alerts(rules jsonb) returns bigint
language plpgsql set search_path = '' as $$
declare
    hold constant interval := pg_catalog.make_interval(secs => coalesce((rules ->> 'hold')::double precision, 30));
    at constant timestamptz := pg_catalog.clock_timestamp();
    news bigint;
begin
    insert into queue_worker_data.alert_checks as k (checked_at) values (at)
        on conflict (only_row) do update set checked_at = excluded.checked_at
        where k.checked_at not between at - pg_catalog.make_interval(
            secs => coalesce((rules ->> 'every')::double precision, 0) / 2) and at;
    if not found then
        return 0;
    end if;
    with c as materialized (select * from queue_worker_data.alert_conditions(rules)),
    opened as (
        insert into queue_worker_data.alerts (name, queue, subject, detail, value)
        select c.name, c.queue, c.subject, c.detail, c.value from c where c.firing
        on conflict (name, queue, subject) where cleared_at is null do nothing
        returning alert_id),
    changed as (
        update queue_worker_data.alerts a set detail = c.detail, value = c.value, quiet_since = null
        from c
        where a.cleared_at is null and (c.name, c.queue, c.subject) = (a.name, a.queue, a.subject)
          and (a.quiet_since is not null or a.value <> c.value)),
    quiet as (
        update queue_worker_data.alerts a set quiet_since = coalesce(a.quiet_since, at),
            cleared_at = case when at - coalesce(a.quiet_since, at) >= hold or a.queue <> '' and pg_catalog.to_regclass(
                pg_catalog.format('pgmq.%I', 'q_' || a.queue)) is null then at end
        where a.cleared_at is null and not exists (
            select from c where c.queue = a.queue and (c.name is null or (c.name, c.subject) = (a.name, a.subject)))
        returning a.alert_id, a.cleared_at),
    noted as (
        insert into queue_worker_data.alert_notices (alert_id, event)
        select o.alert_id, 'fired' from opened o
        union all
        select q.alert_id, 'cleared' from quiet q where q.cleared_at is not null
        returning 1)
    select count(*) into news from noted;
    if news > 0 then
        perform queue_worker_data.expire('alerts', 'cleared_at', 30 * 86400, 1000);
    end if;
    return news;
end $$;

-- Checks all rules, and hands the caller one thing that people are to be told: it has `lease` seconds for that, then
-- somebody else gets it, five times at most. One at a time, because a slow channel must not age the others. One process
-- checks at a time; whoever comes second gets nothing. What an alert's end says comes after its beginning.
create function queue_worker_data.check_alerts(rules jsonb)
returns table (alert_id bigint, event text, name text, queue text, subject text, detail text, value double precision,
               fired_at timestamptz, cleared_at timestamptz, channels text[], attempt int, last boolean)
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
    lease constant double precision := coalesce((rules ->> 'lease')::double precision, 60);
    most constant int := 5;
begin
    if not pg_catalog.pg_try_advisory_xact_lock(1903521, pg_catalog.hashtext('queue_worker_data.alerts')) then
        return;
    end if;
    perform queue_worker_data.update_alerts(rules);
    return query
        with claimed as (
            update queue_worker_data.alert_notices n
            set attempts = n.attempts + 1,
                due_at = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => lease * (2 ^ n.attempts))
            where (n.alert_id, n.event) in (
                select x.alert_id, x.event from queue_worker_data.alert_notices x
                where x.delivered_at is null and x.due_at <= pg_catalog.clock_timestamp() and x.attempts < most
                  and (x.event = 'fired' or not exists (
                      select from queue_worker_data.alert_notices f
                      where f.alert_id = x.alert_id and f.event = 'fired' and f.delivered_at is null
                        and (f.attempts < most or f.due_at > pg_catalog.clock_timestamp())))
                order by x.due_at, x.alert_id, x.event desc limit 1)
            returning n.alert_id, n.event, n.channels, n.attempts)
        select a.alert_id, c.event, a.name, a.queue, a.subject, a.detail, a.value, a.fired_at,
               case when c.event = 'cleared' then a.cleared_at end, c.channels, c.attempts, c.attempts >= most
        from claimed c join queue_worker_data.alerts a on a.alert_id = c.alert_id;
end $$;

-- Notes that one channel has told it, or (null) all. False: somebody else has it by now.
create function queue_worker_data.alert_delivered(alert_id bigint, event text, attempt int, channel text default null)
returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    update queue_worker_data.alert_notices n
        set delivered_at = case when channel is null then pg_catalog.clock_timestamp() end,
            channels = case when channel is null then n.channels else n.channels || channel end
        where n.alert_id = alert_delivered.alert_id and n.event = alert_delivered.event
          and n.attempts = alert_delivered.attempt and n.delivered_at is null;
    return found;
end $$;

-- Alerts, open ones first, then the newest.
create function queue_worker_data.list_alerts(max_count int default 100)
returns table (alert_id bigint, name text, queue text, detail text, value double precision, fired_at timestamptz,
               cleared_at timestamptz)
language sql stable security definer set search_path = '' as $$
    select a.alert_id, a.name, a.queue, a.detail, a.value, a.fired_at, a.cleared_at
    from queue_worker_data.alerts a
    order by a.cleared_at is null desc, a.alert_id desc
    limit list_alerts.max_count;
$$;

create function queue_worker.check_alerts(rules jsonb)
returns table (alert_id bigint, event text, name text, queue text, subject text, detail text, value double precision,
               fired_at timestamptz, cleared_at timestamptz, channels text[], attempt int, last boolean)
language sql set search_path = '' as $$
    select * from queue_worker_data.check_alerts(check_alerts.rules);
$$;
create function queue_worker.alert_delivered(alert_id bigint, event text, attempt int, channel text default null)
returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.alert_delivered(alert_delivered.alert_id, alert_delivered.event, alert_delivered.attempt,
        alert_delivered.channel);
$$;
create function queue_worker.list_alerts(max_count int default 100)
returns table (alert_id bigint, name text, queue text, detail text, value double precision, fired_at timestamptz,
               cleared_at timestamptz)
language sql set search_path = '' as $$
    select * from queue_worker_data.list_alerts(list_alerts.max_count);
$$;

create view queue_worker.alerts with (security_invoker = true) as
    select alert_id, name, queue, subject, detail, value, fired_at, cleared_at
    from queue_worker_data.alerts;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['list_alerts']);
    end loop;
    foreach role in array array['queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow_view(role, 'alerts');
    end loop;
end $$;
call queue_worker_data.allow('queue_worker', array['check_alerts', 'alert_delivered']);

call queue_worker_data.lock_down();
call queue_worker_data.remember();
