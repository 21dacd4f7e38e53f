-- The tables of the example: what the tasks of the catalogue read and write.
create schema typed_tasks;

create table typed_tasks.events (
    event_id bigint generated always as identity primary key,
    name     text not null
);

create table typed_tasks.dispatchers (
    dispatcher_id bigint generated always as identity primary key,
    event_name    text not null,
    recipient     text not null,
    delays        float[] not null  -- the operations of its runs: so many seconds each
);

create table typed_tasks.runs (
    run_id        bigint generated always as identity primary key,
    dispatcher_id bigint not null references typed_tasks.dispatchers,
    event_id      bigint references typed_tasks.events,
    state         text not null default 'pending'
);

create table typed_tasks.operations (
    operation_id bigint generated always as identity primary key,
    run_id       bigint references typed_tasks.runs,
    seconds      float not null default 0,
    state        text not null default 'pending',
    started_at   timestamptz,
    ended_at     timestamptz
);

create table typed_tasks.mails (
    mail_id   bigint generated always as identity primary key,
    recipient text not null,
    subject   text not null
);

create table typed_tasks.endpoints (
    endpoint_id bigint generated always as identity primary key,
    url         text not null,
    jobs        jsonb,
    indexed_at  timestamptz
);

create table typed_tasks.errors (
    queue   text not null,
    msg_id  bigint not null,
    attempt int not null,
    kind    text,
    error   text not null,
    panic   boolean not null
);

-- What the app's error handler calls.
create function typed_tasks.note_error(queue text, msg_id bigint, attempt int, kind text, error text, panic boolean)
returns void language sql as $$
    insert into typed_tasks.errors values (queue, msg_id, attempt, kind, error, panic);
$$;
