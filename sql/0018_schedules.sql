-- min_worker: 0.1.0
-- Schedules: what is sent again and again, by cron or interval. Python computes the times, SQL holds and fires them:
-- see docs/schedules.md.

-- A change of the times (not one of the payload) makes a new version, so that nobody fires what was computed before.
create sequence queue_worker_data.schedule_versions;

-- from_at: only times after it count, and intervals are counted from it. next_fire_at: null until a worker computed it.
-- The bounds keep infinity away from clients that have none.
create table queue_worker_data.schedules (
    name          text primary key,
    queue         text not null,
    cron          text not null,
    timezone      text not null default 'UTC',
    payload       jsonb not null default '{}',
    options       jsonb not null default '{}',
    misfire       text not null default 'once',
    misfire_limit int not null default 100,
    enabled       boolean not null default true,
    version       bigint not null default 0,
    from_at       timestamptz not null default now() check (from_at between '1971-01-01' and '9998-01-01'),
    next_fire_at  timestamptz check (next_fire_at between '1971-01-01' and '9998-01-01'),
    retry_at      timestamptz,
    last_fire_at  timestamptz,
    last_msg_id   bigint,
    error         text,
    updated_at    timestamptz not null default now()
);

-- One row for each time that was fired: whoever comes second finds it.
create table queue_worker_data.fires (
    schedule text not null,
    fire_at  timestamptz not null,
    queue    text not null,
    msg_id   bigint,
    fired_at timestamptz not null default clock_timestamp(),
    primary key (schedule, fire_at)
);
create index fires_fired_at_idx on queue_worker_data.fires (fired_at);

alter table queue_worker_data.schedules enable row level security;
alter table queue_worker_data.fires enable row level security;


-- ---------------------------------------------------------------------------------------------------- edit

-- Refuses what cannot be right, whichever way the row is edited. The cron expression is Python's to judge.
create function queue_worker_data.check_schedule() returns trigger
language plpgsql set search_path = '' as $$
begin
    perform queue_worker_data.check_queue_name(new.queue);
    if coalesce(new.name, '') !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}$' then
        raise exception 'schedule name % is not allowed', pg_catalog.quote_literal(left(new.name, 60))
            using errcode = '22023',
                  hint = 'Use 1 to 100 of A-Z, a-z, 0-9, _, ., : and -, starting with a letter, a digit or _.';
    elsif coalesce(new.misfire, '') not in ('skip', 'once', 'all') then
        raise exception 'misfire must be skip, once or all, not %', pg_catalog.quote_literal(left(new.misfire, 60))
            using errcode = '22023';
    elsif coalesce(new.misfire_limit, 0) not between 1 and 1000 then
        raise exception 'misfire_limit must be 1 to 1000, not %', new.misfire_limit using errcode = '22023';
    elsif coalesce(pg_catalog.length(new.cron), 0) not between 1 and 500 then
        raise exception 'cron must be 1 to 500 characters, such as 0 9 * * 1-5 or every 10 minutes'
            using errcode = '22023';
    elsif pg_catalog.jsonb_typeof(new.payload) is distinct from 'object' then
        raise exception 'payload must be a JSON object, not %', coalesce(pg_catalog.jsonb_typeof(new.payload), 'null')
            using errcode = '22023';
    elsif pg_catalog.jsonb_typeof(new.options) <> 'object' or new.options ? 'payload' then
        raise exception 'options must be a JSON object of options of send, such as {"priority": 5}'
            using errcode = '22023';
    end if;
    if tg_op = 'INSERT' or new.timezone is distinct from old.timezone then
        if not exists (select from pg_catalog.pg_timezone_names z where z.name = new.timezone) then
            raise exception 'time zone % is not known', pg_catalog.quote_literal(left(new.timezone, 60))
                using errcode = '22023', hint = 'Use a name such as Europe/Berlin or UTC.';
        end if;
    end if;
    if tg_op = 'INSERT'
       or (new.cron, new.timezone, new.enabled) is distinct from (old.cron, old.timezone, old.enabled) then
        new.version := pg_catalog.nextval('queue_worker_data.schedule_versions');
        new.from_at := pg_catalog.date_trunc('second', pg_catalog.clock_timestamp());
        new.next_fire_at := null;
    end if;
    new.error := null;
    new.retry_at := null;
    new.updated_at := pg_catalog.clock_timestamp();
    -- No queue can have this name; schedulers wake up and look.
    perform pg_catalog.pg_notify('queue_worker', 'schedules changed');
    return new;
end $$;

create trigger check_schedule
    before insert or update of name, queue, cron, timezone, payload, options, misfire, misfire_limit, enabled
    on queue_worker_data.schedules for each row execute function queue_worker_data.check_schedule();

create function queue_worker_data.missing_schedule(name text) returns void
language plpgsql set search_path = '' as $$
begin
    raise exception 'schedule % does not exist', pg_catalog.quote_literal(left(name, 100))
        using errcode = '22023', hint = 'select name from queue_worker.schedules;';
end $$;

-- Sends the message of a schedule for one of its times.
create function queue_worker_data.send_scheduled(one queue_worker_data.schedules, fire_at timestamptz) returns bigint
language plpgsql set search_path = '' as $$
declare
    sent bigint;
begin
    select s.id into strict sent from queue_worker.send_batch(one.queue, pg_catalog.jsonb_build_array(
        one.options || pg_catalog.jsonb_build_object(
            'payload', one.payload,
            'headers', coalesce(one.options -> 'headers', '{}') || pg_catalog.jsonb_build_object(
                'schedule', one.name,
                'scheduled_for', pg_catalog.to_char(fire_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))))) s (id);
    return sent;
end $$;

-- Makes or changes a schedule; the same once more changes nothing. `enabled` null: as it was (a new one: true).
create function queue_worker.schedule(
    name text, queue text, cron text, payload jsonb, timezone text default 'UTC', misfire text default 'once',
    misfire_limit int default 100, options jsonb default null, enabled boolean default null)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one queue_worker_data.schedules;
    cause text;
    state text;
begin
    perform queue_worker_data.check_queue(schedule.queue);
    if exists (select from queue_worker_data.schedules s where s.name = schedule.name
               and (s.queue, s.cron, s.payload, s.timezone, s.misfire, s.misfire_limit, s.options)
                   = (schedule.queue, schedule.cron, schedule.payload, schedule.timezone, schedule.misfire,
                      schedule.misfire_limit, coalesce(schedule.options, '{}'))
               and s.enabled = coalesce(schedule.enabled, s.enabled)) then
        return;
    end if;
    insert into queue_worker_data.schedules as s
        (name, queue, cron, payload, timezone, misfire, misfire_limit, options, enabled)
        values (schedule.name, schedule.queue, schedule.cron, schedule.payload, schedule.timezone, schedule.misfire,
                schedule.misfire_limit, coalesce(schedule.options, '{}'), coalesce(schedule.enabled, true))
        on conflict (name) do update set queue = excluded.queue, cron = excluded.cron, payload = excluded.payload,
            timezone = excluded.timezone, misfire = excluded.misfire, misfire_limit = excluded.misfire_limit,
            options = excluded.options, enabled = coalesce(schedule.enabled, s.enabled)
        returning s.* into one;
    -- What `send` would refuse each time is refused now: sent for a try, and rolled back.
    begin
        perform queue_worker_data.send_scheduled(one, one.from_at);
        raise exception using errcode = 'QWOK0';
    exception
        when sqlstate 'QWOK0' then
            null;
        when others then
            cause := pg_catalog.regexp_replace(sqlerrm, '^messages\[0\]: ', '');
            state := sqlstate;
            raise exception 'schedule %: %', pg_catalog.quote_literal(schedule.name), cause using errcode = state;
    end;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('schedule', one.queue, pg_catalog.jsonb_build_object('name', one.name, 'cron', one.cron,
            'timezone', one.timezone, 'misfire', one.misfire, 'misfire_limit', one.misfire_limit,
            'options', one.options, 'enabled', one.enabled));
end $$;

-- Removes a schedule; false where there is none. What it has sent stays.
create function queue_worker.unschedule(name text) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    its_queue text;
begin
    delete from queue_worker_data.schedules s where s.name = unschedule.name returning s.queue into its_queue;
    if its_queue is null then
        return false;
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('unschedule', its_queue, pg_catalog.jsonb_build_object('name', unschedule.name));
    return true;
end $$;

create function queue_worker_data.enable_schedule(name text, enabled boolean) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    before queue_worker_data.schedules;
begin
    select s.* into before from queue_worker_data.schedules s where s.name = enable_schedule.name for update;
    if before.name is null then
        perform queue_worker_data.missing_schedule(enable_schedule.name);
    elsif before.enabled <> enable_schedule.enabled then
        update queue_worker_data.schedules s set enabled = enable_schedule.enabled where s.name = before.name;
        insert into queue_worker_data.audit (action, queue, detail)
            values (case when enable_schedule.enabled then 'resume_schedule' else 'pause_schedule' end, before.queue,
                    pg_catalog.jsonb_build_object('name', before.name));
    end if;
end $$;

-- Until resume_schedule a paused schedule fires nothing, and its times in between are not made up for.
create function queue_worker.pause_schedule(name text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.enable_schedule(pause_schedule.name, false);
$$;

create function queue_worker.resume_schedule(name text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.enable_schedule(resume_schedule.name, true);
$$;

-- Sends the message of a schedule now, beside its times and also while it is paused; returns its id.
create function queue_worker.run_schedule(name text) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    one queue_worker_data.schedules;
    sent bigint;
begin
    select s.* into one from queue_worker_data.schedules s where s.name = run_schedule.name;
    if one.name is null then
        perform queue_worker_data.missing_schedule(run_schedule.name);
    end if;
    sent := queue_worker_data.send_scheduled(one, pg_catalog.clock_timestamp());
    insert into queue_worker_data.audit (action, queue, detail)
        values ('run_schedule', one.queue, pg_catalog.jsonb_build_object('name', one.name, 'msg_id', sent));
    return sent;
end $$;


-- ---------------------------------------------------------------------------------------------------- fire

-- What a scheduler has to do: the schedules that are due (next_fire_at) or whose next time is not computed (null).
-- The last row has no name: the server's clock, and the seconds until something is due (null: there is nothing to do).
create function queue_worker.due_schedules(max_count int default 100)
returns table (name text, cron text, timezone text, misfire text, misfire_limit int, version bigint,
               from_at timestamptz, next_fire_at timestamptz, now timestamptz, wait_seconds double precision)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := pg_catalog.clock_timestamp();
begin
    return query
        select s.name, s.cron, s.timezone, s.misfire, s.misfire_limit, s.version, s.from_at, s.next_fire_at, read_at,
               0::double precision
        from queue_worker_data.schedules s
        where s.enabled and coalesce(s.retry_at, read_at) <= read_at and coalesce(s.next_fire_at, read_at) <= read_at
        order by s.next_fire_at nulls first, s.name limit due_schedules.max_count;
    return query
        select null::text, null::text, null::text, null::text, null::int, null::bigint, null::timestamptz,
               null::timestamptz, read_at,
               pg_catalog.date_part('epoch', min(least(greatest(s.next_fire_at, s.retry_at, read_at),
                   read_at + interval '1 day')) - read_at)
        from queue_worker_data.schedules s where s.enabled;
end $$;

-- Fires one time of a schedule and moves it on to next_at, in one transaction. `version` and `seen_at` (next_fire_at)
-- are what the caller computed from. fire_at null: moves on only. Outcomes: 'sent', 'repeated' (somebody has fired this
-- time), 'moved', and without any effect: 'stale' (edited, or moved on by somebody), 'locked', 'early'; 'error': the
-- message could not be sent, which is written on the schedule and tried again after 30 seconds.
create function queue_worker.fire(
    name text, version bigint, seen_at timestamptz, fire_at timestamptz, next_at timestamptz)
returns table (outcome text, queue text, msg_id bigint, detail text)
language plpgsql set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    one queue_worker_data.schedules;
begin
    -- SKIP LOCKED: an editor with an open transaction must not hold up the other schedules.
    select s.* into one from queue_worker_data.schedules s where s.name = fire.name for update skip locked;
    outcome := case when one.name is null then 'locked'
                    when one.version <> fire.version or not one.enabled or fire.next_at is null
                         or one.next_fire_at is distinct from fire.seen_at then 'stale'
                    when fire.fire_at > pg_catalog.clock_timestamp() then 'early'
                    else 'moved' end;
    queue := one.queue;
    if outcome = 'moved' and fire.fire_at is not null then
        begin
            insert into queue_worker_data.fires (schedule, fire_at, queue)
                values (one.name, fire.fire_at, one.queue) on conflict do nothing;
            outcome := 'repeated';
            if found then
                outcome := 'sent';
                msg_id := queue_worker_data.send_scheduled(one, fire.fire_at);
                update queue_worker_data.fires f set msg_id = fire.msg_id
                    where f.schedule = one.name and f.fire_at = fire.fire_at;
            end if;
        exception when others then
            outcome := 'error';
            msg_id := null;
            detail := pg_catalog.left(pg_catalog.regexp_replace(sqlerrm, '^messages\[0\]: ', ''), 1000);
            update queue_worker_data.schedules s set error = detail,
                retry_at = pg_catalog.clock_timestamp() + interval '30 seconds' where s.name = one.name;
        end;
    end if;
    if outcome in ('moved', 'sent', 'repeated') then
        update queue_worker_data.schedules s set next_fire_at = fire.next_at, error = null, retry_at = null,
                last_fire_at = case when outcome = 'sent' then fire.fire_at else s.last_fire_at end,
                last_msg_id = case when outcome = 'sent' then msg_id else s.last_msg_id end
            where s.name = one.name;
    end if;
    return next;
end $$;

-- Writes down why the times of a schedule cannot be computed, and lets it rest for five minutes or until it is edited.
create function queue_worker.fail_schedule(name text, version bigint, error text) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    update queue_worker_data.schedules s set error = pg_catalog.left(fail_schedule.error, 1000),
            retry_at = pg_catalog.clock_timestamp() + interval '5 minutes'
        where s.ctid = any (array(select x.ctid from queue_worker_data.schedules x
            where x.name = fail_schedule.name and x.version = fail_schedule.version for update skip locked));
    return found;
end $$;


-- ---------------------------------------------------------------------------------------------------- look, prune

create view queue_worker.schedules with (security_invoker = true) as
    select name, queue, cron, timezone, misfire, payload, options, enabled, last_fire_at, next_fire_at, last_msg_id,
           error, updated_at, misfire_limit, from_at
    from queue_worker_data.schedules;

create function queue_worker.list_schedules() returns setof queue_worker.schedules
language sql stable set search_path = '' as $$
    select * from queue_worker.schedules s order by s.name;
$$;

-- Deletes fired times older than 35 days, at most max_count; returns how many.
create function queue_worker_data.prune_fires(max_count int) returns bigint
language plpgsql set search_path = '' as $$
declare
    gone bigint;
begin
    delete from queue_worker_data.fires f where f.ctid = any (array(
        select x.ctid from queue_worker_data.fires x
        where x.fired_at < pg_catalog.clock_timestamp() - interval '35 days'
        order by x.fired_at limit prune_fires.max_count for update skip locked));
    get diagnostics gone = row_count;
    return gone;
end $$;

call queue_worker_data.lock_down();
