-- min_worker: 0.1.0
-- Ending a message together with what it was for, in one transaction, without a connection of one's own: functions by
-- name, then the ack.

-- Calls functions one after the other and settles the message as done, all in one transaction: both or nothing. `calls`:
-- [{"function": "schema.name", "arguments": {...}}, ...]. Answers {"state": "done", "answers": [...]} with an answer of
-- `call` for each, or {"state": "stale"} where the message belongs to somebody else by now; then nothing was called.
-- `counted`: the message is one of a batch that something follows. SECURITY INVOKER: the functions run with the rights
-- of the caller.
create function queue_worker.finish(
    queue text, msg_id bigint, read_ct int, enqueued_at timestamptz, on_success text, calls jsonb,
    counted boolean default false)
returns jsonb
language plpgsql set search_path = '' as $$
declare
    one jsonb;
    given jsonb;
    statement text;
    answer jsonb;
    answers jsonb := '[]';
    missed queue_worker_data.turn;
begin
    -- The row is locked first: what the functions write cannot belong to a stale run.
    if not queue_worker_data.hold(finish.queue, finish.msg_id, finish.read_ct, finish.enqueued_at) then
        return '{"state": "stale"}';
    end if;
    for one in select c.one from pg_catalog.jsonb_array_elements(calls) with ordinality c (one, n) order by c.n loop
        given := coalesce(one -> 'arguments', '{}');
        statement := queue_worker_data.call_statement(queue_worker_data.callable(one ->> 'function', given), given);
        if not pg_catalog.starts_with(one ->> 'function', 'queue_worker.') then
            -- See queue_worker.call.
            perform pg_catalog.set_config('search_path', s.reset_val, true)
                from pg_catalog.pg_settings s where s.name = 'search_path';
        end if;
        execute statement into answer using given;
        answers := answers || answer;
    end loop;
    if counted then
        select * into missed from queue_worker_data.settle(finish.queue, on_success => finish.on_success,
            other_ids => array[finish.msg_id], other_cts => array[finish.read_ct],
            other_ats => array[finish.enqueued_at], kinds => array['result'],
            delays => array[0::double precision], reasons => array[''], errors => array['']);
    else
        select * into missed from queue_worker_data.settle(finish.queue, done_ids => array[finish.msg_id],
            done_cts => array[finish.read_ct], done_ats => array[finish.enqueued_at],
            on_success => finish.on_success);
    end if;
    if missed.kind is not null then
        raise exception 'the result could not be stored: %', coalesce(missed.detail, missed.kind)
            using errcode = case when missed.detail ~ '^[0-9A-Z]{5}:' then left(missed.detail, 5) else '40001' end;
    end if;
    return pg_catalog.jsonb_build_object('state', 'done', 'answers', answers);
end $$;

call queue_worker_data.allow('queue_worker', array['finish']);

call queue_worker_data.lock_down();
