-- min_worker: 0.1.0
-- The ledger of outside calls: `once(key, fn)`. See docs/producing.md.

-- reserved: somebody is about to make the call, is at it, or died over it. unknown: nobody knows whether it took place.
-- value: what the call returned. request_hash: of its arguments. owner, until: who reserved it, and how long others stand
-- back because the call may be under way.
create table queue_worker_data.once (
    key          text primary key check (pg_catalog.length(key) between 1 and 500),
    state        text not null default 'reserved' check (state in ('reserved', 'done', 'failed', 'unknown')),
    value        jsonb,
    error        text,
    request_hash text not null,
    owner        text not null,
    until        timestamptz not null,
    attempts     int not null default 1,
    at           timestamptz not null default pg_catalog.clock_timestamp()
);
create index once_at_idx on queue_worker_data.once (at);
alter table queue_worker_data.once enable row level security;

-- Announces a call; to be committed before it is made. Answers what was known before: 'new' | 'failed' (call now),
-- 'done' (value is what it returned: do not call), 'busy' (another owner is at it: come again after busy_seconds),
-- 'unknown' (call again only with `again`, under the same key). A reservation that its own owner finds, or that others
-- find after its time, is 'unknown': whoever wrote it may have died after the call.
-- Errors: QWO01 the key was used with other arguments.
create function queue_worker.once_reserve(
    key text, request_hash text, owner text, hold_seconds double precision, again boolean default false)
returns table (state text, value jsonb, error text, attempts int, busy_seconds double precision)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.once;
    was text;
    read_at constant timestamptz := pg_catalog.clock_timestamp();
    hold constant interval := pg_catalog.make_interval(secs => least(greatest(hold_seconds, 0), 31536000));
begin
    if once_reserve.key is null or pg_catalog.length(once_reserve.key) not between 1 and 500 then
        raise exception 'key must have 1 to 500 characters' using errcode = '22023';
    end if;
    insert into queue_worker_data.once as o (key, request_hash, owner, until)
        values (once_reserve.key, once_reserve.request_hash, once_reserve.owner, read_at + hold)
        on conflict (key) do nothing
        returning o.* into entry;
    if found then
        return query select 'new'::text, null::jsonb, null::text, 1, 0::double precision;
        return;
    end if;
    select o.* into entry from queue_worker_data.once o where o.key = once_reserve.key for update;
    if not found then
        raise exception 'the ledger row was removed at the same time' using errcode = '40001';
    end if;
    if entry.request_hash <> once_reserve.request_hash then
        raise exception 'the key was used before with other arguments' using errcode = 'QWO01';
    end if;
    was := case when entry.state <> 'reserved' then entry.state
                when entry.owner <> once_reserve.owner and entry.until > read_at then 'busy'
                else 'unknown' end;
    if was = 'failed' or was = 'unknown' and once_reserve.again then
        update queue_worker_data.once o
            set state = 'reserved', owner = once_reserve.owner, until = read_at + hold, attempts = o.attempts + 1,
                at = read_at
            where o.key = entry.key
            returning o.attempts into entry.attempts;
    elsif was = 'unknown' and entry.state = 'reserved' then
        update queue_worker_data.once o set state = 'unknown' where o.key = entry.key;
    end if;
    return query select was, entry.value, entry.error, entry.attempts,
        case when was = 'busy' then extract(epoch from entry.until - read_at)::double precision else 0 end;
end $$;

-- Records how a call ended: done (with what it returned), failed (it did not take place: call again) or unknown. A call
-- that is done stays done. A person resolves an unknown one with it, then redrives the message. Returns the state.
-- Errors: 22023 no such key, or another state.
create function queue_worker.once_finish(key text, state text, value jsonb default null, error text default null)
returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    now_state text;
begin
    if once_finish.state is null or once_finish.state not in ('done', 'failed', 'unknown') then
        raise exception 'state must be done, failed or unknown' using errcode = '22023';
    end if;
    update queue_worker_data.once o
        set state = once_finish.state, error = once_finish.error, at = pg_catalog.clock_timestamp(),
            value = case when once_finish.state = 'done' then once_finish.value end
        where o.key = once_finish.key and o.state <> 'done';
    select o.state into now_state from queue_worker_data.once o where o.key = once_finish.key;
    if now_state is null then
        raise exception 'no such key' using errcode = '22023';
    end if;
    return now_state;
end $$;

-- Deletes keys whose call ended long ago, at most max_count; returns how many. Open ones stay for a person.
create function queue_worker.prune_once(older_seconds double precision, max_count int default 5000) returns bigint
language sql set search_path = '' as $$
    with gone as (
        delete from queue_worker_data.once o where o.ctid = any (array(
            select x.ctid from queue_worker_data.once x
            where x.at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => older_seconds)
              and x.state in ('done', 'failed')
            order by x.at limit max_count for update skip locked))
        returning 1)
    select count(*) from gone;
$$;

call queue_worker_data.lock_down();
