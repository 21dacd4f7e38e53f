-- The demo's own side of reports: a function that gives the rows, and a table whose trigger orders a report.
-- Copy it for your own reports, and name the function in QUEUE_WORKER_REPORTS_ALLOWED=payments=public.payments_report.

-- A report function takes one jsonb argument and returns a table; here {"currency": "EUR"} narrows it down.
create or replace function public.payments_report(params jsonb)
returns table (payment bigint, description text, account text, amount numeric, currency text, status text)
language sql stable set search_path = '' as $$
    select p.id, p.description, p.account, pg_catalog.round(p.amount_minor / 100.0, 2), p.currency, p.status
    from public.payments p
    where params ->> 'currency' is null or p.currency = params ->> 'currency'
    order by p.id;
$$;

create table if not exists public.report_orders (
    id         bigint generated always as identity primary key,
    report     text not null,
    title      text not null,
    formats    text[] not null default '{csv}',
    recipient  text not null,
    subject    text not null,
    created_at timestamptz not null default now()
);
alter table public.report_orders enable row level security;

-- The row says what is wanted, the message that the trigger sends says it in the words of the reports processor.
create or replace function public.order_report() returns trigger
language plpgsql set search_path = '' as $$
begin
    perform queue_worker.send('reports', pg_catalog.jsonb_build_object(
        'report', new.report, 'title', new.title, 'formats', new.formats,
        'key', new.report || '-' || new.id,
        'email', pg_catalog.jsonb_build_object('to', new.recipient, 'subject', new.subject)));
    return null;
end $$;

create or replace trigger report_orders_enqueue after insert on public.report_orders
    for each row execute function public.order_report();
