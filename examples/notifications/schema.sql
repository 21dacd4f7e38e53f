create table if not exists public.delivered (
    id       bigint generated always as identity primary key,
    queue    text not null,
    msg_id   bigint not null,
    message  text not null,
    began_at timestamptz not null,
    done_at  timestamptz not null default clock_timestamp()
);
create table if not exists public.reports (
    id         bigint generated always as identity primary key,
    made_at    timestamptz not null default clock_timestamp(),
    deliveries bigint not null
);
