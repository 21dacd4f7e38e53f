-- min_worker: 0.1.0
-- Who may do what: one role owns everything of ours, four others get functions. See docs/security.md.
--
-- queue_owner    owns both schemas and the tables of our queues; nobody logs in as it.
-- queue_worker   claims, settles, sends: what a worker needs. A login is granted it, or a JWT names it.
-- queue_producer sends.
-- queue_reader   sees the state of queues, no payload.
-- queue_operator sees payloads too, and acts: pause, redrive, purge.
-- Supabase's service_role gets what the worker, the reader and the operator get.

do $$
declare
    wanted text;
begin
    foreach wanted in array
        array['queue_owner', 'queue_worker', 'queue_producer', 'queue_reader', 'queue_operator']
    loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname = wanted) then
            begin
                execute pg_catalog.format('create role %I nologin', wanted);
                -- What a second environment looks for before it takes a name; see docs/supabase.md.
                execute pg_catalog.format('comment on role %I is %L', wanted, 'made for schema queue_worker');
            exception
                when duplicate_object or unique_violation then
                    -- Roles belong to the whole server: a migration of another database was quicker.
                    null;
                when insufficient_privilege then
                    raise notice 'role % is missing, and % may not create it', wanted, current_user;
            end;
        end if;
    end loop;
    if exists (select from pg_catalog.pg_roles r where r.rolname = 'queue_owner')
       and not pg_catalog.pg_has_role(current_user, 'queue_owner', 'usage') then
        begin
            execute pg_catalog.format('grant queue_owner to %I', current_user);
        exception when insufficient_privilege or unique_violation then
            raise notice 'role queue_owner was not made by %, who owns the schema instead', current_user;
        end;
    end if;
end $$;

-- Which role gets a function or a view of ours, by its name; lock_down makes it so. Views go by columns (null: all): a
-- reader sees no payload, no header and no text of an error, which may quote them.
create table queue_worker_data.rights (
    role    text not null,
    name    text not null,
    columns text[],
    primary key (role, name)
);
alter table queue_worker_data.rights enable row level security;

-- Who owns what is ours: queue_owner, or whoever migrates where that role cannot be had.
create function queue_worker_data.owner() returns name
language sql stable set search_path = '' as $$
    select pg_catalog.pg_get_userbyid(n.nspowner) from pg_catalog.pg_namespace n where n.nspname = 'queue_worker_data';
$$;

-- Gives what one kind of role needs to `names`, functions and views, from now on.
create procedure queue_worker_data.allow(role text, names text[])
language sql set search_path = '' as $$
    insert into queue_worker_data.rights (role, name)
        select r.role, n.name
        from pg_catalog.unnest(allow.names) n (name),
             pg_catalog.unnest(case when allow.role = 'queue_producer' then array[allow.role]
                                    else array[allow.role, 'service_role'] end) r (role)
        on conflict do nothing;
$$;

-- Gives a role the columns (null: all) of a view and of the table that it shows, from now on.
create procedure queue_worker_data.allow_view(role text, name text, columns text[] default null)
language sql set search_path = '' as $$
    insert into queue_worker_data.rights (role, name, columns)
        select r.role, allow_view.name, allow_view.columns
        from pg_catalog.unnest(case when allow_view.role = 'queue_operator' then array[allow_view.role, 'service_role']
                                    else array[allow_view.role] end) r (role)
        on conflict do nothing;
$$;

-- Makes the rights on views and tables so; a part of lock_down.
create procedure queue_worker_data.open_views()
language plpgsql set search_path = '' as $$
declare
    one record;
begin
    for one in
        select c.oid::regclass as name, c.relkind, c.oid, r.role, r.columns,
               (select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum)
                from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attname = any (r.columns)) as list
        from queue_worker_data.rights r
        join pg_catalog.pg_roles g on g.rolname = r.role
        join pg_catalog.pg_class c on c.relname = r.name and c.relkind in ('r', 'v')
            and c.relnamespace in ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)
    loop
        -- A view with the caller's rights wants all that it names, so a part of the columns is for another view.
        if one.columns is null or (one.list is not null and one.relkind = 'r') then
            execute pg_catalog.format('grant select %s on %s to %I',
                case when one.columns is not null then '(' || one.list || ')' end, one.name, one.role);
        end if;
        if one.relkind = 'r' and one.role <> 'service_role' and not exists (
               select from pg_catalog.pg_policy p where p.polrelid = one.oid and p.polname = one.role) then
            execute pg_catalog.format('create policy %I on %s for select to %I using (true)', one.role, one.name,
                one.role);
        end if;
    end loop;
end $$;

-- Who else may send to which queue, and how much; see allow_producer.
create table queue_worker_data.producers (
    queue             text not null,
    role              text not null,
    max_bytes         int not null,
    max_depth         int not null,
    max_delay_seconds int not null,
    per_minute        int not null,
    created_at        timestamptz not null default pg_catalog.now(),
    primary key (queue, role)
);
alter table queue_worker_data.producers enable row level security;

-- Gives a producer what it needs to call send; a part of lock_down.
create procedure queue_worker_data.open_producers()
language plpgsql set search_path = '' as $$
declare
    permitted text;
begin
    for permitted in
        select distinct p.role from queue_worker_data.producers p join pg_catalog.pg_roles r on r.rolname = p.role
    loop
        execute pg_catalog.format('grant usage on schema queue_worker, queue_worker_data to %I', permitted);
        execute pg_catalog.format('grant execute on function queue_worker.send, queue_worker.send_batch,
            queue_worker_data.send_limited, queue_worker_data.refuse_options, queue_worker_data.actor to %I', permitted);
    end loop;
end $$;

-- The schema of another environment that a queue belongs to, or null: schema pgmq holds the queues of all of them. Whose
-- function the queue's trigger calls says whose it is.
create function queue_worker_data.other_environment(queue text) returns text
language sql stable set search_path = '' as $$
    select pg_catalog.regexp_replace(n.nspname, '_data$', '')
    from pg_catalog.pg_class c
    join pg_catalog.pg_trigger g on g.tgrelid = c.oid and g.tgname = 'queue_worker_wake'
    join pg_catalog.pg_proc p on p.oid = g.tgfoid
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where c.relnamespace = 'pgmq'::regnamespace and c.relname = 'q_' || pg_catalog.lower(other_environment.queue)
      and n.nspname <> 'queue_worker_data';
$$;

-- Raises where a queue belongs to another environment in this database. Two kinds of workers must not share the receipts
-- of one queue.
create function queue_worker_data.check_environment(queue text) returns void
language plpgsql stable set search_path = '' as $$
declare
    other constant text := queue_worker_data.other_environment(check_environment.queue);
begin
    if other is not null then
        raise exception 'queue "%" belongs to the environment of schema %', check_environment.queue, other
            using errcode = '42P06', hint = 'A queue has one environment: choose another name, or drop it there.';
    end if;
end $$;

-- Gives the tables of a queue to the owner: its functions read a table of somebody else with row level security as
-- empty. Raises 42501 where the caller may not.
create function queue_worker_data.take_over(queue text) returns void
language plpgsql set search_path = '' set lock_timeout = '5s' as $$
#variable_conflict use_column
declare
    owner constant name := queue_worker_data.owner();
    one record;
    outsider text;
    counter text;
begin
    perform queue_worker_data.check_environment(take_over.queue);
    for one in
        select c.oid, c.relname, c.relowner, c.relrowsecurity, pg_catalog.format('pgmq.%I', c.relname) as name
        from pg_catalog.pg_class c
        where c.relnamespace = 'pgmq'::regnamespace and c.relname in ('q_' || take_over.queue, 'a_' || take_over.queue)
    loop
        counter := pg_catalog.pg_get_serial_sequence(one.name, 'msg_id');
        if pg_catalog.pg_get_userbyid(one.relowner) <> owner then
            begin
                execute pg_catalog.format('alter table %s owner to %I', one.name, owner);
            exception when insufficient_privilege then
                raise exception 'queue "%": table % belongs to %, and % cannot give it to %', take_over.queue, one.name,
                    pg_catalog.pg_get_userbyid(one.relowner), current_user, owner
                    using errcode = '42501', hint = pg_catalog.format('As %s or a superuser run: grant %I to %I; alter'
                        ' table %s owner to %I; select queue_worker.create_queue(%L);',
                        pg_catalog.pg_get_userbyid(one.relowner), owner, pg_catalog.pg_get_userbyid(one.relowner),
                        one.name, owner, take_over.queue);
            end;
        end if;
        if not one.relrowsecurity then
            -- Whoever was allowed to use the table by plain pgmq goes on as before.
            for outsider in
                select distinct r.rolname from pg_catalog.pg_class c
                cross join lateral pg_catalog.aclexplode(c.relacl) a
                join pg_catalog.pg_roles r on r.oid = a.grantee
                where c.oid = one.oid and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
                  and r.rolname not in ('anon', 'authenticated', 'service_role', owner)
                  and not r.rolsuper and not r.rolbypassrls
            loop
                execute pg_catalog.format('create policy %I on %s to %I using (true) with check (true)',
                    'by_grant_' || left(outsider, 50), one.name, outsider);
            end loop;
            execute pg_catalog.format('alter table %s enable row level security', one.name);
        end if;
        if not exists (select from pg_catalog.pg_policy p where p.polrelid = one.oid and p.polname = 'queue_owner') then
            -- Says what holds anyway: the owner alone. Supabase's linter wants to see it said.
            execute pg_catalog.format('create policy queue_owner on %s to %I using (true) with check (true)',
                one.name, owner);
        end if;
        for outsider in
            select 'public' union all
            select pg_catalog.quote_ident(r.rolname) from pg_catalog.pg_roles r
                where r.rolname in ('anon', 'authenticated')
        loop
            execute pg_catalog.format('revoke all on table %s from %s', one.name, outsider);
            if counter is not null then
                execute pg_catalog.format('revoke all on sequence %s from %s', counter, outsider);
            end if;
        end loop;
        if exists (select from pg_catalog.pg_roles r where r.rolname = 'service_role') then
            -- Supabase's pgmq_public.send and the like, called with the service key.
            execute pg_catalog.format('grant select, insert, update, delete on table %s to service_role', one.name);
        end if;
    end loop;
end $$;

-- Whether the owner holds the tables of a queue, so that our functions see all of it.
create function queue_worker_data.is_ours(queue text) returns boolean
language sql stable set search_path = '' as $$
    select not exists (
        select from pg_catalog.pg_class c
        where c.relnamespace = 'pgmq'::regnamespace and c.relname in ('q_' || is_ours.queue, 'a_' || is_ours.queue)
          and c.relowner <> (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'queue_worker_data'));
$$;

-- Hands what is ours to the owner, takes it from everybody else, and gives it to the roles that need it. Every migration
-- that makes something ends with it.
create or replace procedure queue_worker_data.lock_down()
language plpgsql set search_path = '' as $$
declare
    owner constant name := queue_worker_data.owner();
    one record;
    outsider text;
begin
    for one in
        select pg_catalog.format('alter %s %I.%I owner to %I',
                   case c.relkind when 'v' then 'view' when 'S' then 'sequence' when 'c' then 'type' else 'table' end,
                   n.nspname, c.relname, owner) as command
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('queue_worker', 'queue_worker_data') and c.relkind in ('r', 'p', 'v', 'S', 'c')
          and pg_catalog.pg_get_userbyid(c.relowner) <> owner
          and not exists (select from pg_catalog.pg_depend d
                          where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
                            and d.deptype in ('i', 'a') and c.relkind = 'S')
        union all
        select pg_catalog.format('alter routine %s owner to %I', p.oid::regprocedure, owner)
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('queue_worker', 'queue_worker_data') and pg_catalog.pg_get_userbyid(p.proowner) <> owner
        union all
        select pg_catalog.format('create policy queue_owner on %s to %I using (true) with check (true)',
            c.oid::regclass, owner)
        from pg_catalog.pg_class c
        where c.relnamespace = 'queue_worker_data'::regnamespace and c.relkind in ('r', 'p')
          and not exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'queue_owner')
    loop
        execute one.command;
    end loop;
    -- Supabase's default privileges grant to these two by name, so that a revoke from public is not enough.
    for outsider in
        select 'public' union all
        select pg_catalog.quote_ident(r.rolname) from pg_catalog.pg_roles r
            where r.rolname in ('anon', 'authenticated')
    loop
        execute 'revoke all on all routines in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on all tables in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on all sequences in schema queue_worker, queue_worker_data from ' || outsider;
        execute 'revoke all on schema queue_worker, queue_worker_data from ' || outsider;
    end loop;
    for one in
        select pg_catalog.format('grant execute on function %s to %I', p.oid::regprocedure, r.role) as command
        from queue_worker_data.rights r
        join pg_catalog.pg_roles g on g.rolname = r.role
        join pg_catalog.pg_proc p on p.proname = r.name
            and p.pronamespace in ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)
        where not pg_catalog.has_function_privilege(g.oid, p.oid, 'execute')
        union all
        select pg_catalog.format('grant usage on schema queue_worker, queue_worker_data to %I', r.role)
        from (select distinct d.role from queue_worker_data.rights d) r
        join pg_catalog.pg_roles g on g.rolname = r.role
        where not pg_catalog.has_schema_privilege(g.oid, 'queue_worker', 'usage')
           or not pg_catalog.has_schema_privilege(g.oid, 'queue_worker_data', 'usage')
    loop
        execute one.command;
    end loop;
    call queue_worker_data.open_views();
    call queue_worker_data.open_producers();
    -- PostgREST looks at its schemas when it is told to; nobody else listens.
    perform pg_catalog.pg_notify('pgrst', 'reload schema');
end $$;


-- ---------------------------------------------------------------------------------------------------- hand over

do $$
declare
    owner name := current_user;
    other text;
    one record;
begin
    if exists (select from pg_catalog.pg_roles r where r.rolname = 'queue_owner')
       and pg_catalog.pg_has_role(current_user, 'queue_owner', 'usage') then
        owner := 'queue_owner';
        execute 'grant usage, create on schema pgmq to queue_owner';
        -- pgmq's own functions run as whoever calls them, and ours call them as the owner.
        for one in
            select c.oid::regclass as name from pg_catalog.pg_class c
            where c.relnamespace = 'pgmq'::regnamespace
              and c.relname in ('meta', 'notify_insert_throttle', 'topic_bindings')
        loop
            execute pg_catalog.format('grant select, insert, update, delete on %s to queue_owner', one.name);
        end loop;
    end if;
    -- One owner for two environments could read and drop the queues of both.
    select pg_catalog.regexp_replace(n.nspname, '_data$', '') into other
        from pg_catalog.pg_namespace n join pg_catalog.pg_proc p on p.pronamespace = n.oid
        where p.proname = 'other_environment' and n.nspname <> 'queue_worker_data'
          and pg_catalog.pg_get_userbyid(n.nspowner) = owner
        limit 1;
    if other is not null then
        raise exception 'schema % belongs to % too: a second environment in one database needs roles of its own', other,
            owner using errcode = '42939', hint = 'Migrate as a role that may create roles.';
    end if;
    execute pg_catalog.format('alter schema queue_worker owner to %I', owner);
    execute pg_catalog.format('alter schema queue_worker_data owner to %I', owner);
    for one in select q.queue from queue_worker_data.queues q loop
        perform queue_worker_data.take_over(one.queue);
    end loop;
end $$;

-- Over REST session_user is always the same login, and inside our functions current_user is always the owner; the role
-- that was set is the one that acts.
create function queue_worker_data.actor() returns text
language sql stable set search_path = '' as $$
    select coalesce(nullif(nullif(pg_catalog.current_setting('role', true), ''), 'none'), session_user::text);
$$;
alter table queue_worker_data.audit alter column actor set default queue_worker_data.actor();

call queue_worker_data.lock_down();
