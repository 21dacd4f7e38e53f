-- min_worker: 0.1.0
-- Payments: the ledger of charges, and the sandbox provider that moves no money.

-- One row per logical payment. The key is the idempotency key that the provider sees on every attempt.
-- reserved: an attempt is under way. unknown: an attempt ended without a clear answer; ask the provider before
-- anything else. succeeded and failed are final.
create table queue_worker_data.payment_ledger (
    key          text primary key check (length(key) between 1 and 500),
    payment_id   text not null,
    provider     text not null,
    amount_minor bigint not null check (amount_minor > 0),
    currency     text not null check (currency ~ '^[A-Z]{3}$'),
    account      text not null,
    fingerprint  text not null,
    state        text not null default 'reserved' check (state in ('reserved', 'succeeded', 'failed', 'unknown')),
    provider_id  text,
    error        text,
    attempts     int not null default 1,
    created_at   timestamptz not null default clock_timestamp(),
    updated_at   timestamptz not null default clock_timestamp()
);

-- What the sandbox "provider" remembers. open: called, nothing charged yet.
create table queue_worker_data.sandbox_charges (
    key          text primary key,
    id           text not null,
    amount_minor bigint not null,
    currency     text not null,
    account      text not null,
    status       text not null default 'open' check (status in ('open', 'succeeded', 'declined')),
    error        text,
    calls        int not null default 0,
    created_at   timestamptz not null default clock_timestamp()
);

alter table queue_worker_data.payment_ledger enable row level security;
alter table queue_worker_data.sandbox_charges enable row level security;


-- ---------------------------------------------------------------------------------------------------- ledger

-- Announces an attempt; to be committed before the provider is called. Returns one row:
-- state: what was known before: new | unknown | succeeded | failed. A leftover 'reserved' is 'unknown': the worker
--   that wrote it may have died after the charge, or may still be at it.
-- since, until: first and latest earlier attempt (Unix seconds; until is null on the first); age: seconds since the first.
-- Errors: QWP01 the key belongs to a payment with another id, provider, amount, currency or account.
create function queue_worker.payment_reserve(
    key text, payment_id text, provider text, amount_minor bigint, currency text, account text, fingerprint text)
returns table (state text, provider_id text, error text, attempts int,
               since double precision, until double precision, age double precision)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.payment_ledger;
begin
    insert into queue_worker_data.payment_ledger as l
        (key, payment_id, provider, amount_minor, currency, account, fingerprint)
    values (payment_reserve.key, payment_reserve.payment_id, payment_reserve.provider, payment_reserve.amount_minor,
            payment_reserve.currency, payment_reserve.account, payment_reserve.fingerprint)
    on conflict (key) do nothing
    returning l.* into entry;
    if found then
        return query select 'new'::text, null::text, null::text, 1,
            extract(epoch from entry.created_at)::double precision, null::double precision, 0::double precision;
        return;
    end if;
    select l.* into entry from queue_worker_data.payment_ledger l where l.key = payment_reserve.key for update;
    if not found then
        raise exception 'the ledger row was removed at the same time' using errcode = '40001';
    end if;
    if entry.fingerprint is distinct from payment_reserve.fingerprint then
        raise exception 'the payment key was used before for another payment, amount, currency, account or provider'
            using errcode = 'QWP01';
    end if;
    if entry.state in ('reserved', 'unknown') then
        update queue_worker_data.payment_ledger l
        set state = 'unknown', attempts = l.attempts + 1, updated_at = pg_catalog.clock_timestamp()
        where l.key = entry.key;
    end if;
    return query select
        case when entry.state = 'reserved' then 'unknown' else entry.state end,
        entry.provider_id, entry.error,
        entry.attempts + case when entry.state in ('reserved', 'unknown') then 1 else 0 end,
        extract(epoch from entry.created_at)::double precision,
        extract(epoch from entry.updated_at)::double precision,
        extract(epoch from pg_catalog.clock_timestamp() - entry.created_at)::double precision;
end $$;

-- Records that the outcome of the latest attempt is not known; final rows stay as they are. Returns the state.
create function queue_worker.payment_unknown(key text, error text) returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    update queue_worker_data.payment_ledger l
    set state = 'unknown', error = payment_unknown.error, updated_at = pg_catalog.clock_timestamp()
    where l.key = payment_unknown.key and l.state in ('reserved', 'unknown');
    return (select l.state from queue_worker_data.payment_ledger l where l.key = payment_unknown.key);
end $$;

-- Records the outcome: state is succeeded or failed. Repeating it is harmless. The worker calls it in the transaction
-- that also tells the user's table and settles the message; a person calls it to resolve an 'unknown' payment by hand,
-- then redrives the message.
-- Errors: QWP02 no such key, QWP03 the opposite outcome is recorded already, 22023 another state.
create function queue_worker.payment_finish(key text, state text, provider_id text, error text) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    if payment_finish.state is null or payment_finish.state not in ('succeeded', 'failed') then
        raise exception 'state must be succeeded or failed' using errcode = '22023';
    end if;
    update queue_worker_data.payment_ledger l
    set state = payment_finish.state,
        provider_id = coalesce(payment_finish.provider_id, l.provider_id),
        error = payment_finish.error,
        updated_at = pg_catalog.clock_timestamp()
    where l.key = payment_finish.key and l.state in ('reserved', 'unknown', payment_finish.state);
    if found then
        return;
    end if;
    if exists (select from queue_worker_data.payment_ledger l where l.key = payment_finish.key) then
        raise exception 'the opposite outcome of this payment is recorded already' using errcode = 'QWP03';
    end if;
    raise exception 'no payment has this key' using errcode = 'QWP02';
end $$;


-- ---------------------------------------------------------------------------------------------------- sandbox

-- Charges in the sandbox, once per key. status: succeeded | declined | unavailable (nothing was charged) |
-- rate_limited (nothing was charged) | no_answer (charged, and the caller must behave as if the reply was lost).
-- The account steers it: declined, fails_twice, always_fails, rate_limited (the first time), timeout_after_charge
-- (the first time); any other account succeeds.
-- Errors: QWP01 the key was used with another amount, currency or account.
create function queue_worker.sandbox_charge(key text, amount_minor bigint, currency text, account text)
returns table (id text, status text, error text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.sandbox_charges;
    answer text;
begin
    insert into queue_worker_data.sandbox_charges (key, id, amount_minor, currency, account)
    values (sandbox_charge.key,
            'sandbox_' || left(pg_catalog.encode(
                pg_catalog.sha256(pg_catalog.convert_to(sandbox_charge.key, 'UTF8')), 'hex'), 24),
            sandbox_charge.amount_minor, sandbox_charge.currency, sandbox_charge.account)
    on conflict (key) do nothing;
    update queue_worker_data.sandbox_charges c set calls = c.calls + 1
    where c.key = sandbox_charge.key returning c.* into strict entry;
    if (entry.amount_minor, entry.currency, entry.account)
        is distinct from (sandbox_charge.amount_minor, sandbox_charge.currency, sandbox_charge.account) then
        raise exception 'the key was used before with other values' using errcode = 'QWP01';
    end if;
    answer := case
        when entry.status <> 'open' then entry.status
        when entry.account = 'declined' then 'declined'
        when entry.account = 'always_fails' or (entry.account = 'fails_twice' and entry.calls <= 2) then 'unavailable'
        when entry.account = 'rate_limited' and entry.calls = 1 then 'rate_limited'
        when entry.account = 'timeout_after_charge' then 'no_answer'
        else 'succeeded' end;
    if entry.status = 'open' and answer in ('succeeded', 'no_answer', 'declined') then
        update queue_worker_data.sandbox_charges c
        set status = case answer when 'declined' then 'declined' else 'succeeded' end,
            error = case answer when 'declined' then 'card_declined: the sandbox declined this account' end
        where c.key = entry.key returning c.* into strict entry;
    end if;
    return query select entry.id, answer, entry.error;
end $$;

-- Returns the sandbox's charge for a key, if there is an outcome: one row or none.
create function queue_worker.sandbox_find(key text)
returns table (id text, status text, error text, amount_minor bigint, currency text)
language sql stable set search_path = '' as $$
    select c.id, c.status, c.error, c.amount_minor, c.currency
    from queue_worker_data.sandbox_charges c
    where c.key = sandbox_find.key and c.status <> 'open';
$$;
