-- A clinic's tables as a Supabase project has them, and the trigger that queues the mail, the report and the payment of
-- a check-up. Run it after `queue-worker migrate`; it may run twice.

select queue_worker.create_queue(name) from unnest(array['email', 'reports', 'payments']) name;

create table if not exists public.profiles (
    id        uuid primary key default gen_random_uuid(),  -- on Supabase: references auth.users (id)
    full_name text not null,
    email     text not null
);

-- The price is in minor units (cents). `account` is what the payment provider knows the customer by.
create table if not exists public.check_ups (
    id             bigint generated always as identity primary key,
    user_id        uuid not null references public.profiles (id),
    email          text not null,
    title          text not null,
    status         text not null default 'planned' check (status in ('planned', 'running', 'finished')),
    price_minor    bigint not null check (price_minor > 0),
    currency       text not null default 'EUR',
    account        text not null,
    finished_at    timestamptz,
    payment_status text not null default 'open',
    payment_id     text,
    payment_error  text
);
create index if not exists check_ups_user_idx on public.check_ups (user_id);

create table if not exists public.check_up_values (
    check_up_id bigint not null references public.check_ups (id),
    name        text not null,
    value       numeric not null,
    unit        text not null,
    normal      text not null,
    primary key (check_up_id, name)
);

-- Nobody but the owner of the tables sees a row until a policy says so, as
--   create policy own on public.check_ups for select to authenticated using (user_id = auth.uid());
alter table public.profiles enable row level security;
alter table public.check_ups enable row level security;
alter table public.check_up_values enable row level security;

-- Functions stand in a schema that Supabase's API does not expose.
create schema if not exists clinic;

-- Runs in the transaction of the update: the three messages are there when it commits, and none of them if it does not.
-- Its own rights are those of its owner, so that whoever may finish a check-up needs none on the queues.
create or replace function clinic.check_up_finished() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    perform queue_worker.send('email', pg_catalog.jsonb_build_object(
        'to', new.email,
        'subject', 'Ваш чекап завершен',
        'text', pg_catalog.format(E'Здравствуйте!\n\nВаш чекап «%s» завершен. Результаты — в личном кабинете.\n', new.title),
        'key', 'check_up:' || new.id || ':finished'));
    perform queue_worker.send('reports', pg_catalog.jsonb_build_object(
        'report', 'check_up',
        'title', 'Чекап «' || new.title || '»',
        'params', pg_catalog.jsonb_build_object('check_up', new.id),
        'formats', pg_catalog.jsonb_build_array('csv', 'html'),
        'key', 'check_ups/' || new.id));
    perform queue_worker.send('payments', pg_catalog.jsonb_build_object('id', new.id));
    return null;
end $$;
revoke all on function clinic.check_up_finished() from public;

-- `when` keeps a second "finished" from queueing anything. A check-up that is opened again and finished again queues all
-- three once more; the keys of mail and payment keep it from being mailed or charged twice, and the report is replaced.
create or replace trigger check_up_finished after update of status on public.check_ups
    for each row when (new.status = 'finished' and old.status <> 'finished')
    execute function clinic.check_up_finished();

-- The rows of the report {"report": "check_up", "params": {"check_up": 7}}.
create or replace function clinic.check_up_report(params jsonb)
returns table ("Показатель" text, "Значение" numeric, "Единица" text, "Норма" text)
language sql stable set search_path = '' as $$
    select v.name, v.value, v.unit, v.normal from public.check_up_values v
    where v.check_up_id = (params ->> 'check_up')::bigint order by v.name;
$$;

-- What to charge, whatever the status: the ledger of payments makes sure that one key is charged once.
create or replace function clinic.payment_source(id text)
returns table (amount_minor bigint, currency text, account text, key text)
language sql stable set search_path = '' as $$
    select c.price_minor, c.currency, c.account, 'check_up:' || c.id || ':charge'
    from public.check_ups c
    where c.id = case when payment_source.id ~ '^[0-9]{1,18}$' then payment_source.id::bigint end;
$$;

-- What became of it, in the transaction that ends the message. It leaves `status` alone, so that no trigger fires.
create or replace function clinic.payment_result(id text, status text, provider_id text, error text) returns void
language sql set search_path = '' as $$
    update public.check_ups c
    set payment_status = payment_result.status, payment_id = payment_result.provider_id,
        payment_error = payment_result.error
    where c.id = payment_result.id::bigint;
$$;

-- Over REST a worker calls functions by name, those that are allowed.
select queue_worker.allow_function(name)
from unnest(array['clinic.check_up_report', 'clinic.payment_source', 'clinic.payment_result']) name;
