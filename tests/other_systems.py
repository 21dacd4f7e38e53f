"""Tables of other job systems, by hand: only the columns that a move of jobs needs, with the names, types and defaults
that their own migrations give them, and a few jobs in each state."""

from __future__ import annotations

PGBOSS = """
create schema pgboss;
create type pgboss.job_state as enum ('created', 'retry', 'active', 'completed', 'cancelled', 'failed');
create table pgboss.schedule (
    name text, key text not null default '', cron text not null, timezone text, data jsonb, options jsonb,
    primary key (name, key));
create table pgboss.job (
    id uuid not null default gen_random_uuid(), name text not null, priority int not null default 0, data jsonb,
    state pgboss.job_state not null default 'created', retry_limit int not null default 2,
    retry_count int not null default 0, expire_seconds int not null default 900, singleton_key text, policy text,
    start_after timestamptz not null default now(), started_on timestamptz, completed_on timestamptz,
    blocked boolean not null default false, blocking boolean not null default false,
    primary key (name, id)) partition by list (name);
create table pgboss.job_common partition of pgboss.job default;
insert into pgboss.job (name, data, state, start_after, priority, retry_count, blocked) values
    ('email-welcome', '{"user_id": 1}', 'created', now() + interval '5 minutes', 500, 0, false),
    ('email-welcome', '{"user_id": 2}', 'retry', now() + interval '10 minutes', -3, 1, false),
    ('email-welcome', null, 'created', now() + interval '1 day', 0, 0, false),
    ('email-welcome', '{"user_id": 4}', 'created', now() - interval '1 second', 0, 0, false),
    ('email-welcome', '{"user_id": 5}', 'active', now() + interval '1 hour', 0, 0, false),
    ('email-welcome', '{"user_id": 6}', 'created', now() + interval '1 hour', 0, 0, true),
    ('email-welcome', '{"user_id": 7}', 'completed', now() + interval '1 hour', 0, 0, false),
    ('another', '{"user_id": 8}', 'created', now() + interval '1 hour', 0, 0, false);
update pgboss.job set started_on = now() where state in ('retry', 'active');
insert into pgboss.job (name, data, start_after, blocking) values
    ('email-welcome', '{"user_id": 9}', now() + interval '1 hour', true);
insert into pgboss.schedule (name, key, cron, timezone, data) values
    ('email-welcome', '', '0 3 * * *', null, null), ('email-welcome', 'eu', '*/5 * * * *', 'Europe/Berlin', '{"a": 1}'),
    ('another', '', '* * * * *', null, null);
"""
"""pg-boss, schema 37. Jobs are partitioned by queue; `started_on` is set by the first run."""

GRAPHILE = """
create schema graphile_worker;
create table graphile_worker._private_tasks (id int primary key, identifier text not null unique);
create table graphile_worker._private_jobs (
    id bigint primary key generated always as identity, job_queue_id int, task_id int not null,
    payload json not null default '{}', priority smallint not null default 0, run_at timestamptz not null default now(),
    attempts smallint not null default 0, max_attempts smallint not null default 25, last_error text, key text unique,
    locked_at timestamptz, locked_by text);
create view graphile_worker.jobs as
    select j.id, null::text as queue_name, t.identifier as task_identifier, j.priority, j.run_at, j.attempts,
           j.max_attempts, j.last_error, j.key, j.locked_at, j.locked_by
    from graphile_worker._private_jobs j join graphile_worker._private_tasks t on t.id = j.task_id;
create function graphile_worker.permanently_fail_jobs(job_ids bigint[], error_message text default null)
returns setof graphile_worker._private_jobs language sql as $$
    update graphile_worker._private_jobs set attempts = max_attempts, last_error = error_message
    where id = any (job_ids) and locked_at is null returning *; $$;
create function graphile_worker.reschedule_jobs(
    job_ids bigint[], run_at timestamptz default null, priority int default null, attempts int default null,
    max_attempts int default null)
returns setof graphile_worker._private_jobs language sql as $$
    update graphile_worker._private_jobs j
    set run_at = coalesce(reschedule_jobs.run_at, j.run_at), attempts = coalesce(reschedule_jobs.attempts, j.attempts)
    where id = any (job_ids) and locked_at is null returning *; $$;
insert into graphile_worker._private_tasks values (1, 'send_email'), (2, 'another');
insert into graphile_worker._private_jobs (task_id, payload, run_at, priority, attempts, key, locked_at) values
    (1, '{"to": "a"}', now() + interval '5 minutes', -10, 0, 'a', null),
    (1, '[{"to": "b"}, {"to": "c"}]', now() + interval '10 minutes', 0, 3, null, null),
    (1, '{"to": "d"}', now() - interval '1 second', 0, 0, 'd', null),
    (1, '{"to": "e"}', now() + interval '1 hour', 0, 1, null, now()),
    (1, '{"to": "f"}', now() + interval '1 hour', 0, 25, null, null),
    (2, '{"to": "g"}', now() + interval '1 hour', 0, 0, null, null);
"""
"""Graphile Worker 0.17: its view `jobs` shows no payload, and two of its functions for administrators."""

RIVER = """
create type river_job_state as enum
    ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled');
create table river_job (
    id bigserial primary key, state river_job_state not null default 'available', attempt smallint not null default 0,
    max_attempts smallint not null default 25, finalized_at timestamptz,
    scheduled_at timestamptz not null default now(),
    priority smallint not null default 1 check (priority between 1 and 4), args jsonb not null, kind text not null,
    metadata jsonb not null default '{}', queue text not null default 'default',
    check ((finalized_at is not null) = (state in ('cancelled', 'completed', 'discarded'))));
insert into river_job (kind, args, state, scheduled_at, priority, attempt, finalized_at) values
    ('welcome', '{"user_id": 1}', 'scheduled', now() + interval '5 minutes', 1, 0, null),
    ('welcome', '{"user_id": 2}', 'retryable', now() + interval '10 minutes', 4, 3, null),
    ('welcome', '{"user_id": 3}', 'available', now(), 1, 0, null),
    ('welcome', '{"user_id": 4}', 'running', now(), 1, 1, null),
    ('welcome', '{"user_id": 5}', 'discarded', now() + interval '1 hour', 1, 25, now()),
    ('another', '{"user_id": 6}', 'scheduled', now() + interval '1 hour', 1, 0, null);
"""
"""River, migration 7."""
