-- min_worker: 0.1.0
-- What `doctor --security` looks for, second part: rights that strangers were given on what is ours, owners, and schemas
-- that the API must not show. The whole of it is queue_worker.security.

-- Where the database says which schemas PostgREST shows, and which; a hosted project keeps that elsewhere.
create function queue_worker_data.api_settings() returns table (place text, schemas text[])
language sql stable set search_path = '' as $$
    select case when s.setrole = 0 then pg_catalog.format('database %I', d.datname)
                else pg_catalog.format('role %I%s', pg_catalog.pg_get_userbyid(s.setrole),
                         ' in database ' || pg_catalog.quote_ident(d.datname)) end,
           pg_catalog.regexp_split_to_array(pg_catalog.substr(one, pg_catalog.strpos(one, '=') + 1), ' *, *')
    from pg_catalog.pg_db_role_setting s
    cross join pg_catalog.unnest(s.setconfig) one
    left join pg_catalog.pg_database d on d.oid = s.setdatabase
    where one like 'pgrst.db\_schemas=%'
      and coalesce(d.datname, pg_catalog.current_database()) = pg_catalog.current_database();
$$;

-- The schemas that the API shows: `known`, what a caller has asked it, else the settings; null: neither says.
create function queue_worker_data.exposed_schemas(known text[]) returns text[]
language sql stable set search_path = '' as $$
    select coalesce(exposed_schemas.known, pg_catalog.array_agg(distinct e order by e))
    from queue_worker_data.api_settings() s cross join pg_catalog.unnest(s.schemas) e;
$$;

-- What is ours, and the queues that are, with their sequences; `apart`: its owner can be changed by itself.
create function queue_worker_data.our_relations()
returns table (oid oid, kind text, name text, schema text, owner oid, acl aclitem[], apart boolean)
language sql stable set search_path = '' as $$
    with tables as (
        select c.oid from pg_catalog.pg_class c
        where c.relkind in ('r', 'p', 'v', 'S')
          and c.relnamespace in ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)
        union
        select c.oid from queue_worker_data.queues q
        join pg_catalog.pg_class c on c.relname in ('q_' || q.queue, 'a_' || q.queue)
            and c.relnamespace = 'pgmq'::regnamespace and c.relkind in ('r', 'p')),
    sequences as (
        select d.objid as oid from pg_catalog.pg_depend d
        join tables t on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = t.oid
        where d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('i', 'a'))
    select c.oid, case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text, n.nspname::text,
           c.relowner, c.relacl, c.oid not in (select s.oid from sequences s)
    from (select t.oid from tables t union select s.oid from sequences s) r
    join pg_catalog.pg_class c on c.oid = r.oid and c.relkind in ('r', 'p', 'v', 'S')
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace;
$$;

-- Every right on what is ours that was given to somebody else than its owner; grantee 0: everybody. `proname`: the
-- function's name, `columns`: those it is about, null for all.
create function queue_worker_data.given_rights()
returns table (kind text, name text, proname text, schema text, columns text, grantee oid, privilege text)
language sql stable set search_path = '' as $$
    with given (kind, name, proname, schema, columns, owner, acl) as (
        select r.kind, r.name, null::text, r.schema, null::text, r.owner, r.acl from queue_worker_data.our_relations() r
        union all
        select r.kind, r.name, null, r.schema, a.attname::text, r.owner, a.attacl
            from queue_worker_data.our_relations() r
            join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attacl is not null and not a.attisdropped
        union all
        -- A function that nobody has granted or revoked is open to everybody.
        select 'routine', p.oid::regprocedure::text, p.proname::text, n.nspname::text, null, p.proowner,
               coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
            from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where n.nspname in ('queue_worker', 'queue_worker_data')
        union all
        select 'schema', n.nspname::text, null, n.nspname::text, null, n.nspowner, n.nspacl
            from pg_catalog.pg_namespace n where n.nspname in ('queue_worker', 'queue_worker_data'))
    select g.kind, g.name, g.proname, g.schema, g.columns, a.grantee, a.privilege_type::text
    from given g cross join lateral pg_catalog.aclexplode(g.acl) a where a.grantee <> g.owner;
$$;

-- What a role needs that allow_producer has opened a queue to.
create function queue_worker_data.needed_to_send(kind text, proname text, privilege text) returns boolean
language sql immutable set search_path = '' as $$
    select coalesce(kind = 'schema' and privilege = 'USAGE'
        or kind = 'routine' and proname in ('send', 'send_batch', 'send_limited', 'refuse_options', 'actor'), false);
$$;

-- Words for a right: "may select it".
create function queue_worker_data.may(outsider text, privileges text[]) returns text
language sql stable set search_path = '' as $$
    select pg_catalog.format('%s may %s it', may.outsider, pg_catalog.string_agg(distinct case p
        when 'EXECUTE' then 'call' when 'USAGE' then 'use' when 'CREATE' then 'create in'
        else pg_catalog.lower(p) end, ', '))
    from pg_catalog.unnest(may.privileges) p;
$$;

-- Rights of strangers, by their own grants, and by being a member of a role that has them.
create function queue_worker_data.lint_strangers() returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with strangers as (
        select o as name, coalesce(r.oid, 0) as oid, exists (
                   select from queue_worker_data.producers d join pg_catalog.pg_roles p on p.rolname = d.role
                   where r.oid is not null and pg_catalog.pg_has_role(r.oid, p.oid, 'member')) as producer
        from queue_worker_data.outsiders() o left join pg_catalog.pg_roles r on r.rolname = o)
    select 'grant', case g.kind when 'schema' then 'schema ' else '' end || g.name,
           queue_worker_data.may(s.name, pg_catalog.array_agg(g.privilege)),
           pg_catalog.format('revoke all on %s %s from %I;', g.kind, g.name, s.name)
        from queue_worker_data.given_rights() g join strangers s on s.oid = g.grantee
        where not (s.producer and queue_worker_data.needed_to_send(g.kind, g.proname, g.privilege))
        group by g.kind, g.name, s.name
    union all
    select distinct 'member', s.name, pg_catalog.format('may act as %s', ours.rolname),
           pg_catalog.format('revoke %I from %I;', via.rolname, s.name)
        from strangers s
        join pg_catalog.pg_auth_members m on m.member = s.oid
        join pg_catalog.pg_roles via on via.oid = m.roleid
        join pg_catalog.pg_roles ours on ours.rolname in (
            'queue_owner', 'queue_worker', 'queue_producer', 'queue_reader', 'queue_operator')
        where pg_catalog.pg_has_role(via.oid, ours.oid, 'member') and not via.rolsuper;
$$;

-- Rights of our own roles that no migration gave: of another function, of a table, of a column with payloads.
create function queue_worker_data.lint_roles() returns table (rule text, object text, finding text, fix text)
language sql stable security definer set search_path = '' as $$
    select 'grant', g.name, queue_worker_data.may(r.rolname, array[g.privilege])
               || coalesce(' (column ' || g.columns || ')', '') || ', which it does not need',
           pg_catalog.format('revoke %s%s on %s %s from %I;', pg_catalog.lower(g.privilege),
               ' (' || pg_catalog.quote_ident(g.columns) || ')', g.kind, g.name, r.rolname)
               -- With the right on the table those on its columns go too.
               || case when g.privilege = 'SELECT' and g.columns is null and g.schema <> 'pgmq'
                       then ' call queue_worker_data.lock_down();' else '' end
    from queue_worker_data.given_rights() g
    join pg_catalog.pg_roles r on r.oid = g.grantee
        and r.rolname in ('queue_worker', 'queue_producer', 'queue_reader', 'queue_operator', 'service_role')
    where not (g.kind = 'schema' and g.privilege = 'USAGE')
      -- Supabase's dashboard gives service_role everything in schema pgmq; see take_over.
      and not (r.rolname = 'service_role' and g.schema = 'pgmq')
      and not exists (
          select from queue_worker_data.rights w
          where w.role = r.rolname
            and (g.kind = 'routine' and w.name = g.proname
                 or g.kind = 'table' and g.privilege = 'SELECT'
                    and g.name = (select pg_catalog.format('%I.%I', g.schema, w.name))
                    and (w.columns is null or g.columns = any (w.columns))))
      and not (queue_worker_data.needed_to_send(g.kind, g.proname, g.privilege)
               and exists (select from queue_worker_data.producers d where d.role = r.rolname));
$$;

-- Owners that are not the one, and functions that run with the owner's rights where everybody sees them.
create function queue_worker_data.lint_owners() returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with one as (select n.nspowner as owner from pg_catalog.pg_namespace n where n.nspname = 'queue_worker_data'),
    f as (
        select p.*, p.oid::regprocedure::text as name, n.nspname as schema
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('queue_worker', 'queue_worker_data'))
    select 'owner', o.name, pg_catalog.format('belongs to %s, not to %s', pg_catalog.pg_get_userbyid(o.owner),
               pg_catalog.pg_get_userbyid(one.owner)),
           pg_catalog.format('alter %s %s owner to %I;', o.kind, o.name, pg_catalog.pg_get_userbyid(one.owner))
        from (select f.name, 'routine' as kind, f.proowner as owner from f union all
              select r.name, r.kind, r.owner from queue_worker_data.our_relations() r where r.apart union all
              select n.nspname::text, 'schema', n.nspowner from pg_catalog.pg_namespace n
              where n.nspname = 'queue_worker') o
        join one on o.owner <> one.owner
    union all
    select 'definer', f.name, 'runs with the rights of its owner in the schema that the API shows',
           pg_catalog.format('alter routine %s security invoker;', f.name)
        from f where f.prosecdef and f.schema = 'queue_worker' and f.prorettype <> 'pg_catalog.trigger'::regtype
    union all
    select 'search_path', f.name, 'looks for what it names in ' || pg_catalog.substr(s, 13),
           pg_catalog.format('alter routine %s set search_path = '''';', f.name)
        from f cross join pg_catalog.unnest(f.proconfig) s
        where s like 'search\_path=%' and s <> 'search_path=""';
$$;

-- Schemas that the API must not show. exposed: see exposed_schemas.
create function queue_worker_data.lint_exposed(exposed text[])
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with hidden (names) as (values (array['pgmq', 'queue_worker_data']))
    select 'exposed', 'schema ' || e.name, 'is shown by the API, and holds what only functions may touch',
           pg_catalog.format('alter %s set pgrst.db_schemas = %L; notify pgrst, ''reload config'';', e.place,
               (select pg_catalog.string_agg(k, ', ') from hidden, pg_catalog.unnest(e.schemas) k
                where k <> all (hidden.names)))
        from hidden, (select pg_catalog.unnest(x.schemas) as name, x.* from queue_worker_data.api_settings() x) e
        where e.name = any (hidden.names)
    union all
    select 'exposed', 'schema ' || k.name, 'is shown by the API, and holds what only functions may touch',
           pg_catalog.format('Project Settings > Data API > Exposed schemas: remove %s'
               ' (self-hosted: PGRST_DB_SCHEMAS=%s)',
               k.name, (select pg_catalog.string_agg(o, ',') from pg_catalog.unnest(lint_exposed.exposed) o
                        where o <> all (hidden.names)))
        from hidden, pg_catalog.unnest(lint_exposed.exposed) k (name)
        where k.name = any (hidden.names)
          and k.name not in (select pg_catalog.unnest(x.schemas) from queue_worker_data.api_settings() x)
    union all
    -- With the service key alone it is another way to send. Where nobody says what the API shows, the right to use it
    -- does.
    select 'exposed', 'schema pgmq_public',
           pg_catalog.format('offers queues to %s, and only the rights on each table stand before them',
               pg_catalog.string_agg(o, ', ' order by o)),
           pg_catalog.format('revoke usage on schema pgmq_public from %s;', pg_catalog.string_agg(o, ', ' order by o))
        from queue_worker_data.outsiders() o
        join pg_catalog.pg_namespace n on n.nspname = 'pgmq_public'
        where exists (select from pg_catalog.aclexplode(n.nspacl) a
                      where a.grantee = coalesce(pg_catalog.to_regrole(pg_catalog.quote_ident(o))::oid, 0))
          and coalesce('pgmq_public' = any (queue_worker_data.exposed_schemas(lint_exposed.exposed)), true)
        having pg_catalog.count(*) > 0;
$$;

-- Everything that is wrong with the rights on what is ours: the rule, the object, what is wrong, and the SQL that mends
-- it. No row: nothing was found. scans: see lint_indexes; exposed: the schemas that the API shows, where that is known.
create function queue_worker.security(scans bigint default 100000, exposed text[] default null)
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with named (ours, shown) as (values (array['queue_worker', 'queue_worker_data'],
        array['queue_worker'] || queue_worker_data.exposed_schemas(security.exposed)))
    select l.* from queue_worker_data.lint_strangers() l
    union all select l.* from queue_worker_data.lint_roles() l
    union all select l.* from queue_worker_data.lint_owners() l
    union all select l.* from queue_worker_data.lint_exposed(security.exposed) l
    union all select l.* from named, queue_worker_data.lint_tables(named.ours, named.shown) l
    union all select l.* from named, queue_worker_data.lint_code(named.ours, named.shown) l
    union all select l.* from named, queue_worker_data.lint_indexes(named.ours, security.scans) l;
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['actor', 'owner', 'security', 'api_settings', 'exposed_schemas',
            'our_relations', 'given_rights', 'needed_to_send', 'may', 'lint_strangers', 'lint_roles', 'lint_owners',
            'lint_exposed']);
        call queue_worker_data.allow_view(role, 'queues');
        call queue_worker_data.allow_view(role, 'producers');
    end loop;
end $$;

call queue_worker_data.lock_down();
