-- min_worker: 0.1.0
-- What `doctor --security` looks for: the rules of Supabase's linter that concern a queue, by their numbers, and what it
-- leaves out, which is schema pgmq and the archives. Everything is read from catalogues that anybody may read.

-- Who is a stranger: everybody, and the two roles that Supabase gives to browsers.
create function queue_worker_data.outsiders() returns setof name
language sql stable set search_path = '' as $$
    select 'public'::name union all
    select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated');
$$;

-- The tables that are looked at: those of `schemas`, and all queues and archives; `served`: ours, or of a queue of ours.
create function queue_worker_data.linted_tables(schemas text[])
returns table (oid oid, name text, schema text, secured boolean, served boolean)
language sql stable set search_path = '' as $$
    select c.oid, c.oid::regclass::text, n.nspname::text, c.relrowsecurity,
           n.nspname <> 'pgmq' or exists (select from queue_worker_data.queues q
                                         where c.relname in ('q_' || q.queue, 'a_' || q.queue))
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p')
      and (n.nspname = any (linted_tables.schemas)
           or (n.nspname = 'pgmq' and c.relname ~ '^[qa]_'
               and queue_worker_data.other_environment(substr(c.relname, 3)) is null));
$$;

-- Tables and their policies. `exposed`: the schemas of the API.
create function queue_worker_data.lint_tables(schemas text[], exposed text[])
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with t as materialized (select l.* from queue_worker_data.linted_tables(lint_tables.schemas) l),
    seen as materialized (
        select t.*, o as outsider
        from t cross join queue_worker_data.outsiders() o
        where pg_catalog.has_any_column_privilege(o, t.oid, 'select'))
    select '0004 no_primary_key', t.name, 'has no primary key',
           pg_catalog.format('alter table %s add column row_id bigint generated always as identity primary key;', t.name)
        from t where not exists (select from pg_catalog.pg_constraint k where k.conrelid = t.oid and k.contype = 'p')
    union all
    select '0007 policy_exists_rls_disabled', t.name, 'has policies, but row level security is off',
           pg_catalog.format('alter table %s enable row level security;', t.name)
        from t where not t.secured and exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)
    union all
    select '0008 rls_enabled_no_policy', t.name, 'has row level security, but no policy says who it is for',
           pg_catalog.format('create policy queue_owner on %s to %I using (true) with check (true);', t.name,
               queue_worker_data.owner())
        from t where t.secured and t.served and not exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)
    union all
    select '0013 rls_disabled', t.name, 'has row level security off',
           pg_catalog.format('alter table %s enable row level security;', t.name)
        from t where not t.secured and t.served and (t.schema <> 'pgmq' or not exists (
            select from pg_catalog.pg_policy p where p.polrelid = t.oid))
    union all
    select '0019 insecure_queue', t.name, pg_catalog.format('is a queue that %s may read, without row level security',
               seen.outsider), pg_catalog.format('revoke all on table %s from %s;', seen.name, seen.outsider)
        from seen join t using (oid) where t.schema = 'pgmq' and not t.secured
    union all
    select '0023 sensitive_columns_exposed', seen.name,
           pg_catalog.format('shows column %s to %s', pg_catalog.string_agg(a.attname, ', ' order by a.attnum),
               seen.outsider),
           pg_catalog.format('revoke all on table %s from %s;', seen.name, seen.outsider)
        from seen join pg_catalog.pg_attribute a on a.attrelid = seen.oid and a.attnum > 0 and not a.attisdropped
        where not seen.secured and seen.schema = any (lint_tables.exposed)
          and a.attname ~* ('(^|_)(password|passwd|secret|token|jwt|api_?key|private_key|ssn|iban|card_number|cvc|otp'
                            '|message|payload)$')
        group by seen.name, seen.outsider
    union all
    select '0024 permissive_rls_policy', t.name,
           pg_catalog.format('policy %I lets %s write everything', p.polname, o.who),
           pg_catalog.format('drop policy %I on %s;', p.polname, t.name)
        from t join pg_catalog.pg_policy p on p.polrelid = t.oid
        cross join lateral (
            select pg_catalog.string_agg(coalesce(r.rolname, 'everybody'), ', ') as who
            from pg_catalog.unnest(p.polroles) g (oid) left join pg_catalog.pg_roles r on r.oid = g.oid
            where g.oid = 0 or r.rolname in ('anon', 'authenticated')) o
        where t.secured and p.polpermissive and p.polcmd <> 'r' and o.who is not null
          and coalesce(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid), pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                       'true') ~ '^\(*(true|1 ?= ?1)\)*$';
$$;

-- Keys and indexes. `scans`: an index is unused when its table has been read so often without it.
create function queue_worker_data.lint_indexes(schemas text[], scans bigint)
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with i as materialized (
        select x.*, c.oid::regclass::text as name, t.oid::regclass::text as on_table
        from pg_catalog.pg_index x
        join pg_catalog.pg_class c on c.oid = x.indexrelid
        join pg_catalog.pg_class t on t.oid = x.indrelid
        join pg_catalog.pg_namespace n on n.oid = t.relnamespace
        where n.nspname = any (lint_indexes.schemas))
    select '0001 unindexed_foreign_keys', k.conrelid::regclass::text,
           pg_catalog.format('foreign key %I has no index', k.conname),
           pg_catalog.format('create index on %s (%s);', k.conrelid::regclass, l.columns)
        from pg_catalog.pg_constraint k
        join pg_catalog.pg_namespace n on n.oid = k.connamespace and n.nspname = any (lint_indexes.schemas)
        cross join lateral (
            select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by u.place) as columns
            from pg_catalog.unnest(k.conkey) with ordinality u (number, place)
            join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.number) l
        where k.contype = 'f' and not exists (
            select from i where i.indrelid = k.conrelid and i.indpred is null
              and (i.indkey::int2[])[0:pg_catalog.cardinality(k.conkey) - 1] operator(pg_catalog.@>) k.conkey)
    union all
    select '0005 unused_index', i.name, pg_catalog.format('has not been used in %s reads of %s', s.reads, i.on_table),
           pg_catalog.format('drop index %s;', i.name)
        from i
        join pg_catalog.pg_stat_all_indexes u on u.indexrelid = i.indexrelid
        join (select r.relid, coalesce(r.seq_scan, 0) + coalesce(r.idx_scan, 0) as reads
              from pg_catalog.pg_stat_all_tables r) s on s.relid = i.indrelid
        where u.idx_scan = 0 and not i.indisunique and not i.indisprimary and s.reads >= lint_indexes.scans
    union all
    select '0009 duplicate_index', i.name, pg_catalog.format('is the same as %s', o.name),
           pg_catalog.format('drop index %s;', i.name)
        from i join i o on o.indrelid = i.indrelid and o.indexrelid < i.indexrelid
            and (o.indkey::text, o.indclass::text, o.indcollation::text, o.indoption::text, o.indisunique,
                 pg_catalog.pg_get_expr(o.indexprs, o.indrelid), pg_catalog.pg_get_expr(o.indpred, o.indrelid))
                is not distinct from
                (i.indkey::text, i.indclass::text, i.indcollation::text, i.indoption::text, i.indisunique,
                 pg_catalog.pg_get_expr(i.indexprs, i.indrelid), pg_catalog.pg_get_expr(i.indpred, i.indrelid));
$$;

-- Views, functions and extensions.
create function queue_worker_data.lint_code(schemas text[], exposed text[])
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with p as materialized (
        select f.*, f.oid::regprocedure::text as name, n.nspname = any (lint_code.exposed) as shown
        from pg_catalog.pg_proc f join pg_catalog.pg_namespace n on n.oid = f.pronamespace
        where n.nspname = any (lint_code.schemas) and f.prokind in ('f', 'p')
          and not exists (select from pg_catalog.pg_depend d
                          where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e'))
    select '0010 security_definer_view', c.oid::regclass::text, 'shows rows with the rights of its owner',
           pg_catalog.format('alter view %s set (security_invoker = true);', c.oid::regclass)
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'v' and n.nspname = any (lint_code.schemas)
          and coalesce((select o.option_value from pg_catalog.pg_options_to_table(c.reloptions) o
                        where o.option_name = 'security_invoker'), 'off') not in ('1', 'true', 'yes', 'on')
    union all
    select '0011 function_search_path_mutable', p.name, 'has no search_path of its own',
           pg_catalog.format('alter function %s set search_path = '''';', p.name)
        from p where not exists (select from pg_catalog.unnest(p.proconfig) o where o like 'search_path=%')
                 and p.prokind <> 'p'
    union all
    select '0011 function_search_path_mutable', p.name, 'has no search_path of its own',
           pg_catalog.format('alter procedure %s set search_path = '''';', p.name)
        from p where not exists (select from pg_catalog.unnest(p.proconfig) o where o like 'search_path=%')
                 and p.prokind = 'p'
    union all
    select '0014 extension_in_public', e.extname::text, pg_catalog.format('is installed in schema %s', n.nspname),
           pg_catalog.format('create schema if not exists extensions; alter extension %I set schema extensions;', e.extname)
        from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
        where n.nspname = any (lint_code.exposed) and n.nspname = any (lint_code.schemas) and e.extrelocatable
    union all
    select case r.rolname when 'anon' then '0028 anon_security_definer_function_executable'
                          else '0029 authenticated_security_definer_function_executable' end,
           p.name, pg_catalog.format('can be called by %s, and runs with the rights of its owner', r.rolname),
           pg_catalog.format('revoke execute on function %s from public, %I;', p.name, r.rolname)
        from p join pg_catalog.pg_roles r on r.rolname in ('anon', 'authenticated')
        where p.prosecdef and p.shown and pg_catalog.has_function_privilege(r.oid, p.oid, 'execute');
$$;


-- ---------------------------------------------------------------------------------------------------- our own rules

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
    where one like 'pgrst.db\_schemas=%' and coalesce(d.datname, pg_catalog.current_database()) = pg_catalog.current_database();
$$;

create function queue_worker_data.exposed_schemas() returns text[]
language sql stable set search_path = '' as $$
    select coalesce(pg_catalog.array_agg(distinct e), '{}')
    from queue_worker_data.api_settings() s cross join pg_catalog.unnest(s.schemas) e;
$$;

-- Rights that strangers have been given on what is ours, and owners that are not the one.
create function queue_worker_data.lint_rights() returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with given as (
        select o as outsider, exists (select from queue_worker_data.producers d where d.role = o) as producer
        from queue_worker_data.outsiders() o),
    f as materialized (
        select p.*, p.oid::regprocedure::text as name, n.nspname::text as schema
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('queue_worker', 'queue_worker_data'))
    select 'grant', t.name, pg_catalog.format('%s may %s it', g.outsider,
               pg_catalog.lower(pg_catalog.string_agg(v.name, ', ' order by v.name))),
           pg_catalog.format('revoke all on table %s from %s;', t.name, g.outsider)
        from (select l.oid, l.name from queue_worker_data.linted_tables(array['queue_worker_data']) l union all
              select c.oid, c.oid::regclass::text from pg_catalog.pg_class c
              where c.relkind = 'v' and c.relnamespace = 'queue_worker'::regnamespace) t
        cross join given g
        cross join (values ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE')) v (name)
        where case when v.name in ('DELETE', 'TRUNCATE') then pg_catalog.has_table_privilege(g.outsider, t.oid, v.name)
                   else pg_catalog.has_any_column_privilege(g.outsider, t.oid, v.name) end
        group by t.name, g.outsider
    union all
    select 'grant', f.name, pg_catalog.format('%s may call it', g.outsider),
           pg_catalog.format('revoke execute on routine %s from %s;', f.name, g.outsider)
        from f cross join given g
        where pg_catalog.has_function_privilege(g.outsider, f.oid, 'execute')
          and not (g.producer and f.proname in ('send', 'send_batch', 'send_limited', 'refuse_options', 'actor'))
    union all
    select 'grant', 'schema ' || s.name, pg_catalog.format('%s may use it', g.outsider),
           pg_catalog.format('revoke all on schema %s from %s;', s.name, g.outsider)
        from given g cross join (values ('queue_worker'), ('queue_worker_data')) s (name)
        where pg_catalog.has_schema_privilege(g.outsider, s.name, 'usage') and not g.producer
    union all
    select 'definer', f.name, 'runs with the rights of its owner in the schema that the API shows',
           pg_catalog.format('alter function %s security invoker;', f.name)
        from f where f.prosecdef and f.schema = 'queue_worker' and f.prorettype <> 'pg_catalog.trigger'::regtype
    union all
    select 'owner', f.name, pg_catalog.format('belongs to %s, not to %s', pg_catalog.pg_get_userbyid(f.proowner),
               queue_worker_data.owner()),
           pg_catalog.format('alter routine %s owner to %I;', f.name, queue_worker_data.owner())
        from f where pg_catalog.pg_get_userbyid(f.proowner) <> queue_worker_data.owner()
    union all
    select 'exposed', 'schema ' || e.name, 'is shown by the API, and holds what only functions may touch',
           pg_catalog.format('alter %s set pgrst.db_schemas = %L; notify pgrst, ''reload config'';', e.place,
               pg_catalog.array_to_string(pg_catalog.array_remove(pg_catalog.array_remove(e.schemas, 'pgmq'),
                   'queue_worker_data'), ', '))
        from (select unnest(x.schemas) as name, x.* from queue_worker_data.api_settings() x) e
        where e.name in ('pgmq', 'queue_worker_data');
$$;

-- Everything that is wrong with the rights on what is ours: the rule, the object, what is wrong, and the SQL that mends
-- it. No row: nothing was found. scans: see lint_indexes.
create function queue_worker.security(scans bigint default 100000)
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with named (ours, shown) as (values (array['queue_worker', 'queue_worker_data'], array['queue_worker']
        || queue_worker_data.exposed_schemas()))
    select l.* from named, queue_worker_data.lint_rights() l
    union all select l.* from named, queue_worker_data.lint_tables(named.ours, named.shown) l
    union all select l.* from named, queue_worker_data.lint_code(named.ours, named.shown) l
    union all select l.* from named, queue_worker_data.lint_indexes(named.ours, security.scans) l;
$$;

-- What is behind this connection: names and values for a person.
create function queue_worker.about() returns table (name text, value text)
language sql stable set search_path = '' as $$
    select 'postgres', pg_catalog.current_setting('server_version') union all
    select 'pgmq', coalesce((select e.extversion from pg_catalog.pg_extension e where e.extname = 'pgmq'),
                            'installed without an extension') union all
    select 'role', queue_worker_data.actor() union all
    select 'owner', queue_worker_data.owner()::text union all
    select 'exposed schemas', pg_catalog.array_to_string(x.schemas, ', ')
        from queue_worker_data.exposed_schemas() x (schemas) where x.schemas <> '{}';
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['about', 'actor', 'owner', 'security', 'other_environment', 'outsiders', 'linted_tables',
            'lint_tables', 'lint_indexes', 'lint_code', 'lint_rights', 'exposed_schemas', 'api_settings']);
        call queue_worker_data.allow_view(role, 'queues');
        call queue_worker_data.allow_view(role, 'producers');
    end loop;
end $$;

call queue_worker_data.lock_down();
