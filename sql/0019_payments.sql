-- min_worker: 0.1.0
-- Payments: authorizations, captures and refunds beside charges; what a webhook or a person settles.

-- action: what the row did. payment_key: for a capture or refund, the key of the payment that it belongs to.
-- msg_id: the message that tried it last. provider_key: the key as the provider sees it, where it cannot carry ours.
alter table queue_worker_data.payment_ledger
    add column action       text not null default 'charge'
        check (action in ('charge', 'authorize', 'capture', 'refund')),
    add column payment_key  text,
    add column msg_id       bigint,
    add column provider_key text;

-- The same rule as stripe_key() in payment_stripe.py.
create function queue_worker_data.provider_key(key text) returns text
language sql stable set search_path = '' as $$
    select case when provider_key.key !~ '^[!-~]{1,255}$' then 'sha256_' || pg_catalog.encode(
        pg_catalog.sha256(pg_catalog.convert_to(provider_key.key, 'UTF8')), 'hex') end;
$$;
update queue_worker_data.payment_ledger l set provider_key = queue_worker_data.provider_key(l.key)
    where queue_worker_data.provider_key(l.key) is not null;
create unique index payment_ledger_provider_key_idx on queue_worker_data.payment_ledger (provider_key)
    where provider_key is not null;
create index payment_ledger_open_idx on queue_worker_data.payment_ledger (updated_at)
    where state in ('reserved', 'unknown');

alter table queue_worker_data.sandbox_charges
    add column action  text not null default 'charge',
    add column payment text;
create unique index sandbox_charges_id_idx on queue_worker_data.sandbox_charges (id);
create index sandbox_charges_payment_idx on queue_worker_data.sandbox_charges (payment) where payment is not null;


-- ---------------------------------------------------------------------------------------------------- ledger

-- As in 0005; action, payment_key and msg_id are new. A worker that does not know them goes on calling it.
drop function queue_worker.payment_reserve(text, text, text, bigint, text, text, text);
create function queue_worker.payment_reserve(
    key text, payment_id text, provider text, amount_minor bigint, currency text, account text, fingerprint text,
    action text default 'charge', payment_key text default null, msg_id bigint default null)
returns table (state text, provider_id text, error text, attempts int,
               since double precision, until double precision, age double precision)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.payment_ledger;
begin
    insert into queue_worker_data.payment_ledger as l
        (key, payment_id, provider, amount_minor, currency, account, fingerprint, action, payment_key, msg_id,
         provider_key)
    values (payment_reserve.key, payment_reserve.payment_id, payment_reserve.provider, payment_reserve.amount_minor,
            payment_reserve.currency, payment_reserve.account, payment_reserve.fingerprint, payment_reserve.action,
            payment_reserve.payment_key, payment_reserve.msg_id, queue_worker_data.provider_key(payment_reserve.key))
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
        set state = 'unknown', attempts = l.attempts + 1, updated_at = pg_catalog.clock_timestamp(),
            msg_id = coalesce(payment_reserve.msg_id, l.msg_id)
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

-- One payment by its key, or no row. since, until and age: as payment_reserve answers them.
create function queue_worker.payment(key text)
returns table (action text, state text, payment_id text, payment_key text, provider text, provider_id text,
               amount_minor bigint, currency text, account text, error text, attempts int, msg_id bigint,
               created_at timestamptz, updated_at timestamptz,
               since double precision, until double precision, age double precision)
language sql stable set search_path = '' as $$
    select l.action, l.state, l.payment_id, l.payment_key, l.provider, l.provider_id, l.amount_minor,
           l.currency, l.account, l.error, l.attempts, l.msg_id, l.created_at, l.updated_at,
           extract(epoch from l.created_at)::double precision, extract(epoch from l.updated_at)::double precision,
           extract(epoch from pg_catalog.clock_timestamp() - l.created_at)::double precision
    from queue_worker_data.payment_ledger l where l.key = payment.key;
$$;

-- The payments that were tried last, newest first; open_only: only those without an outcome, oldest first.
create function queue_worker.list_payments(open_only boolean default false, max_count int default 100)
returns table (key text, action text, state text, payment_id text, provider text, provider_id text,
               amount_minor bigint, currency text, error text, attempts int, updated_at timestamptz)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    if open_only then
        return query select l.key, l.action, l.state, l.payment_id, l.provider, l.provider_id, l.amount_minor,
                l.currency, l.error, l.attempts, l.updated_at
            from queue_worker_data.payment_ledger l where l.state in ('reserved', 'unknown')
            order by l.updated_at limit max_count;
    else
        return query select l.key, l.action, l.state, l.payment_id, l.provider, l.provider_id, l.amount_minor,
                l.currency, l.error, l.attempts, l.updated_at
            from queue_worker_data.payment_ledger l order by l.updated_at desc limit max_count;
    end if;
end $$;


-- ---------------------------------------------------------------------------------------------------- settle

-- Where the message of a payment is: waiting | delayed | running | dead | gone.
create function queue_worker_data.payment_message_state(payment_id text, msg_id bigint) returns text
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    found_state text;
begin
    if payment_message_state.msg_id is null or pg_catalog.to_regclass('pgmq.q_payments') is null then
        return 'gone';
    end if;
    -- The id of the payload too: a queue that was made anew counts its messages from 1.
    execute 'select queue_worker_data.state_of(''payments'', m.msg_id, m.read_ct, m.enqueued_at, m.vt)
             from pgmq.q_payments m where m.msg_id = $1 and m.message ->> ''id'' = $2'
        into found_state using payment_message_state.msg_id, payment_message_state.payment_id;
    if found_state is null and exists (
        select from queue_worker_data.dead_letters d where d.queue = 'payments'
            and d.msg_id = payment_message_state.msg_id and d.payload ->> 'id' = payment_message_state.payment_id) then
        found_state := 'dead';
    end if;
    return coalesce(found_state, 'gone');
end $$;

-- Ends the message of a payment whose outcome is known: its next run tells the user's table and is done. A message
-- that waits for its retry becomes due now, a dead letter is redriven, one that is gone is sent anew if send_anew.
-- Returns released | waiting | running | redriven | sent | gone.
create function queue_worker_data.end_payment_message(key text, send_anew boolean) returns text
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.payment_ledger;
    place text;
    moved bigint;
    letters bigint[];
begin
    select l.* into strict entry from queue_worker_data.payment_ledger l where l.key = end_payment_message.key;
    place := queue_worker_data.payment_message_state(entry.payment_id, entry.msg_id);
    if place = 'delayed' then
        -- SKIP LOCKED: whoever holds the row settles it in a transaction that then wants the ledger row we hold.
        execute 'update pgmq.q_payments m set vt = pg_catalog.clock_timestamp()
                 where m.ctid = any (array(
                     select x.ctid from pgmq.q_payments x
                     where x.msg_id = $1 and (x.read_ct = 0 or exists (
                         select from queue_worker_data.trouble t
                         where t.queue = ''payments'' and t.msg_id = x.msg_id and t.enqueued_at = x.enqueued_at
                           and t.settled_ct = x.read_ct))
                     for update skip locked))' using entry.msg_id;
        get diagnostics moved = row_count;
        if moved = 0 then
            return 'running';
        end if;
        perform pg_catalog.pg_notify('queue_worker', 'payments');
        return 'released';
    elsif place = 'dead' then
        select pg_catalog.array_agg(d.dead_id) into letters from queue_worker_data.dead_letters d
            where d.queue = 'payments' and d.msg_id = entry.msg_id and d.payload ->> 'id' = entry.payment_id;
        return case when queue_worker.redrive('payments', letters) > 0 then 'redriven' else 'running' end;
    elsif place = 'gone' and send_anew and pg_catalog.to_regclass('pgmq.q_payments') is not null then
        perform queue_worker.send('payments',
            pg_catalog.jsonb_build_object('id', entry.payment_id, 'action', entry.action));
        return 'sent';
    end if;
    return place;
end $$;

-- Records what a provider says of its own accord, as a webhook does. Safe to repeat and in any order: a final outcome
-- is never changed. outcome: settled | known (recorded before) | conflict (the opposite is recorded) | mismatch
-- (another amount or currency) | not_ours (no such key of this provider). message: see end_payment_message.
-- Errors: 22023 another state.
create function queue_worker.settle_payment(
    key text, state text, provider text, provider_id text, amount_minor bigint, currency text,
    error text default null)
returns table (outcome text, payment text, recorded text, message text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.payment_ledger;
    found_outcome text := 'settled';
    ended text;
begin
    if settle_payment.state is null or settle_payment.state not in ('succeeded', 'failed') then
        raise exception 'state must be succeeded or failed' using errcode = '22023';
    end if;
    select l.* into entry from queue_worker_data.payment_ledger l
        where (l.key = settle_payment.key or l.provider_key = settle_payment.key)
          and l.provider = settle_payment.provider
        for update;
    if not found then
        return query select 'not_ours'::text, settle_payment.key, null::text, null::text;
        return;
    end if;
    if entry.amount_minor is distinct from settle_payment.amount_minor
       or entry.currency is distinct from settle_payment.currency then
        found_outcome := 'mismatch';
    elsif entry.state = settle_payment.state then
        return query select 'known'::text, entry.key, entry.state, null::text;
        return;
    elsif entry.state in ('succeeded', 'failed') then
        found_outcome := 'conflict';
    else
        update queue_worker_data.payment_ledger l
        set state = settle_payment.state, provider_id = coalesce(settle_payment.provider_id, l.provider_id),
            error = settle_payment.error, updated_at = pg_catalog.clock_timestamp()
        where l.key = entry.key;
        ended := queue_worker_data.end_payment_message(entry.key, true);
    end if;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('settle_payment', 'payments', pg_catalog.jsonb_build_object(
            'key', entry.key, 'before', entry.state, 'state', settle_payment.state, 'outcome', found_outcome,
            'provider', settle_payment.provider, 'provider_id', settle_payment.provider_id, 'message', ended));
    return query select found_outcome,
        entry.key, case found_outcome when 'settled' then settle_payment.state else entry.state end, ended;
end $$;

-- A person's answer for a payment whose outcome is unknown: state is succeeded or failed; note says why. The message
-- that waits for it, or its dead letter, ends accordingly. Returns as settle_payment: settled | known.
-- Errors: QWP02 no such key, QWP03 the opposite outcome is recorded, 55006 a worker is at it, 22023 another state.
create function queue_worker.resolve_payment(
    key text, state text, provider_id text default null, note text default null)
returns table (outcome text, payment text, recorded text, message text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.payment_ledger;
    ended text;
begin
    if resolve_payment.state is null or resolve_payment.state not in ('succeeded', 'failed') then
        raise exception 'state must be succeeded or failed' using errcode = '22023';
    end if;
    select l.* into entry from queue_worker_data.payment_ledger l where l.key = resolve_payment.key for update;
    if not found then
        raise exception 'no payment has this key' using errcode = 'QWP02';
    end if;
    if entry.state in ('reserved', 'unknown') then
        if queue_worker_data.payment_message_state(entry.payment_id, entry.msg_id) = 'running' then
            raise exception 'a worker is at this payment right now; try again when its run has ended'
                using errcode = '55006';
        end if;
        update queue_worker_data.payment_ledger l
        set state = resolve_payment.state, provider_id = coalesce(resolve_payment.provider_id, l.provider_id),
            error = case resolve_payment.state when 'failed'
                then coalesce(resolve_payment.note, 'resolved by a person as failed') end,
            updated_at = pg_catalog.clock_timestamp()
        where l.key = entry.key;
    elsif entry.state <> resolve_payment.state then
        raise exception 'the opposite outcome of this payment is recorded already' using errcode = 'QWP03';
    end if;
    ended := queue_worker_data.end_payment_message(entry.key, entry.state in ('reserved', 'unknown'));
    insert into queue_worker_data.audit (action, queue, detail)
        values ('resolve_payment', 'payments', pg_catalog.jsonb_build_object(
            'key', entry.key, 'before', entry.state, 'state', resolve_payment.state,
            'provider_id', resolve_payment.provider_id, 'note', resolve_payment.note, 'message', ended));
    return query select case when entry.state = resolve_payment.state then 'known' else 'settled' end,
        entry.key, resolve_payment.state, ended;
end $$;


-- ---------------------------------------------------------------------------------------------------- sandbox

-- Why the sandbox refuses a capture or refund of a payment; null: it does not.
create function queue_worker_data.sandbox_refusal(
    key text, action text, amount_minor bigint, currency text, parent queue_worker_data.sandbox_charges)
returns text
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    captured bigint;
    refunded bigint;
begin
    if parent.id is null or parent.status <> 'succeeded' then
        return 'payment_not_found: the sandbox has no such payment';
    elsif parent.currency <> sandbox_refusal.currency then
        return 'currency_mismatch: the payment has another currency';
    end if;
    select pg_catalog.sum(c.amount_minor) filter (where c.action = 'capture'),
           coalesce(pg_catalog.sum(c.amount_minor) filter (where c.action = 'refund'), 0)
        into captured, refunded
        from queue_worker_data.sandbox_charges c
        where c.payment = parent.id and c.status = 'succeeded' and c.key <> sandbox_refusal.key;
    if sandbox_refusal.action = 'capture' then
        return case when parent.action <> 'authorize' or captured is not null
                        then 'already_captured: the payment has been captured'
                    when sandbox_refusal.amount_minor > parent.amount_minor
                        then 'amount_too_large: more than was authorized' end;
    end if;
    if parent.action = 'charge' then
        captured := parent.amount_minor;
    end if;
    return case when sandbox_refusal.amount_minor + refunded > coalesce(captured, 0)
        then pg_catalog.format('refund_too_large: %s is left to refund', coalesce(captured, 0) - refunded) end;
end $$;

-- Does one act in the sandbox, once per key; `payment` is the sandbox's id of the payment to capture or refund.
-- Answers as sandbox_charge. A capture or refund is steered by the account of its payment where that begins with the
-- action: refund_timeout_after_charge, capture_declined, ...
create function queue_worker.sandbox_act(
    key text, action text, amount_minor bigint, currency text, account text, payment text default null)
returns table (id text, status text, error text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    entry queue_worker_data.sandbox_charges;
    parent queue_worker_data.sandbox_charges;
    steer text;
    refusal text;
    answer text;
begin
    insert into queue_worker_data.sandbox_charges (key, id, action, payment, amount_minor, currency, account)
    values (sandbox_act.key,
            'sandbox_' || left(pg_catalog.encode(
                pg_catalog.sha256(pg_catalog.convert_to(sandbox_act.key, 'UTF8')), 'hex'), 24),
            sandbox_act.action, sandbox_act.payment, sandbox_act.amount_minor, sandbox_act.currency,
            sandbox_act.account)
    on conflict (key) do nothing;
    update queue_worker_data.sandbox_charges c set calls = c.calls + 1
    where c.key = sandbox_act.key returning c.* into strict entry;
    if (entry.action, entry.payment, entry.amount_minor, entry.currency, entry.account) is distinct from
       (sandbox_act.action, sandbox_act.payment, sandbox_act.amount_minor, sandbox_act.currency, sandbox_act.account)
    then
        raise exception 'the key was used before with other values' using errcode = 'QWP01';
    end if;
    steer := entry.account;
    if entry.action in ('capture', 'refund') then
        -- Locked, so that two refunds at once cannot both find the same money left.
        select c.* into parent from queue_worker_data.sandbox_charges c
            where c.id = entry.payment and c.action in ('charge', 'authorize') for update;
        steer := case when pg_catalog.starts_with(parent.account, entry.action || '_')
            then pg_catalog.substr(parent.account, pg_catalog.length(entry.action) + 2) end;
        refusal := queue_worker_data.sandbox_refusal(
            entry.key, entry.action, entry.amount_minor, entry.currency, parent);
    end if;
    if steer = 'declined' then
        refusal := coalesce(refusal, 'card_declined: the sandbox declined this account');
    end if;
    answer := case
        when entry.status <> 'open' then entry.status
        when refusal is not null then 'declined'
        when steer = 'always_fails' or (steer = 'fails_twice' and entry.calls <= 2) then 'unavailable'
        when steer = 'rate_limited' and entry.calls = 1 then 'rate_limited'
        when steer = 'timeout_after_charge' then 'no_answer'
        else 'succeeded' end;
    if entry.status = 'open' and answer in ('succeeded', 'no_answer', 'declined') then
        update queue_worker_data.sandbox_charges c
        set status = case answer when 'declined' then 'declined' else 'succeeded' end,
            error = case answer when 'declined' then refusal end
        where c.key = entry.key returning c.* into strict entry;
    end if;
    return query select entry.id, answer, entry.error;
end $$;

-- Charges in the sandbox, see 0005; for workers that do not know sandbox_act.
create or replace function queue_worker.sandbox_charge(key text, amount_minor bigint, currency text, account text)
returns table (id text, status text, error text)
language sql set search_path = '' as $$
    select a.id, a.status, a.error from queue_worker.sandbox_act(
        sandbox_charge.key, 'charge', sandbox_charge.amount_minor, sandbox_charge.currency, sandbox_charge.account) a;
$$;

call queue_worker_data.lock_down();
