-- min_worker: 0.1.0
-- What `doctor` compares with what the migrations made: functions, and the rights of our roles. And what it tells about
-- the database. A guard against a hand that slipped: whoever owns the schema can change what is remembered too.

-- Every function of ours as the migrations made it; see remember. `digest`: of its body and how it runs, not of the
-- whole text, which another version of Postgres may write in another way.
create table queue_worker_data.made (
    name       text primary key,
    digest     text not null,
    definition text not null
);
alter table queue_worker_data.made enable row level security;

-- The functions and procedures that are there now.
create function queue_worker_data.routines() returns table (name text, oid oid, digest text)
language sql stable set search_path = '' as $$
    select p.oid::regprocedure::text, p.oid, pg_catalog.md5(pg_catalog.concat_ws('/', p.prosrc, p.prosecdef,
        p.provolatile, p.prokind, p.prorettype::regtype, p.proretset, l.lanname,
        (select pg_catalog.string_agg(c, ',' order by c) from pg_catalog.unnest(p.proconfig) c)))
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    join pg_catalog.pg_language l on l.oid = p.prolang
    where n.nspname in ('queue_worker', 'queue_worker_data');
$$;

-- Notes down what is there as what ought to be. Every migration that makes or changes a function ends with it.
create procedure queue_worker_data.remember()
language sql set search_path = '' as $$
    delete from queue_worker_data.made;
    insert into queue_worker_data.made (name, digest, definition)
        select r.name, r.digest, pg_catalog.pg_get_functiondef(r.oid) from queue_worker_data.routines() r;
$$;

-- Makes a function again as the migrations made it. For whoever migrates: SECURITY INVOKER, and granted to nobody.
create procedure queue_worker_data.restore(name text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
    wanted constant text := (select m.definition from queue_worker_data.made m where m.name = restore.name);
    there constant regprocedure := pg_catalog.to_regprocedure(restore.name);
begin
    if wanted is null then
        raise exception 'the migrations made no function %', coalesce(pg_catalog.quote_literal(restore.name), 'null')
            using errcode = '42883';
    end if;
    begin
        execute wanted;
    exception when invalid_function_definition or wrong_object_type then
        -- It returns something else than it did.
        execute pg_catalog.format('drop routine %s', there);
        execute wanted;
    end;
    call queue_worker_data.lock_down();
end $$;

-- Functions that are missing, changed, or nobody's.
create function queue_worker_data.diagnose_functions()
returns table (subject text, queue text, finding text, fix text)
language sql stable security definer set search_path = '' as $$
    select 'schema', null::text, pg_catalog.format('function %s %s', coalesce(m.name, r.name),
               case when r.name is null then 'is missing' when m.name is null then 'was made by no migration'
                    else 'was edited in the database' end),
           case when m.name is null then pg_catalog.format('drop routine %s;', r.name)
                else pg_catalog.format('call queue_worker_data.restore(%L);', m.name) end
    from queue_worker_data.made m full join queue_worker_data.routines() r on r.name = m.name
    where m.digest is distinct from r.digest
    order by 3;
$$;

-- Rights of our roles that were taken away, or that somebody added.
create function queue_worker_data.diagnose_rights()
returns table (subject text, queue text, finding text, fix text)
language sql stable security definer set search_path = '' as $$
    with wanted as (select r.*, g.oid from queue_worker_data.rights r join pg_catalog.pg_roles g on g.rolname = r.role),
    missing (finding) as (
        select pg_catalog.format('role %s may not call %s', w.role, p.oid::regprocedure)
            from wanted w join pg_catalog.pg_proc p on p.proname = w.name
                and p.pronamespace in ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)
            where not pg_catalog.has_function_privilege(w.oid, p.oid, 'execute')
        union
        select pg_catalog.format('role %s may not use schema %s', w.role, n.nspname)
            from wanted w join pg_catalog.pg_namespace n on n.nspname in ('queue_worker', 'queue_worker_data')
            where not pg_catalog.has_schema_privilege(w.oid, n.oid, 'usage')
        union
        select pg_catalog.format('role %s may not read %s', w.role, c.oid::regclass)
            from wanted w join pg_catalog.pg_class c on c.relname = w.name and c.relkind in ('r', 'v')
                and c.relnamespace in ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)
            where case when w.columns is null then not pg_catalog.has_table_privilege(w.oid, c.oid, 'select')
                       else c.relkind = 'r' and exists (
                           select from pg_catalog.pg_attribute a
                           where a.attrelid = c.oid and a.attnum > 0 and a.attname = any (w.columns)
                             and not pg_catalog.has_column_privilege(w.oid, c.oid, a.attnum, 'select')) end
               or c.relkind = 'r' and w.role <> 'service_role' and not exists (
                      select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = w.role))
    select 'schema', null::text, m.finding, 'call queue_worker_data.lock_down();' from missing m
    union all
    -- A function that no migration made is a finding of its own, and goes.
    select 'schema', null, pg_catalog.format('%s: %s', l.object, l.finding), l.fix from queue_worker_data.lint_roles() l
        where l.object not like '%(%' or l.object in (select m.name from queue_worker_data.made m)
    order by 3;
$$;

-- Queues that the dashboard made and nobody has taken over: with row level security and no policy they look empty to all
-- but their owner. Others that use pgmq by itself are not our concern.
create function queue_worker_data.diagnose_others()
returns table (subject text, queue text, finding text, fix text)
language sql stable security definer set search_path = '' as $$
    select 'queue', m.queue_name::text, pg_catalog.format(
               'belongs to %s, with row level security and no policy: a worker would see it as empty',
               pg_catalog.pg_get_userbyid(c.relowner)),
           pg_catalog.format('select queue_worker.create_queue(%L);', m.queue_name)
    from pgmq.meta m
    join pg_catalog.pg_class c on c.relnamespace = 'pgmq'::regnamespace and c.relkind = 'r' and c.relrowsecurity
        and c.relname = 'q_' || m.queue_name
    where pg_catalog.pg_get_userbyid(c.relowner) <> queue_worker_data.owner()
      and not exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid)
      and not exists (select from queue_worker_data.queues q where q.queue = m.queue_name)
    order by m.queue_name;
$$;

-- The part of diagnose that looks at each queue which is ours or is served by a living worker. Each fix can be pasted.
create or replace function queue_worker_data.diagnose_queues()
returns table (subject text, queue text, finding text, fix text)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
    one record;
    overdue double precision;
begin
    for one in
        select n.name, c.oid, c.relpersistence,
               exists (select from queue_worker_data.workers w
                       where n.name = any (w.queues)
                         and w.last_seen > pg_catalog.now() - interval '45 seconds') as served
        from (select q.queue from queue_worker_data.queues q
              union
              select pg_catalog.unnest(w.queues) from queue_worker_data.workers w
              where w.last_seen > pg_catalog.now() - interval '45 seconds') n (name)
        left join pg_catalog.pg_class c
            on c.oid = pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || n.name))
        order by n.name
    loop
        queue := one.name;
        subject := 'queue';
        if one.oid is null then
            finding := 'its table is gone';
            fix := pg_catalog.format('select queue_worker.create_queue(%L);', one.name);
            return next;
            continue;
        end if;
        if not exists (select from pg_catalog.pg_trigger g
                       where g.tgrelid = one.oid and g.tgname = 'queue_worker_wake' and g.tgenabled <> 'D') then
            finding := 'its trigger queue_worker_wake is missing or disabled: workers find new messages by polling only';
            fix := case when exists (select from pg_catalog.pg_trigger g
                                     where g.tgrelid = one.oid and g.tgname = 'queue_worker_wake')
                        then pg_catalog.format('alter table pgmq.%I enable trigger queue_worker_wake;', 'q_' || one.name)
                        -- create_queue leaves a queue alone that a worker can serve.
                        else pg_catalog.format('select queue_worker_data.make_queue(%L);', one.name) end;
            return next;
        end if;
        if one.relpersistence = 'u' then
            finding := 'its table is unlogged: a crash of the server empties it';
            fix := pg_catalog.format('alter table pgmq.%I set logged;', 'q_' || one.name);
            return next;
        end if;
        continue when one.served;
        begin
            execute pg_catalog.format('select pg_catalog.date_part(''epoch'', pg_catalog.clock_timestamp() - m.vt)
                from pgmq.%I m where m.vt <= $1 and m.vt > ''-infinity'' order by m.vt limit 1', 'q_' || one.name)
                into overdue using pg_catalog.clock_timestamp() - interval '1 minute';
        exception when insufficient_privilege then
            overdue := null;
        end;
        if overdue is not null then
            subject := 'worker';
            finding := pg_catalog.format('no living worker serves it, and a message is due since %s s',
                pg_catalog.round(overdue::numeric));
            fix := pg_catalog.format('queue-worker start -q %s', one.name);
            return next;
        end if;
    end loop;
end $$;

-- What is behind this connection: names and values for a person. client_now: the caller's clock; exposed: see
-- exposed_schemas.
create function queue_worker.about(client_now timestamptz default null, exposed text[] default null)
returns table (name text, value text)
language sql stable set search_path = '' as $$
    select 'postgres', pg_catalog.current_setting('server_version') union all
    select 'pgmq', coalesce(
        (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pgmq'),
        -- Plain SQL leaves no version behind.
        'installed without an extension, as of ' || case when exists (
            select from pg_catalog.pg_type t join pg_catalog.pg_attribute a on a.attrelid = t.typrelid
            where t.typnamespace = 'pgmq'::regnamespace and t.typname = 'message_record' and a.attname = 'last_read_at')
            then '1.13' else '1.5' end) union all
    select 'role', queue_worker_data.actor() union all
    select 'owner', queue_worker_data.owner()::text union all
    select 'clock', pg_catalog.format('%s s from this machine''s', pg_catalog.round(pg_catalog.abs(pg_catalog.date_part(
               'epoch', pg_catalog.clock_timestamp() - about.client_now))::numeric, 1))
        where about.client_now is not null union all
    select 'api', case when x.schemas is null then 'the database does not say whether schema queue_worker is exposed'
                       when 'queue_worker' = any (x.schemas) then 'schema queue_worker is exposed'
                       else 'schema queue_worker is not exposed: only a worker over REST needs that' end
                  || coalesce(' (' || pg_catalog.array_to_string(x.schemas, ', ') || ')', '')
        from queue_worker_data.exposed_schemas(about.exposed) x (schemas)
        where x.schemas is not null
           or exists (select from pg_catalog.pg_roles r where r.rolname = 'authenticator');
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['about', 'diagnose_functions', 'diagnose_rights', 'diagnose_others']);
    end loop;
end $$;

call queue_worker_data.lock_down();
call queue_worker_data.remember();
