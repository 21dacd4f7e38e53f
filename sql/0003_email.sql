-- min_worker: 0.1.0
-- The ledger of mails: one row per mail and recipient, written before and after each talk with the mail server.
--
-- reserved  a run has begun to send; if that run is dead nobody knows how far it came
-- sent      the mail server took the mail for this recipient
-- bounced   refused for good (5xx)
-- deferred  not sent so far, try again
-- unknown   may have been sent: the answer was lost

create table queue_worker_data.mails (
    key          text not null,
    recipient    text not null,
    request_hash text not null,
    state        text not null check (state in ('reserved', 'sent', 'bounced', 'deferred', 'unknown')),
    reply        text not null default '',
    owner        text,
    attempts     int not null default 1,
    first_at     timestamptz not null default pg_catalog.clock_timestamp(),
    updated_at   timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (key, recipient)
);
comment on column queue_worker_data.mails.owner is 'The run (one claim of a message) that holds the row; null once its result is recorded.';

alter table queue_worker_data.mails enable row level security;

-- Reserves a mail for a run and returns the state of every recipient: send to those that are reserved, and to unknown
-- ones as your policy says. A row that is still held by the same owner was left by a dead run and becomes unknown.
-- All are 'busy', and nothing is changed, while another owner has held a row for less than two minutes; busy_seconds
-- says for how long that goes on. The worker ends a talk with the mail server within these two minutes.
-- Another request_hash raises QW409 if anybody may have got the first mail; else the new mail takes its place, so that
-- a mail that only bounced can be corrected.
create function queue_worker.mail_reserve(key text, request_hash text, recipients text[], owner text default null)
returns table (recipient text, state text, reply text, first_seconds bigint, busy_seconds double precision)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    wait double precision;
begin
    -- Two first reservations of one key see no rows of each other, so that a check alone would let both pass.
    perform pg_catalog.pg_advisory_xact_lock(1903522, pg_catalog.hashtext(mail_reserve.key));
    if exists (select from queue_worker_data.mails m where m.key = mail_reserve.key
               and m.request_hash <> mail_reserve.request_hash and m.state in ('reserved', 'sent', 'unknown')) then
        raise exception 'the key has been used for another mail' using errcode = 'QW409';
    end if;
    delete from queue_worker_data.mails m
        where m.key = mail_reserve.key and m.request_hash <> mail_reserve.request_hash;
    select pg_catalog.date_part('epoch', pg_catalog.max(m.updated_at) + interval '2 minutes'
                                - pg_catalog.clock_timestamp()) into wait
        from queue_worker_data.mails m
        where m.key = mail_reserve.key and m.owner <> mail_reserve.owner;
    if wait > 0 then
        return query select r, 'busy', '', 0::bigint, wait from pg_catalog.unnest(mail_reserve.recipients) r;
        return;
    end if;
    insert into queue_worker_data.mails as m (key, recipient, request_hash, state, owner)
        select distinct mail_reserve.key, r, mail_reserve.request_hash, 'reserved', mail_reserve.owner
        from pg_catalog.unnest(mail_reserve.recipients) r
        on conflict on constraint mails_pkey do update set
            state = case m.state when 'deferred' then 'reserved' else 'unknown' end,
            owner = excluded.owner,
            attempts = m.attempts + 1,
            updated_at = excluded.updated_at
        where m.state in ('reserved', 'deferred', 'unknown');
    return query
        select m.recipient, m.state, m.reply, pg_catalog.date_part('epoch', m.first_at)::bigint,
               0::double precision
        from queue_worker_data.mails m
        where m.key = mail_reserve.key and m.recipient = any (mail_reserve.recipients);
end $$;

-- Records [{"recipient": ..., "state": ..., "reply": ...}, ...]; returns how many rows changed. What is sent stays
-- sent and what bounced is at most corrected to sent, so that a late run cannot undo what a later one knows better.
create function queue_worker.mail_record(key text, results jsonb) returns bigint
language sql set search_path = '' as $$
    with recorded as (
        update queue_worker_data.mails m
        set state = r.state, reply = coalesce(r.reply, ''), owner = null, updated_at = pg_catalog.clock_timestamp()
        from pg_catalog.jsonb_to_recordset(mail_record.results) as r (recipient text, state text, reply text)
        where m.key = mail_record.key and m.recipient = r.recipient
          and (m.state not in ('sent', 'bounced') or (m.state = 'bounced' and r.state = 'sent'))
        returning 1)
    select pg_catalog.count(*) from recorded;
$$;

-- A person's answer for mails whose outcome is unknown (one recipient, or null: all): 'sent', or 'deferred' to send
-- them at the next redrive. Returns how many rows changed.
create function queue_worker.mail_resolve(key text, state text, recipient text default null) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    changed bigint;
begin
    if mail_resolve.state is null or mail_resolve.state not in ('sent', 'deferred') then
        raise exception 'state must be sent or deferred' using errcode = '22023';
    end if;
    update queue_worker_data.mails m
        set state = mail_resolve.state, owner = null, updated_at = pg_catalog.clock_timestamp()
        where m.key = mail_resolve.key and m.state in ('unknown', 'reserved')
          and (mail_resolve.recipient is null or m.recipient = mail_resolve.recipient);
    get diagnostics changed = row_count;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('mail_resolve', 'email', pg_catalog.jsonb_build_object(
            'key', mail_resolve.key, 'state', mail_resolve.state, 'count', changed));
    return changed;
end $$;

-- Forgets mails first tried longer ago than this, at most max_count recipients a call; returns how many. A key that is
-- forgotten would be sent again, so keep them longer than any message can be redriven.
create function queue_worker.mail_prune(older_than_seconds double precision, max_count int default 5000) returns bigint
language sql set search_path = '' as $$
    with gone as (
        delete from queue_worker_data.mails m where m.ctid = any (array(
            select x.ctid from queue_worker_data.mails x
            where x.first_at < pg_catalog.clock_timestamp()
                - pg_catalog.make_interval(secs => mail_prune.older_than_seconds)
            limit mail_prune.max_count
            for update skip locked))
        returning 1)
    select pg_catalog.count(*) from gone;
$$;
