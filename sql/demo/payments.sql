-- The demo's own side of payments: a table, the two functions that connect it, and the trigger that enqueues.
-- Copy it for your own table, and name the functions in QUEUE_WORKER_PAYMENTS_SOURCE and QUEUE_WORKER_PAYMENTS_RESULT.

create table if not exists public.payments (
    id           bigint generated always as identity primary key,
    amount_minor bigint not null,
    currency     text not null,
    account      text not null,
    description  text not null default '',
    status       text not null default 'pending',
    provider_id  text,
    error        text,
    created_at   timestamptz not null default now()
);
alter table public.payments enable row level security;

-- What to charge. Rows are returned whatever their status: a message that runs twice must find its row again, and
-- the ledger makes sure that it is charged once. The key names the business act, so it never changes.
create or replace function public.payment_source(id text)
returns table (amount_minor bigint, currency text, account text, key text)
language sql stable set search_path = '' as $$
    select p.amount_minor, p.currency, p.account, 'payment:' || p.id || ':charge'
    from public.payments p
    where p.id = case when payment_source.id ~ '^[0-9]{1,18}$' then payment_source.id::bigint end;
$$;

-- What became of it: status is succeeded or failed. Runs in the transaction that settles the message.
create or replace function public.payment_result(id text, status text, provider_id text, error text) returns void
language sql set search_path = '' as $$
    update public.payments p
    set status = payment_result.status, provider_id = payment_result.provider_id, error = payment_result.error
    where p.id = payment_result.id::bigint;
$$;

-- After insert only: payment_result updates the row, and must not enqueue it again.
create or replace trigger payments_enqueue after insert on public.payments
    for each row execute function queue_worker.send_row('payments');

-- Over REST a worker calls functions by name, those that are allowed.
select queue_worker.allow_function('public.payment_source'), queue_worker.allow_function('public.payment_result');
