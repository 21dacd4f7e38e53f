-- For the show and its test alone: notes how many messages each claim took. A claim is the statement that counts up
-- `read_ct`, in a transaction of its own. (So does a retry, and there is none here.)
create table if not exists clinic.claims (queue text not null, tx xid8 not null, messages int not null);

create or replace function clinic.note_claim() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    insert into clinic.claims
        select tg_argv[0], pg_catalog.pg_current_xact_id(), count(*)
        from after_it n join before_it o using (msg_id) where n.read_ct > o.read_ct having count(*) > 0;
    return null;
end $$;

create or replace trigger note_claim after update on pgmq.q_email
    referencing old table as before_it new table as after_it
    for each statement execute function clinic.note_claim('email');
create or replace trigger note_claim after update on pgmq.q_reports
    referencing old table as before_it new table as after_it
    for each statement execute function clinic.note_claim('reports');
create or replace trigger note_claim after update on pgmq.q_payments
    referencing old table as before_it new table as after_it
    for each statement execute function clinic.note_claim('payments');
