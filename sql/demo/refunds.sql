-- Captures and refunds beside the demo's payments (see payments.sql): a table of their own, and the two functions of
-- the same names once more, with the action. Copy it for your own table.

create table if not exists public.payment_actions (
    id           bigint generated always as identity primary key,
    payment_id   bigint not null references public.payments (id),
    action       text not null check (action in ('capture', 'refund')),
    amount_minor bigint not null,
    status       text not null default 'pending',
    provider_id  text,
    error        text,
    created_at   timestamptz not null default now()
);
create index if not exists payment_actions_payment_idx on public.payment_actions (payment_id);
alter table public.payment_actions enable row level security;

-- 'authorize' reserves the money of a payment instead of charging it. payment_key: which payment to capture or refund.
create or replace function public.payment_source(id text, action text)
returns table (amount_minor bigint, currency text, account text, key text, payment_key text)
language sql stable set search_path = '' as $$
    select p.amount_minor, p.currency, p.account, 'payment:' || p.id || ':charge', null
    from public.payments p
    where payment_source.action = 'authorize'
      and p.id = case when payment_source.id ~ '^[0-9]{1,18}$' then payment_source.id::bigint end
    union all
    select a.amount_minor, p.currency, null, 'payment_action:' || a.id, 'payment:' || p.id || ':charge'
    from public.payment_actions a join public.payments p on p.id = a.payment_id
    where a.action = payment_source.action
      and a.id = case when payment_source.id ~ '^[0-9]{1,18}$' then payment_source.id::bigint end;
$$;

create or replace function public.payment_result(
    id text, status text, provider_id text, error text, action text) returns void
language sql set search_path = '' as $$
    update public.payments p
    set status = case payment_result.status when 'succeeded' then 'authorized' else payment_result.status end,
        provider_id = payment_result.provider_id, error = payment_result.error
    where payment_result.action = 'authorize' and p.id = payment_result.id::bigint;
    update public.payment_actions a
    set status = payment_result.status, provider_id = payment_result.provider_id, error = payment_result.error
    where a.action = payment_result.action and a.id = payment_result.id::bigint;
$$;

create or replace function public.send_payment_action() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    perform queue_worker.send('payments', pg_catalog.jsonb_build_object('id', new.id, 'action', new.action));
    return null;
end $$;
revoke all on function public.send_payment_action() from public;

create or replace trigger payment_actions_enqueue after insert on public.payment_actions
    for each row execute function public.send_payment_action();
