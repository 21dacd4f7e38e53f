-- min_worker: 0.1.0
-- What `doctor --security` looks for, first part: the rules of Supabase's linter that concern a queue, by their numbers,
-- also for schema pgmq and the archives, which it leaves out. Everything is read from catalogues that anybody may read.

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
        from t where t.served
          and not exists (select from pg_catalog.pg_constraint k where k.conrelid = t.oid and k.contype = 'p')
    union all
    select '0007 policy_exists_rls_disabled', t.name, 'has policies, but row level security is off',
           pg_catalog.format('alter table %s enable row level security;', t.name)
        from t where not t.secured and t.served
          and exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)
    union all
    select '0008 rls_enabled_no_policy', t.name, 'has row level security, but no policy says who it is for',
           pg_catalog.format('create policy queue_owner on %s to %I using (true) with check (true);', t.name,
               queue_worker_data.owner())
        from t where t.secured and t.served and not exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)
    union all
    select '0013 rls_disabled', t.name, 'has row level security off',
           pg_catalog.format('alter table %s enable row level security;', t.name)
               || case when not exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)
                       then pg_catalog.format(' create policy queue_owner on %s to %I using (true) with check (true);',
                                t.name, queue_worker_data.owner()) else '' end
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
        cross join lateral (
            -- What is not said lets everything through, apart from a check, which is then what `using` says.
            select coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'true') ~ always as old_rows,
                   coalesce(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid),
                            pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'true') ~ always as new_rows
            from (values ('^\(*(true|1 ?= ?1)\)*$')) v (always)) x
        where t.secured and t.served and p.polpermissive and o.who is not null
          and (p.polcmd in ('w', 'd', '*') and x.old_rows or p.polcmd in ('a', 'w', '*') and x.new_rows);
$$;

-- Keys and indexes. `scans`: an index is unused when its table has been read so often without it.
create function queue_worker_data.lint_indexes(schemas text[], scans bigint)
returns table (rule text, object text, finding text, fix text)
language sql stable set search_path = '' as $$
    with i as materialized (
        select x.*, c.oid::regclass::text as name, t.oid::regclass::text as on_table,
               exists (select from pg_catalog.pg_constraint k
                       where k.conindid = x.indexrelid and k.contype <> 'f') as kept
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
            select from i where i.indrelid = k.conrelid and i.indpred is null and i.indisvalid
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
        -- The index of a constraint stays: it cannot be dropped by itself. Else the older one does.
        from i join i o on o.indrelid = i.indrelid and not i.kept and (o.kept or o.indexrelid < i.indexrelid)
            and (o.indkey::text, o.indnkeyatts, o.indclass::text, o.indcollation::text, o.indoption::text, o.indisunique,
                 pg_catalog.pg_get_expr(o.indexprs, o.indrelid), pg_catalog.pg_get_expr(o.indpred, o.indrelid))
                is not distinct from
                (i.indkey::text, i.indnkeyatts, i.indclass::text, i.indcollation::text, i.indoption::text, i.indisunique,
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
           pg_catalog.format('alter routine %s set search_path = '''';', p.name)
        from p where not exists (select from pg_catalog.unnest(p.proconfig) o where o like 'search_path=%')
    union all
    select '0014 extension_in_public', e.extname::text, pg_catalog.format('is installed in schema %s', n.nspname),
           pg_catalog.format('create schema if not exists extensions; alter extension %I set schema extensions;',
               e.extname)
        from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
        where n.nspname = any (lint_code.exposed) and n.nspname = any (lint_code.schemas) and e.extrelocatable
    union all
    select case r.rolname when 'anon' then '0028 anon_security_definer_function_executable'
                          else '0029 authenticated_security_definer_function_executable' end,
           p.name, pg_catalog.format('can be called by %s, and runs with the rights of its owner', r.rolname),
           pg_catalog.format('revoke execute on routine %s from public, %I;', p.name, r.rolname)
        from p join pg_catalog.pg_roles r on r.rolname in ('anon', 'authenticated')
        where p.prosecdef and p.shown and pg_catalog.has_function_privilege(r.oid, p.oid, 'execute');
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['outsiders', 'linted_tables', 'lint_tables', 'lint_indexes',
            'lint_code']);
    end loop;
end $$;

call queue_worker_data.lock_down();
