-- Takes away what queue_worker has brought and leaves pgmq with its queues, archives and messages. Run in one transaction
-- by `queue-worker migrate --uninstall`; whoever runs it owns the tables afterwards.

do $$
declare
    owner constant name := (select pg_catalog.pg_get_userbyid(n.nspowner) from pg_catalog.pg_namespace n
                            where n.nspname = 'queue_worker_data');
    heir constant name := current_user;
    one record;
    part record;
begin
    for one in
        select c.oid, c.relname, c.relowner, pg_catalog.format('pgmq.%I', c.relname) as name
        from pg_catalog.pg_class c
        where c.relnamespace = 'pgmq'::regnamespace and c.relkind in ('r', 'p')
          and exists (select from queue_worker_data.queues q where c.relname in ('q_' || q.queue, 'a_' || q.queue))
    loop
        for part in
            select pg_catalog.format('drop trigger %I on %s', g.tgname, one.name) as command
            from pg_catalog.pg_trigger g where g.tgrelid = one.oid and g.tgname like 'queue\_worker\_%'
            union all
            select pg_catalog.format('drop policy %I on %s', p.polname, one.name)
            from pg_catalog.pg_policy p where p.polrelid = one.oid and p.polname = 'queue_owner'
            union all
            select pg_catalog.format('drop index pgmq.%I', i.relname)
            from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
            where x.indrelid = one.oid and i.relname in (one.relname || '_priority_idx', one.relname || '_group_idx',
                                                       one.relname || '_free_idx')
            union all
            select pg_catalog.format('alter table %s owner to %I', one.name, heir)
            where pg_catalog.pg_get_userbyid(one.relowner) = owner and owner <> heir
        loop
            execute part.command;
        end loop;
    end loop;

    drop schema queue_worker cascade;
    drop schema queue_worker_data cascade;

    -- Roles belong to the whole server: where another database uses one, it stays.
    for one in
        select r.rolname from pg_catalog.pg_roles r
        where r.rolname in ('queue_worker', 'queue_producer', 'queue_reader', 'queue_operator', 'queue_owner')
          -- Another environment in this database shares all but the worker's role.
          and (r.rolname = 'queue_worker' or not exists (
              select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where c.relname = 'migrations' and n.nspname like '%\_data'
                and exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid and p.proname = 'take_over')))
    loop
        begin
            execute pg_catalog.format('drop owned by %I', one.rolname);
        exception when insufficient_privilege then
            raise notice 'role % keeps its rights in this database: % may not take them', one.rolname, current_user;
        end;
        begin
            execute pg_catalog.format('drop role %I', one.rolname);
        exception when dependent_objects_still_exist or insufficient_privilege or object_in_use then
            raise notice 'role % stays: it is used elsewhere, or belongs to somebody else', one.rolname;
        end;
    end loop;
end $$;
