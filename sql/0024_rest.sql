-- min_worker: 0.1.0
-- REST: one entry that answers one JSON value, and what a repeated call needs. See docs/connections.md.
--
-- PostgREST cuts a set of rows at its max-rows, so a claim of 2,000 would lose 1,000 until their leases end; and one
-- payload that a client cannot parse would spoil the answer with all others. So a worker calls everything through `call`,
-- which answers a single value with JSON columns as text.

-- Functions of the user that may be called by name over REST, and by finish.
create table queue_worker_data.functions (
    name       text primary key,
    created_at timestamptz not null default pg_catalog.now()
);
alter table queue_worker_data.functions enable row level security;

-- Answers that may have been lost on the way. `answer` of a claim holds receipts, no payloads: they lie in the queue.
create table queue_worker_data.requests (
    key      uuid primary key,
    at       timestamptz not null default pg_catalog.now(),
    actor    text not null default queue_worker_data.actor(),
    function text not null,
    answer   jsonb not null
);
alter table queue_worker_data.requests enable row level security;
create index requests_at_idx on queue_worker_data.requests (at);


-- ---------------------------------------------------------------------------------------------------- functions

-- Registers a function; see queue_worker.allow_function.
create function queue_worker_data.allow_function(function text) returns text
language plpgsql security definer set search_path = '' as $$
declare
    place text;
begin
    select n.nspname into place
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = pg_catalog.split_part(function, '.', 1) and p.proname = pg_catalog.split_part(function, '.', 2)
          and p.prokind = 'f'
        limit 1;
    if place is null then
        raise exception 'function % does not exist: give it as schema.name, without arguments',
            coalesce(pg_catalog.quote_literal(function), 'null') using errcode = '42883';
    elsif place in ('pg_catalog', 'information_schema', 'pgmq', 'queue_worker', 'queue_worker_data') then
        raise exception 'function % is not one of yours', function using errcode = '42501';
    end if;
    insert into queue_worker_data.functions (name) values (allow_function.function) on conflict do nothing;
    insert into queue_worker_data.audit (action, queue, detail)
        values ('allow_function', '*', pg_catalog.jsonb_build_object('function', function));
    return function;
end $$;

-- Lets workers call one of your functions by name, over REST and by finish: schema.name. It runs with the rights of
-- whoever calls, who needs EXECUTE on it. Of several functions of the name the one is called that has the arguments.
create function queue_worker.allow_function(function text) returns text
language sql set search_path = '' as $$
    select queue_worker_data.allow_function(allow_function.function);
$$;

-- See queue_worker.disallow_function.
create function queue_worker_data.disallow_function(function text) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    delete from queue_worker_data.functions f where f.name = disallow_function.function;
    if found then
        insert into queue_worker_data.audit (action, queue, detail)
            values ('disallow_function', '*', pg_catalog.jsonb_build_object('function', function));
        return true;
    end if;
    return false;
end $$;

-- Takes back what allow_function gave; whether there was something to take.
create function queue_worker.disallow_function(function text) returns boolean
language sql set search_path = '' as $$
    select queue_worker_data.disallow_function(disallow_function.function);
$$;

-- The functions of yours that may be called by name.
create function queue_worker_data.list_functions_allowed() returns setof text
language sql stable security definer set search_path = '' as $$
    select f.name from queue_worker_data.functions f order by f.name;
$$;
create function queue_worker.list_functions_allowed() returns setof text
language sql stable set search_path = '' as $$
    select * from queue_worker_data.list_functions_allowed();
$$;

-- The function to call by this name: one of schema queue_worker, or one of yours. Raises 42883 or 42501.
-- Over REST a function of the user must be registered: PostgREST shows chosen schemas only, and `call` must not open all
-- the others. On a connection of one's own SQL itself is open, and the rights of the role decide. PostgREST sets
-- request.path for every request, and nobody who comes through it can take that away.
create function queue_worker_data.callable(function text, arguments jsonb) returns oid
language plpgsql stable security definer set search_path = '' as $$
declare
    over_rest constant boolean := coalesce(pg_catalog.current_setting('request.path', true), '') <> '';
    target oid;
    ours boolean;
begin
    select p.oid, n.nspname = 'queue_worker' into target, ours
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = pg_catalog.split_part(function, '.', 1) and p.proname = pg_catalog.split_part(function, '.', 2)
          and p.prokind = 'f' and p.prorettype <> 'pg_catalog.trigger'::regtype
        order by (select pg_catalog.count(*) from pg_catalog.jsonb_object_keys(arguments) k (name)
                  where k.name <> all (coalesce(p.proargnames, '{}'))), p.pronargs, p.oid
        limit 1;
    if target is null then
        raise exception 'function % does not exist', coalesce(pg_catalog.quote_literal(function), 'null')
            using errcode = '42883', hint = 'Run `queue-worker migrate`, if it is one of queue_worker.';
    elsif over_rest and not ours
          and not exists (select from queue_worker_data.functions f where f.name = callable.function) then
        raise exception 'function % may not be called by name', function
            using errcode = '42501', hint = pg_catalog.format('select queue_worker.allow_function(%L);', function);
    end if;
    return target;
end $$;


-- ---------------------------------------------------------------------------------------------------- call

-- The columns of what a function returns, in order: name and type.
create function queue_worker_data.columns_of(target oid) returns table (name text, type oid)
language sql stable set search_path = '' as $$
    select x.name, x.type from (
        select a.place, coalesce(nullif(p.proargnames[a.place], ''), 'column' || a.place) as name, a.type
        from pg_catalog.pg_proc p
        cross join lateral unnest(p.proallargtypes, p.proargmodes) with ordinality a (type, mode, place)
        where p.oid = target and a.mode in ('t', 'o', 'b')
        union all
        select t.attnum, t.attname::text, t.atttypid
        from pg_catalog.pg_proc p
        join pg_catalog.pg_type r on r.oid = p.prorettype
        join pg_catalog.pg_attribute t on t.attrelid = r.typrelid and t.attnum > 0 and not t.attisdropped
        where p.oid = target and (p.proargmodes is null or not p.proargmodes && array['t', 'o', 'b']::"char"[])
        union all
        select 1, p.proname::text, p.prorettype
        from pg_catalog.pg_proc p join pg_catalog.pg_type r on r.oid = p.prorettype and r.typrelid = 0
        where p.oid = target and (p.proargmodes is null or not p.proargmodes && array['t', 'o', 'b']::"char"[])
    ) x order by x.place;
$$;

-- The statement that calls a function with the arguments that are given by name as one JSON object, and answers one
-- JSON value: {"columns": [[name, type], ...], "rows": [[value, ...], ...]}. Columns of JSON come as text.
create function queue_worker_data.call_statement(target oid, arguments jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare
    called text;
    given text;
    passed text;
    wrong text;
    columns jsonb;
    outer_names text;
    shown text;
begin
    select pg_catalog.format('%I.%I', n.nspname, p.proname) into called
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where p.oid = target;
    select pg_catalog.string_agg(pg_catalog.format('%I %s', k.name, pg_catalog.format_type(a.type, null)), ', '),
           -- As over a connection of one's own a text for a JSON argument is JSON, not a string of JSON.
           pg_catalog.string_agg(pg_catalog.format(
               case when a.type in ('pg_catalog.json'::regtype, 'pg_catalog.jsonb'::regtype)
                    then '%1$I => (a.%1$I #>> ''{}'')::%2$s' else '%1$I => a.%1$I' end,
               k.name, pg_catalog.format_type(a.type, null)), ', '),
           pg_catalog.min(k.name) filter (where a.type is null)
        into given, passed, wrong
        from pg_catalog.jsonb_object_keys(arguments) k (name)
        left join (
            select p.proargnames[x.place] as name, x.type
            from pg_catalog.pg_proc p
            cross join lateral unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
                with ordinality x (type, mode, place)
            where p.oid = target and coalesce(x.mode, 'i') in ('i', 'b', 'v')) a on a.name = k.name;
    if wrong is not null then
        raise exception 'function % has no argument %', called, pg_catalog.quote_literal(wrong) using errcode = '42883';
    end if;
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(c.name, pg_catalog.format_type(c.type, null))),
           pg_catalog.string_agg(pg_catalog.format('%I', 'c' || c.place), ', '),
           pg_catalog.string_agg(pg_catalog.format(
               case when c.type in ('pg_catalog.json'::regtype, 'pg_catalog.jsonb'::regtype) then 'r.%I::text'
                    when c.type = 'pg_catalog.void'::regtype then 'null'
                    else 'r.%I' end, 'c' || c.place), ', ')
        into columns, outer_names, shown
        from (select c.name, c.type, pg_catalog.row_number() over () as place
              from queue_worker_data.columns_of(target) c) c;
    return pg_catalog.format(
        'select pg_catalog.jsonb_build_object(''columns'', %L::pg_catalog.jsonb, ''rows'', coalesce(
             pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(%s)), ''[]''))
         from %s %s(%s) as r (%s)', columns, shown,
        case when given is not null
             then pg_catalog.format('pg_catalog.jsonb_to_record($1) as a (%s) cross join lateral', given) end,
        called, passed, outer_names);
end $$;

-- Whether a call under this key was answered before; locks the key until the transaction ends, so that a repeat that
-- comes while the first call still runs waits for it. An answer is for whoever has asked.
create function queue_worker_data.earlier_answer(request_key uuid, function text) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
    found_answer jsonb;
begin
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(earlier_answer.request_key::text, 0));
    select r.answer into found_answer from queue_worker_data.requests r
        where r.key = earlier_answer.request_key and r.function = earlier_answer.function
          and r.actor = queue_worker_data.actor();
    return found_answer;
end $$;

-- Keeps an answer for a repeat; of a claim the receipts alone.
create function queue_worker_data.keep_answer(request_key uuid, function text, answer jsonb) returns void
language plpgsql security definer set search_path = '' as $$
begin
    if function = 'queue_worker.settle_claim' then
        -- columns: kind, msg_id, read_ct, enqueued_at, payload, headers, failures, lost, detail
        answer := pg_catalog.jsonb_set(answer, '{rows}', (
            select coalesce(pg_catalog.jsonb_agg(
                       case when x.one ->> 0 in ('job', 'expired')
                            then pg_catalog.jsonb_set(pg_catalog.jsonb_set(x.one, '{4}', 'null'), '{5}', 'null')
                            else x.one end order by x.n), '[]')
            from pg_catalog.jsonb_array_elements(answer -> 'rows') with ordinality x (one, n)));
        if not pg_catalog.jsonb_path_exists(answer, '$.rows[*] ? (@[0] == "job" || @[0] == "expired")') then
            -- Nothing was claimed, and a settle may be repeated as it is: its receipts are spent.
            return;
        end if;
    end if;
    insert into queue_worker_data.requests (key, function, answer)
        values (request_key, keep_answer.function, keep_answer.answer);
end $$;

-- A claim's answer again: those of its messages that are still held, for a whole lease from now.
create function queue_worker_data.claim_again(answer jsonb, arguments jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
    queue constant text := arguments ->> 'queue';
    lease constant double precision := (arguments ->> 'lease_seconds')::double precision;
    held jsonb;
begin
    perform queue_worker_data.check_queue(queue);
    execute pg_catalog.format(
        'with asked as (
             select x.one, x.n, (x.one ->> 1)::bigint as msg_id, (x.one ->> 2)::int as read_ct,
                    (x.one ->> 3)::timestamptz as enqueued_at
             from pg_catalog.jsonb_array_elements($1 -> ''rows'') with ordinality x (one, n)
             where x.one ->> 0 in (''job'', ''expired'')),
         locked as materialized (
             select m.ctid as tid, a.one, a.n from pgmq.%1$I m join asked a
                 on m.msg_id = a.msg_id and m.read_ct = a.read_ct and m.enqueued_at = a.enqueued_at
             order by m.msg_id for update of m skip locked),
         again as (
             update pgmq.%1$I m set vt = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)
             from locked l where m.ctid = l.tid
             returning l.one, l.n, m.message::text as payload, m.headers::text as headers)
         select pg_catalog.jsonb_agg(pg_catalog.jsonb_set(pg_catalog.jsonb_set(a.one,
                    ''{4}'', coalesce(pg_catalog.to_jsonb(a.payload), ''null'')),
                    ''{5}'', coalesce(pg_catalog.to_jsonb(a.headers), ''null'')) order by a.n) from again a',
        'q_' || queue) into held using answer, lease;
    return pg_catalog.jsonb_set(answer, '{rows}', coalesce(held, '[]') || (
        select coalesce(pg_catalog.jsonb_agg(x.one), '[]')
        from pg_catalog.jsonb_array_elements(answer -> 'rows') x (one)
        where x.one ->> 0 not in ('job', 'expired')));
end $$;

-- Calls a function of schema queue_worker, or one that allow_function has registered, with arguments by name; answers
-- {"columns": [[name, type], ...], "rows": [[value, ...], ...]}, JSON columns as text. Under a request_key a repeat
-- gives the first answer again: a send the same ids, a claim those of its messages that are still held. SECURITY
-- INVOKER: the caller's rights decide.
create function queue_worker.call(function text, arguments jsonb default '{}', request_key uuid default null)
returns jsonb
language plpgsql set search_path = '' as $$
declare
    statement text;
    answer jsonb;
begin
    if arguments is null or pg_catalog.jsonb_typeof(arguments) <> 'object' then
        raise exception 'arguments must be a JSON object' using errcode = '22023';
    end if;
    if request_key is not null then
        answer := queue_worker_data.earlier_answer(request_key, function);
        if answer is not null then
            return case when function = 'queue_worker.settle_claim'
                        then queue_worker_data.claim_again(answer, arguments) else answer end;
        end if;
    end if;
    statement := queue_worker_data.call_statement(queue_worker_data.callable(function, arguments), arguments);
    if not pg_catalog.starts_with(function, 'queue_worker.') then
        -- A function of the user gets the search_path that a plain call would have had; it ends with this function.
        perform pg_catalog.set_config('search_path', s.reset_val, true)
            from pg_catalog.pg_settings s where s.name = 'search_path';
    end if;
    execute statement into answer using arguments;
    if request_key is not null then
        perform queue_worker_data.keep_answer(request_key, function, answer);
    end if;
    return answer;
end $$;


-- ---------------------------------------------------------------------------------------------------- housekeeping

-- Deletes answers that nobody will ask for again, and counts of producers; at most max_count of each. Returns how many.
create function queue_worker_data.prune_requests(max_count int, request_seconds double precision) returns bigint
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    gone bigint;
    found_here bigint;
begin
    delete from queue_worker_data.requests r where r.key = any (array(
        select x.key from queue_worker_data.requests x
        where x.at < pg_catalog.now() - pg_catalog.make_interval(secs => prune_requests.request_seconds)
        order by x.at limit prune_requests.max_count for update skip locked));
    get diagnostics gone = row_count;
    delete from queue_worker_data.producer_counts c where c.ctid = any (array(
        select x.ctid from queue_worker_data.producer_counts x
        where x.since < pg_catalog.now() - interval '10 minutes'
        order by x.since limit prune_requests.max_count for update skip locked));
    get diagnostics found_here = row_count;
    return greatest(gone, found_here);
end $$;

-- A worker asks again for some minutes at most.
create function queue_worker_data.prune_answers(max_count int) returns bigint
language sql security definer set search_path = '' set lock_timeout = '1s' as $$
    select queue_worker_data.prune_requests(prune_answers.max_count, 3600);
$$;

create or replace function queue_worker.prune_shared(
    max_count int default 5000, audit_seconds double precision default 34560000,
    ledger_seconds double precision default 34560000)
returns bigint
language sql set search_path = '' as $$
    select greatest(
        queue_worker_data.prune_shared(prune_shared.max_count, prune_shared.audit_seconds, prune_shared.ledger_seconds),
        queue_worker_data.prune_answers(prune_shared.max_count));
$$;

call queue_worker_data.allow('queue_worker', array['call', 'callable', 'columns_of', 'call_statement', 'earlier_answer',
    'keep_answer', 'claim_again', 'prune_answers']);
call queue_worker_data.allow('queue_producer', array['call', 'callable', 'columns_of', 'call_statement',
    'earlier_answer', 'keep_answer']);
call queue_worker_data.allow('queue_reader', array['call', 'callable', 'columns_of', 'call_statement']);
call queue_worker_data.allow('queue_operator', array['call', 'callable', 'columns_of', 'call_statement',
    'earlier_answer', 'keep_answer', 'prune_answers', 'allow_function', 'disallow_function', 'list_functions_allowed']);

call queue_worker_data.lock_down();
