-- min_worker: 0.1.0
-- Reports: runs one report function and returns all that its file needs, in ONE row, so that both transports see the
-- same: PostgREST's max-rows cannot cut it, no type is lost in JSON, and an empty result still has its columns.

-- Runs `function` (schema.name, without arguments), which takes one jsonb argument and returns a table, a set of a
-- composite type, or single values. Returns the names and types of the columns in the order of SQL, and the rows as an
-- array of arrays of text (null stays null; dates in ISO 8601). At most `max_rows` + 1 rows come back: one more than
-- allowed says "too many". SECURITY INVOKER: the caller needs EXECUTE on the report function itself.
-- Raises 42883 where there is no such function.
create function queue_worker.run_report(function text, params jsonb default '{}', max_rows int default 100000)
returns table (column_names text[], column_types text[], data json)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_variable
declare
    target oid := pg_catalog.to_regprocedure(function || '(jsonb)');
    called text;
begin
    select pg_catalog.format('%I.%I', n.nspname, p.proname)
      into called
      from pg_catalog.pg_proc p
      join pg_catalog.pg_namespace n on n.oid = p.pronamespace
     where p.oid = target and p.prokind = 'f';
    if called is null then
        raise exception 'function %(jsonb) does not exist', function using errcode = '42883';
    end if;

    select coalesce(pg_catalog.array_agg(c.name order by c.place), '{}'),
           coalesce(pg_catalog.array_agg(b.typname::text order by c.place), '{}')
      into column_names, column_types
      from (
            -- returns table (...), or arguments declared as out
            select a.place, p.proargnames[a.place] as name, a.type
              from pg_catalog.pg_proc p
             cross join lateral unnest(p.proallargtypes, p.proargmodes) with ordinality as a (type, mode, place)
             where p.oid = target and a.mode in ('t', 'o', 'b')
            union all
            -- returns setof a table, a view or a composite type
            select t.attnum, t.attname::text, t.atttypid
              from pg_catalog.pg_proc p
              join pg_catalog.pg_type r on r.oid = p.prorettype
              join pg_catalog.pg_attribute t on t.attrelid = r.typrelid and t.attnum > 0 and not t.attisdropped
             where p.oid = target and p.proargmodes is null
            union all
            -- returns single values
            select 1, p.proname::text, p.prorettype
              from pg_catalog.pg_proc p
              join pg_catalog.pg_type r on r.oid = p.prorettype and r.typrelid = 0
             where p.oid = target and p.proargmodes is null
           ) c
      join pg_catalog.pg_type t on t.oid = c.type
      join pg_catalog.pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end;

    -- The report function is the user's: it runs with the search_path that a plain call would have had, and this
    -- setting ends with our function.
    perform pg_catalog.set_config('search_path', s.reset_val, true)
       from pg_catalog.pg_settings s
      where s.name = 'search_path';
    execute pg_catalog.format(
        'select pg_catalog.json_agg((
             select pg_catalog.json_agg(c.value order by c.place)
               from pg_catalog.json_each_text(pg_catalog.row_to_json(r)) with ordinality as c (name, value, place)))
           from (select * from %s($1) limit $2) r', called)
       into data
      using params, max_rows + 1;
    data := coalesce(data, '[]');
    return next;
end
$$;
