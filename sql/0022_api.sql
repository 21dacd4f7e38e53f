-- min_worker: 0.1.0
-- The exposed schema keeps thin functions with the caller's rights; what they do lies in queue_worker_data, which is never
-- exposed, and has the rights of the owner. So a role needs functions and no table. See docs/security.md.

do $$
declare
    moved text;
begin
    foreach moved in array array[
        'claim', 'settle', 'settle_claim', 'extend', 'hold', 'lost', 'release', 'resend_unsent', 'drop_queue',
        'pause', 'resume', 'purge', 'set_rate_limit', 'set_concurrency', 'limits', 'trip', 'close_breaker',
        'prune', 'prune_shared', 'message', 'messages', 'archived', 'cancel', 'complete', 'redrive',
        'discard', 'edit_dead', 'list_dead', 'list_queues', 'list_workers', 'list_audit', 'heartbeat',
        'sign_off', 'keep_result', 'result', 'report_progress', 'list_progress', 'prune_progress', 'schedule',
        'unschedule', 'run_schedule', 'pause_schedule', 'resume_schedule', 'list_schedules', 'due_schedules',
        'fire', 'fail_schedule', 'once_reserve', 'once_finish', 'prune_once', 'mail_reserve', 'mail_record',
        'mail_resolve', 'mail_prune', 'payment', 'payment_reserve', 'payment_finish', 'payment_unknown',
        'settle_payment', 'resolve_payment', 'list_payments', 'sandbox_act', 'sandbox_charge', 'sandbox_find',
        'purge_subject']
    loop
        execute pg_catalog.format('alter function queue_worker.%I set schema queue_worker_data', moved);
        execute pg_catalog.format('alter function queue_worker_data.%I security definer', moved);
    end loop;
    foreach moved in array array['queue_states', 'running_progress', 'diagnose_queues'] loop
        execute pg_catalog.format('alter function queue_worker_data.%I security definer', moved);
    end loop;
end $$;


-- ---------------------------------------------------------------------------------------------------- consume

create function queue_worker.claim(queue text, max_count int, lease_seconds double precision, suspects int default 0,
    max_lost int default 5, worker text default '', sleep boolean default false) returns setof queue_worker_data.turn
language sql set search_path = '' as $$
    select * from queue_worker_data.claim(claim.queue, claim.max_count, claim.lease_seconds, claim.suspects,
        claim.max_lost, claim.worker, claim.sleep);
$$;
create function queue_worker.settle(queue text, done_ids bigint[] default '{}', done_cts int[] default '{}', done_ats
    timestamptz[] default '{}', on_success text default 'archive', other_ids bigint[] default '{}', other_cts int[]
    default '{}', other_ats timestamptz[] default '{}', kinds text[] default '{}', delays double precision[] default
    '{}', reasons text[] default '{}', errors text[] default '{}', worker text default '')
returns setof queue_worker_data.turn
language sql set search_path = '' as $$
    select * from queue_worker_data.settle(settle.queue, settle.done_ids, settle.done_cts, settle.done_ats,
        settle.on_success, settle.other_ids, settle.other_cts, settle.other_ats, settle.kinds, settle.delays,
        settle.reasons, settle.errors, settle.worker);
$$;
create function queue_worker.settle_claim(queue text, done_ids bigint[], done_cts int[], done_ats timestamptz[],
    on_success text, other_ids bigint[], other_cts int[], other_ats timestamptz[], kinds text[], delays double
    precision[], reasons text[], errors text[], max_count int, lease_seconds double precision, suspects int, max_lost
    int, worker text, sleep boolean) returns setof queue_worker_data.turn
language sql set search_path = '' as $$
    select * from queue_worker_data.settle_claim(settle_claim.queue, settle_claim.done_ids, settle_claim.done_cts,
        settle_claim.done_ats, settle_claim.on_success, settle_claim.other_ids, settle_claim.other_cts,
        settle_claim.other_ats, settle_claim.kinds, settle_claim.delays, settle_claim.reasons,
        settle_claim.errors, settle_claim.max_count, settle_claim.lease_seconds, settle_claim.suspects,
        settle_claim.max_lost, settle_claim.worker, settle_claim.sleep);
$$;
create function queue_worker.extend(queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[],
    lease_seconds double precision) returns setof bigint
language sql set search_path = '' as $$
    select * from queue_worker_data.extend(extend.queue, extend.ids, extend.read_cts, extend.enqueued_ats,
        extend.lease_seconds);
$$;
create function queue_worker.hold(queue text, msg_id bigint, read_ct int, enqueued_at timestamptz) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.hold(hold.queue, hold.msg_id, hold.read_ct, hold.enqueued_at);
$$;
create function queue_worker.lost(queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[])
returns table (msg_id bigint, gone boolean)
language sql set search_path = '' as $$
    select * from queue_worker_data.lost(lost.queue, lost.ids, lost.read_cts, lost.enqueued_ats);
$$;
create function queue_worker.release(queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[],
    delay_seconds double precision default 0) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.release(release.queue, release.ids, release.read_cts, release.enqueued_ats,
        release.delay_seconds);
$$;


-- ---------------------------------------------------------------------------------------------------- send

create function queue_worker.resend_unsent(queue text, max_count int default 1000) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.resend_unsent(resend_unsent.queue, resend_unsent.max_count);
$$;


-- ---------------------------------------------------------------------------------------------------- operate: queues

create function queue_worker.drop_queue(queue text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.check_environment(drop_queue.queue);
    select queue_worker_data.drop_queue(drop_queue.queue);
$$;
create function queue_worker.pause(queue text, reason text default null) returns void
language sql set search_path = '' as $$
    select queue_worker_data.pause(pause.queue, pause.reason);
$$;
create function queue_worker.resume(queue text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.resume(resume.queue);
$$;
create function queue_worker.purge(queue text) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.purge(purge.queue);
$$;
create function queue_worker.set_rate_limit(queue text, count int, per_seconds int default 1) returns void
language sql set search_path = '' as $$
    select queue_worker_data.set_rate_limit(set_rate_limit.queue, set_rate_limit.count,
        set_rate_limit.per_seconds);
$$;
create function queue_worker.set_concurrency(queue text, fleet int default null, per_group int default null)
returns void
language sql set search_path = '' as $$
    select queue_worker_data.set_concurrency(set_concurrency.queue, set_concurrency.fleet,
        set_concurrency.per_group);
$$;
create function queue_worker.limits(queue text)
returns table (ordered boolean, rate_count int, rate_seconds int, fleet int, per_group int)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.limits(limits.queue);
$$;
create function queue_worker.trip(queue text, seconds double precision, probe_seconds double precision, reason text,
    worker text default '') returns void
language sql set search_path = '' as $$
    select queue_worker_data.trip(trip.queue, trip.seconds, trip.probe_seconds, trip.reason, trip.worker);
$$;
create function queue_worker.close_breaker(queue text, worker text default '') returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.close_breaker(close_breaker.queue, close_breaker.worker);
$$;
create function queue_worker.prune(queue text, archive_seconds double precision, max_count int default 5000,
    failure_seconds double precision default 2592000, dead_seconds double precision default null) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.prune(prune.queue, prune.archive_seconds, prune.max_count, prune.failure_seconds,
        prune.dead_seconds);
$$;
create function queue_worker.prune_shared(max_count int default 5000, audit_seconds double precision default 34560000,
    ledger_seconds double precision default 34560000) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.prune_shared(prune_shared.max_count, prune_shared.audit_seconds,
        prune_shared.ledger_seconds);
$$;


-- ---------------------------------------------------------------------------------------------------- operate: messages and dead letters

create function queue_worker.message(queue text, msg_id bigint) returns setof queue_worker_data.message_state
language sql stable set search_path = '' as $$
    select queue_worker_data.check_environment(message.queue);
    select * from queue_worker_data.message(message.queue, message.msg_id);
$$;
create function queue_worker.messages(queue text, max_count int default 100, state text default null, newest boolean
    default false, contains jsonb default null) returns setof queue_worker_data.live_message
language sql stable set search_path = '' as $$
    select queue_worker_data.check_environment(messages.queue);
    select * from queue_worker_data.messages(messages.queue, messages.max_count, messages.state, messages.newest,
        messages.contains);
$$;
create function queue_worker.archived(queue text, max_count int default 100, contains jsonb default null, since
    timestamptz default null)
returns table (msg_id bigint, archived_at timestamptz, enqueued_at timestamptz, payload jsonb, headers jsonb, state
    text)
language sql stable set search_path = '' as $$
    select queue_worker_data.check_environment(archived.queue);
    select * from queue_worker_data.archived(archived.queue, archived.max_count, archived.contains,
        archived.since);
$$;
create function queue_worker.cancel(queue text, msg_id bigint) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.cancel(cancel.queue, cancel.msg_id);
$$;
create function queue_worker.complete(queue text, msg_id bigint) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.complete(complete.queue, complete.msg_id);
$$;
create function queue_worker.redrive(queue text, dead_ids bigint[] default null, max_count int default null,
    per_second double precision default null) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.redrive(redrive.queue, redrive.dead_ids, redrive.max_count, redrive.per_second);
$$;
create function queue_worker.discard(queue text, dead_ids bigint[] default null) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.discard(discard.queue, discard.dead_ids);
$$;
create function queue_worker.edit_dead(queue text, dead_id bigint, payload jsonb) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.edit_dead(edit_dead.queue, edit_dead.dead_id, edit_dead.payload);
$$;
create function queue_worker.list_dead(queue text, dead_ids bigint[] default null, max_count int default 100)
returns setof queue_worker.dead_letters
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_dead(list_dead.queue, list_dead.dead_ids, list_dead.max_count);
$$;
create function queue_worker.list_queues() returns setof queue_worker.queues
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_queues();
$$;
create function queue_worker.list_workers() returns setof queue_worker.workers
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_workers();
$$;
create function queue_worker.list_audit(queue text default null, max_count int default 100)
returns setof queue_worker.audit
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_audit(list_audit.queue, list_audit.max_count);
$$;


-- ---------------------------------------------------------------------------------------------------- workers, results, progress

create function queue_worker.heartbeat(worker text, host text, pid int, version text, queues text[], slots int, busy
    int) returns void
language sql set search_path = '' as $$
    select queue_worker_data.heartbeat(heartbeat.worker, heartbeat.host, heartbeat.pid, heartbeat.version,
        heartbeat.queues, heartbeat.slots, heartbeat.busy);
$$;
create function queue_worker.sign_off(worker text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.sign_off(sign_off.worker);
$$;
create function queue_worker.keep_result(queue text, msg_id bigint, value jsonb) returns void
language sql set search_path = '' as $$
    select queue_worker_data.keep_result(keep_result.queue, keep_result.msg_id, keep_result.value);
$$;
create function queue_worker.result(queue text, msg_id bigint)
returns table (state text, value jsonb, reason text, error text)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.result(result.queue, result.msg_id);
$$;
create function queue_worker.report_progress(queues text[], ids bigint[], read_cts int[], enqueued_ats timestamptz[],
    dones double precision[], totals double precision[], notes text[]) returns void
language sql set search_path = '' as $$
    select queue_worker_data.report_progress(report_progress.queues, report_progress.ids,
        report_progress.read_cts, report_progress.enqueued_ats, report_progress.dones, report_progress.totals,
        report_progress.notes);
$$;
create function queue_worker.list_progress() returns setof queue_worker.progress
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_progress();
$$;
create function queue_worker.prune_progress(queue text, max_count int default 5000) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.prune_progress(prune_progress.queue, prune_progress.max_count);
$$;


-- ---------------------------------------------------------------------------------------------------- schedules

create function queue_worker.schedule(name text, queue text, cron text, payload jsonb, timezone text default 'UTC',
    misfire text default 'once', misfire_limit int default 100, options jsonb default null, enabled boolean default
    null) returns void
language sql set search_path = '' as $$
    select queue_worker_data.schedule(schedule.name, schedule.queue, schedule.cron, schedule.payload,
        schedule.timezone, schedule.misfire, schedule.misfire_limit, schedule.options, schedule.enabled);
$$;
create function queue_worker.unschedule(name text) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.unschedule(unschedule.name);
$$;
create function queue_worker.run_schedule(name text) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.run_schedule(run_schedule.name);
$$;
create function queue_worker.pause_schedule(name text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.pause_schedule(pause_schedule.name);
$$;
create function queue_worker.resume_schedule(name text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.resume_schedule(resume_schedule.name);
$$;
create function queue_worker.list_schedules() returns setof queue_worker.schedules
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_schedules();
$$;
create function queue_worker.due_schedules(max_count int default 100)
returns table (name text, cron text, timezone text, misfire text, misfire_limit int, version bigint, from_at
    timestamptz, next_fire_at timestamptz, now timestamptz, wait_seconds double precision)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.due_schedules(due_schedules.max_count);
$$;
create function queue_worker.fire(name text, version bigint, seen_at timestamptz, fire_at timestamptz, next_at
    timestamptz) returns table (outcome text, queue text, msg_id bigint, detail text)
language sql set search_path = '' as $$
    select * from queue_worker_data.fire(fire.name, fire.version, fire.seen_at, fire.fire_at, fire.next_at);
$$;
create function queue_worker.fail_schedule(name text, version bigint, error text) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.fail_schedule(fail_schedule.name, fail_schedule.version, fail_schedule.error);
$$;


-- ---------------------------------------------------------------------------------------------------- ledgers

create function queue_worker.once_reserve(key text, request_hash text, owner text, hold_seconds double precision,
    again boolean default false)
returns table (state text, value jsonb, error text, attempts int, busy_seconds double precision)
language sql set search_path = '' as $$
    select * from queue_worker_data.once_reserve(once_reserve.key, once_reserve.request_hash, once_reserve.owner,
        once_reserve.hold_seconds, once_reserve.again);
$$;
create function queue_worker.once_finish(key text, state text, value jsonb default null, error text default null)
returns text
language sql set search_path = '' as $$
    select queue_worker_data.once_finish(once_finish.key, once_finish.state, once_finish.value,
        once_finish.error);
$$;
create function queue_worker.prune_once(older_seconds double precision, max_count int default 5000) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.prune_once(prune_once.older_seconds, prune_once.max_count);
$$;
create function queue_worker.mail_reserve(key text, request_hash text, recipients text[], owner text default null)
returns table (recipient text, state text, reply text, first_seconds bigint, busy_seconds double precision)
language sql set search_path = '' as $$
    select * from queue_worker_data.mail_reserve(mail_reserve.key, mail_reserve.request_hash,
        mail_reserve.recipients, mail_reserve.owner);
$$;
create function queue_worker.mail_record(key text, results jsonb) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.mail_record(mail_record.key, mail_record.results);
$$;
create function queue_worker.mail_resolve(key text, state text, recipient text default null) returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.mail_resolve(mail_resolve.key, mail_resolve.state, mail_resolve.recipient);
$$;
create function queue_worker.mail_prune(older_than_seconds double precision, max_count int default 5000)
returns bigint
language sql set search_path = '' as $$
    select queue_worker_data.mail_prune(mail_prune.older_than_seconds, mail_prune.max_count);
$$;
create function queue_worker.payment(key text)
returns table (action text, state text, payment_id text, payment_key text, provider text, provider_id text,
    amount_minor bigint, currency text, account text, error text, attempts int, msg_id bigint, created_at timestamptz,
    updated_at timestamptz, since double precision, until double precision, age double precision)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.payment(payment.key);
$$;
create function queue_worker.payment_reserve(key text, payment_id text, provider text, amount_minor bigint, currency
    text, account text, fingerprint text, action text default 'charge', payment_key text default null, msg_id bigint
    default null)
returns table (state text, provider_id text, error text, attempts int, since double precision, until double precision,
    age double precision)
language sql set search_path = '' as $$
    select * from queue_worker_data.payment_reserve(payment_reserve.key, payment_reserve.payment_id,
        payment_reserve.provider, payment_reserve.amount_minor, payment_reserve.currency, payment_reserve.account,
        payment_reserve.fingerprint, payment_reserve.action, payment_reserve.payment_key, payment_reserve.msg_id);
$$;
create function queue_worker.payment_finish(key text, state text, provider_id text, error text) returns void
language sql set search_path = '' as $$
    select queue_worker_data.payment_finish(payment_finish.key, payment_finish.state, payment_finish.provider_id,
        payment_finish.error);
$$;
create function queue_worker.payment_unknown(key text, error text) returns text
language sql set search_path = '' as $$
    select queue_worker_data.payment_unknown(payment_unknown.key, payment_unknown.error);
$$;
create function queue_worker.settle_payment(key text, state text, provider text, provider_id text, amount_minor
    bigint, currency text, error text default null)
returns table (outcome text, payment text, recorded text, message text)
language sql set search_path = '' as $$
    select * from queue_worker_data.settle_payment(settle_payment.key, settle_payment.state,
        settle_payment.provider, settle_payment.provider_id, settle_payment.amount_minor, settle_payment.currency,
        settle_payment.error);
$$;
create function queue_worker.resolve_payment(key text, state text, provider_id text default null, note text default
    null) returns table (outcome text, payment text, recorded text, message text)
language sql set search_path = '' as $$
    select * from queue_worker_data.resolve_payment(resolve_payment.key, resolve_payment.state,
        resolve_payment.provider_id, resolve_payment.note);
$$;
create function queue_worker.list_payments(open_only boolean default false, max_count int default 100)
returns table (key text, action text, state text, payment_id text, provider text, provider_id text, amount_minor
    bigint, currency text, error text, attempts int, updated_at timestamptz)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_payments(list_payments.open_only, list_payments.max_count);
$$;
create function queue_worker.sandbox_act(key text, action text, amount_minor bigint, currency text, account text,
    payment text default null) returns table (id text, status text, error text)
language sql set search_path = '' as $$
    select * from queue_worker_data.sandbox_act(sandbox_act.key, sandbox_act.action, sandbox_act.amount_minor,
        sandbox_act.currency, sandbox_act.account, sandbox_act.payment);
$$;
create function queue_worker.sandbox_charge(key text, amount_minor bigint, currency text, account text)
returns table (id text, status text, error text)
language sql set search_path = '' as $$
    select * from queue_worker_data.sandbox_charge(sandbox_charge.key, sandbox_charge.amount_minor,
        sandbox_charge.currency, sandbox_charge.account);
$$;
create function queue_worker.sandbox_find(key text)
returns table (id text, status text, error text, amount_minor bigint, currency text)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.sandbox_find(sandbox_find.key);
$$;


-- ---------------------------------------------------------------------------------------------------- inside

-- What calls another function of ours does so inside: neither a wrapper nor a change of rights on the way.

-- See queue_worker.settle_claim. An error of the claim comes back as a row of kind 'error' without msg_id, so that it
-- never undoes the settles.
create or replace function queue_worker_data.settle_claim(
    queue text,
    done_ids bigint[], done_cts int[], done_ats timestamptz[], on_success text,
    other_ids bigint[], other_cts int[], other_ats timestamptz[],
    kinds text[], delays double precision[], reasons text[], errors text[],
    max_count int, lease_seconds double precision, suspects int, max_lost int, worker text, sleep boolean)
returns setof queue_worker_data.turn
language plpgsql security definer set search_path = '' as $$
declare
    item queue_worker_data.turn;
    hint text;
begin
    if pg_catalog.cardinality(done_ids) > 0 or pg_catalog.cardinality(other_ids) > 0 then
        return query select * from queue_worker_data.settle(settle_claim.queue, done_ids, done_cts, done_ats,
            on_success, other_ids, other_cts, other_ats, kinds, delays, reasons, errors, settle_claim.worker);
    end if;
    if max_count > 0 then
        begin
            if settle_claim.sleep then
                -- Row level security would make a queue of another owner look empty for ever.
                perform queue_worker_data.check_ours(settle_claim.queue);
            end if;
            return query select * from queue_worker_data.claim(settle_claim.queue, max_count,
                settle_claim.lease_seconds, suspects, max_lost, settle_claim.worker, settle_claim.sleep);
        exception when others then
            get stacked diagnostics hint = pg_exception_hint;
            item.kind := 'error';
            -- The hint may be the statement that mends it.
            item.detail := pg_catalog.concat(sqlstate, ': ', sqlerrm, ' (' || nullif(hint, '') || ')');
            return next item;
        end;
    end if;
end $$;

-- Raises where a queue's tables belong to somebody else.
create function queue_worker_data.check_ours(queue text) returns void
language plpgsql stable set search_path = '' as $$
begin
    if not queue_worker_data.is_ours(check_ours.queue) then
        perform queue_worker_data.check_environment(check_ours.queue);
        raise exception 'queue "%": its tables do not belong to %, who would see them as empty', check_ours.queue,
            queue_worker_data.owner()
            using errcode = '42501',
                  hint = pg_catalog.format('As the owner of pgmq.%I run: select queue_worker.create_queue(%L);',
                                           'q_' || check_ours.queue, check_ours.queue);
    end if;
end $$;

create or replace function queue_worker_data.release(
    queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[], delay_seconds double precision default 0)
returns bigint
language sql security definer set search_path = '' as $$
    select pg_catalog.cardinality(ids) - count(*) from queue_worker_data.settle(release.queue,
        other_ids => ids, other_cts => read_cts, other_ats => enqueued_ats,
        kinds => pg_catalog.array_fill('release'::text, array[pg_catalog.cardinality(ids)]),
        delays => pg_catalog.array_fill(delay_seconds, array[pg_catalog.cardinality(ids)]));
$$;

-- Refuses a bad name, a queue that is not there, and one that our functions could not see.
create or replace function queue_worker_data.check_queue(queue text) returns void
language plpgsql set search_path = '' as $$
begin
    perform queue_worker_data.check_queue_name(queue);
    if pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || queue)) is null then
        perform queue_worker_data.missing_queue(queue);
    end if;
    perform queue_worker_data.check_ours(queue);
end $$;

-- Deletes what is kept of one person, wherever it is; see docs/operations.md. Returns how many messages and rows.
create function queue_worker.purge_subject(key text, max_count int default 10000) returns bigint
language plpgsql set search_path = '' as $$
declare
    foreign_tables text;
begin
    return queue_worker_data.purge_subject(purge_subject.key, purge_subject.max_count);
exception when insufficient_privilege then
    -- Tables that pgmq made and nobody gave to us. To leave them out silently would be worse than to stop.
    select pg_catalog.string_agg(pg_catalog.format('alter table pgmq.%I owner to %I;', c.relname,
               queue_worker_data.owner()), ' ' order by c.relname)
        into foreign_tables
        from pg_catalog.pg_class c
        where c.relnamespace = 'pgmq'::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^[qa]_'
          and pg_catalog.pg_get_userbyid(c.relowner) <> queue_worker_data.owner()
          and queue_worker_data.other_environment(substr(c.relname, 3)) is null;
    if foreign_tables is null then
        raise;
    end if;
    raise exception 'some queues do not belong to %, so that they cannot be searched', queue_worker_data.owner()
        using errcode = '42501', hint = foreign_tables;
end $$;

-- Whether a queue is there as this version wants it, so that nothing is to be made.
create function queue_worker_data.is_equipped(queue text, ordered boolean) returns boolean
language sql stable security definer set search_path = '' as $$
    select queue_worker_data.is_ours(is_equipped.queue) and exists (
        select from queue_worker_data.queues q
        where q.queue = is_equipped.queue and (q.ordered or not is_equipped.ordered)
          and exists (select from pg_catalog.pg_trigger g
                      where g.tgrelid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || q.queue))
                        and g.tgname = 'queue_worker_priority')
          and (not q.ordered or exists (
                   select from pg_catalog.pg_trigger g
                   where g.tgrelid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || q.queue))
                     and g.tgname = 'queue_worker_ring_row')));
$$;

alter function queue_worker.create_queue set schema queue_worker_data;
alter function queue_worker_data.create_queue rename to make_queue;
alter function queue_worker_data.make_queue security definer;

-- See queue_worker.create_queue, which has taken over what was there.
create or replace function queue_worker_data.make_queue(queue text, ordered boolean default false) returns void
language plpgsql security definer set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    name constant text := pg_catalog.format('pgmq.%I', 'q_' || coalesce(make_queue.queue, ''));
    state record;
begin
    perform queue_worker_data.check_queue_name(make_queue.queue);
    select q.ordered into state from queue_worker_data.queues q where q.queue = make_queue.queue;
    -- Several workers start at once; a transaction lock also works behind a transaction pooler.
    perform pg_catalog.pg_advisory_xact_lock(1903520, pg_catalog.hashtext(make_queue.queue));
    perform queue_worker_data.note_now();
    -- The table too: pgmq keeps the name of a queue whose table was dropped by hand.
    if not exists (select from pgmq.meta m where m.queue_name = make_queue.queue)
       or pg_catalog.to_regclass(name) is null then
        perform pgmq.create(queue_name => make_queue.queue);
    end if;
    perform queue_worker_data.take_over(make_queue.queue);
    perform queue_worker_data.equip(make_queue.queue);
    perform queue_worker_data.tune(make_queue.queue);
    if make_queue.ordered or state.ordered then
        perform queue_worker_data.equip_ordered(make_queue.queue);
    end if;
    insert into queue_worker_data.queues as q (queue, ordered) values (make_queue.queue, make_queue.ordered)
        on conflict (queue) do update set ordered = true where make_queue.ordered and not q.ordered;
end $$;

-- Makes a queue, or takes over one that pgmq or Supabase's dashboard made: its tables then belong to the owner of schema
-- queue_worker. SECURITY INVOKER: only their owner can give them away.
create function queue_worker.create_queue(queue text, ordered boolean default false) returns void
language plpgsql set search_path = '' as $$
begin
    perform queue_worker_data.check_queue_name(create_queue.queue);
    -- A claim addresses rows by ctid, which is unique within one partition only.
    if exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'pgmq' and c.relname = 'q_' || create_queue.queue and c.relkind = 'p') then
        raise exception 'queue "%": partitioned queues are not available in this version', create_queue.queue
            using errcode = '0A000';
    end if;
    if queue_worker_data.is_equipped(create_queue.queue, create_queue.ordered) then
        return;
    end if;
    if not queue_worker_data.is_ours(create_queue.queue) then
        perform queue_worker_data.take_over(create_queue.queue);
    end if;
    perform queue_worker_data.make_queue(create_queue.queue, create_queue.ordered);
end $$;

-- The part of diagnose that needs the tables themselves.
create function queue_worker_data.diagnose_tables(dead_rows bigint)
returns table (subject text, queue text, finding text, fix text)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
    return query select 'vacuum', m.queue_name::text, pg_catalog.format('autovacuum is off for pgmq.%s', c.relname),
            pg_catalog.format('alter table pgmq.%I reset (autovacuum_enabled);', c.relname)
        from pgmq.meta m join pg_catalog.pg_class c
            on c.relnamespace = 'pgmq'::regnamespace
           and c.relname in ('q_' || pg_catalog.lower(m.queue_name), 'a_' || pg_catalog.lower(m.queue_name))
        where exists (select from pg_catalog.pg_options_to_table(c.reloptions) o
                      where o.option_name = 'autovacuum_enabled' and not o.option_value::boolean)
          and queue_worker_data.other_environment(m.queue_name::text) is null
        order by m.queue_name, c.relname;
    return query select 'vacuum', m.queue_name::text,
            pg_catalog.format('pgmq.%s has %s dead rows and %s live ones', s.relname, s.n_dead_tup, s.n_live_tup),
            pg_catalog.format('vacuum pgmq.%I;', s.relname)
        from pgmq.meta m join pg_catalog.pg_stat_all_tables s
            on s.schemaname = 'pgmq'
           and s.relname in ('q_' || pg_catalog.lower(m.queue_name), 'a_' || pg_catalog.lower(m.queue_name))
        where s.n_dead_tup > dead_rows and s.n_dead_tup > s.n_live_tup
          and queue_worker_data.other_environment(m.queue_name::text) is null
        order by m.queue_name, s.relname;
    return query select 'queue', q.queue,
            pg_catalog.format('its tables do not belong to %s: workers would see it as empty', queue_worker_data.owner()),
            pg_catalog.format('select queue_worker.create_queue(%L);', q.queue)
        from queue_worker_data.queues q where not queue_worker_data.is_ours(q.queue);
    return query select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_queues() d;
end $$;

-- What is wrong with the server, the queues and their workers, each with what mends it; no row: nothing was found.
-- client_now: the caller's clock. old_seconds: how old a transaction may be; dead_rows: how many a table may carry.
-- SECURITY INVOKER: what others do is seen as far as the caller may see it (pg_monitor sees all).
create or replace function queue_worker.diagnose(
    client_now timestamptz default null, old_seconds double precision default 300, dead_rows bigint default 100000)
returns table (subject text, queue text, finding text, fix text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    skew constant double precision := pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - client_now);
    since constant timestamptz := pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => old_seconds);
begin
    return query select 'pgmq', null::text, 'pgmq is version ' || e.extversion || ', which is too old',
            'alter extension pgmq update;'
        from pg_catalog.pg_extension e
        where e.extname = 'pgmq'
          and pg_catalog.regexp_replace(e.extversion, '^([0-9]+)[.]([0-9]+).*$', '\1')::int * 1000
              + pg_catalog.regexp_replace(e.extversion, '^([0-9]+)[.]([0-9]+).*$', '\2')::int < 1005;
    if abs(skew) > 2 then
        return query select 'clock', null::text,
            pg_catalog.format('the server''s clock is %s s %s this machine''s', pg_catalog.round(abs(skew)::numeric, 1),
                case when skew > 0 then 'ahead of' else 'behind' end),
            'timedatectl set-ntp true  # where the clock is wrong; due times count by the server''s';
    end if;
    return query select 'snapshot', null::text,
            pg_catalog.format('process %s (%s, %s) has a transaction open for %s s: no vacuum removes what died since, and'
                ' claims slow down', a.pid, nullif(a.application_name, ''), a.state,
                pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - a.xact_start)::numeric)),
            pg_catalog.format('select pg_terminate_backend(%s);', a.pid)
        from pg_catalog.pg_stat_activity a
        where a.xact_start < since and a.pid <> pg_catalog.pg_backend_pid() and a.backend_type = 'client backend'
          and (a.backend_xmin is not null or a.backend_xid is not null);
    return query select 'snapshot', null::text,
            pg_catalog.format('prepared transaction %s is open since %s', p.gid, p.prepared),
            pg_catalog.format('rollback prepared %L;', p.gid)
        from pg_catalog.pg_prepared_xacts p where p.prepared < since;
    if pg_catalog.current_setting('autovacuum') = 'off' or pg_catalog.current_setting('track_counts') = 'off' then
        return query select 'vacuum', null::text, 'autovacuum is off: dead rows pile up until claims crawl',
            'alter system set autovacuum = on; alter system set track_counts = on; select pg_reload_conf();';
    end if;
    -- The last three are made by 0029.
    return query select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_tables(dead_rows) d
        union all select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_functions() d
        union all select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_rights() d
        union all select d.subject, d.queue, d.finding, d.fix from queue_worker_data.diagnose_others() d;
end $$;


-- ---------------------------------------------------------------------------------------------------- rights

-- Rights that somebody gave by hand on a function that moved go on for its wrapper.
create procedure queue_worker_data.carry_over()
language plpgsql set search_path = '' as $$
declare
    given record;
begin
    for given in
        select n.oid::regprocedure as function_now, r.rolname, a.is_grantable
        from pg_catalog.pg_proc p
        join pg_catalog.pg_proc n on n.proname = p.proname and n.pronamespace = 'queue_worker'::regnamespace
        cross join lateral pg_catalog.aclexplode(p.proacl) a
        join pg_catalog.pg_roles r on r.oid = a.grantee
        where p.pronamespace = 'queue_worker_data'::regnamespace and a.grantee <> p.proowner
          and r.rolname not in ('anon', 'authenticated')
    loop
        execute pg_catalog.format('grant execute on function %s to %I%s', given.function_now, given.rolname,
            case when given.is_grantable then ' with grant option' end);
        execute pg_catalog.format('grant usage on schema queue_worker, queue_worker_data to %I', given.rolname);
    end loop;
end $$;

call queue_worker_data.allow('queue_worker', array[
    'claim', 'settle', 'settle_claim', 'extend', 'hold', 'lost', 'release', 'send', 'send_batch', 'resend_unsent',
    'create_queue', 'is_equipped', 'trip', 'close_breaker', 'prune', 'prune_shared', 'heartbeat', 'sign_off',
    'keep_result', 'result', 'report_progress', 'schedule', 'due_schedules', 'fire', 'fail_schedule', 'once_reserve',
    'once_finish', 'mail_reserve', 'mail_record', 'payment', 'payment_reserve', 'payment_finish', 'payment_unknown',
    'settle_payment', 'sandbox_act', 'sandbox_charge', 'sandbox_find', 'run_report', 'message', 'list_queues',
    'list_workers', 'limits', 'list_functions', 'diagnose', 'diagnose_tables', 'schema_version', 'check_queue_name',
    'check_environment', 'other_environment', 'is_ours', 'owner']);
call queue_worker_data.allow('queue_producer', array['send', 'send_batch', 'schema_version']);
call queue_worker_data.allow('queue_reader', array[
    'list_queues', 'list_workers', 'limits', 'list_functions', 'diagnose', 'diagnose_tables', 'schema_version',
    'queue_states', 'running_progress', 'list_progress', 'other_environment']);
call queue_worker_data.allow('queue_operator', array[
    'send', 'send_batch', 'create_queue', 'is_equipped', 'is_ours', 'owner', 'make_queue', 'take_over',
    'check_queue_name', 'check_environment', 'other_environment', 'drop_queue', 'pause', 'resume', 'purge', 'purge_subject',
    'set_rate_limit', 'set_concurrency',
    'limits', 'close_breaker', 'prune', 'prune_shared', 'message', 'messages', 'archived', 'cancel', 'complete',
    'redrive', 'discard', 'edit_dead', 'list_dead', 'list_queues', 'list_workers', 'list_audit', 'result',
    'list_progress', 'schedule', 'unschedule', 'run_schedule', 'pause_schedule', 'resume_schedule', 'list_schedules',
    'due_schedules', 'mail_resolve', 'payment', 'resolve_payment', 'list_payments', 'list_functions', 'diagnose',
    'diagnose_tables', 'schema_version', 'queue_states', 'running_progress', 'actor']);

call queue_worker_data.allow_view('queue_reader', 'queues');
call queue_worker_data.allow_view('queue_reader', 'workers');
call queue_worker_data.allow_view('queue_reader', 'progress');
call queue_worker_data.allow_view('queue_reader', 'batches');
-- The same without payloads, headers and error texts, which may quote them: for a reader, who has the rights on these
-- columns and no other.
create view queue_worker.dead_letters_redacted with (security_invoker = true) as
    select dead_id, queue, msg_id, attempts, reason, enqueued_at, dead_at, redriven_from
    from queue_worker_data.dead_letters;
create view queue_worker.failures_redacted with (security_invoker = true) as
    select failure_id, queue, msg_id, attempt, kind, retry_at, worker, failed_at
    from queue_worker_data.failures;
create view queue_worker.audit_redacted with (security_invoker = true) as
    select audit_id, at, actor, action, queue
    from queue_worker_data.audit;
create view queue_worker.schedules_redacted with (security_invoker = true) as
    select name, queue, cron, timezone, misfire, misfire_limit, enabled, last_fire_at, next_fire_at, last_msg_id,
           updated_at, from_at
    from queue_worker_data.schedules;
do $$
declare
    shown record;
begin
    for shown in
        select c.relname as name, pg_catalog.regexp_replace(c.relname, '_redacted$', '') as shows,
               pg_catalog.array_agg(a.attname::text) as columns
        from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'queue_worker'::regnamespace and c.relname like '%\_redacted'
        group by c.relname
    loop
        call queue_worker_data.allow_view('queue_reader', shown.name);
        call queue_worker_data.allow_view('queue_operator', shown.name);
        call queue_worker_data.allow_view('queue_reader', shown.shows, shown.columns);
    end loop;
end $$;
do $$
declare
    shown text;
begin
    foreach shown in array array['queues', 'workers', 'progress', 'batches', 'audit', 'dead_letters', 'failures',
                                 'schedules', 'migrations']
    loop
        call queue_worker_data.allow_view('queue_operator', shown);
    end loop;
    -- Read by schema_version, which the runner of migrations makes anew with the caller's rights.
    foreach shown in array array['queue_worker', 'queue_reader', 'queue_producer'] loop
        call queue_worker_data.allow_view(shown, 'migrations', array['version', 'min_worker']);
    end loop;
end $$;

call queue_worker_data.carry_over();

call queue_worker_data.lock_down();
