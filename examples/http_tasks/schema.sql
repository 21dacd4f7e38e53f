create table if not exists public.documents (
    id      bigint generated always as identity primary key,
    queue   text not null,
    msg_id  bigint not null,
    name    text not null,
    text    text not null,
    process integer not null  -- the process that wrote it
);
