-- min_worker: 0.1.0
-- Nobody but the owner calls a function of ours unless it is granted. It matters most for the trigger functions: they
-- run as their owner, and to_jsonb(new) runs the casts of whoever made the table. Creating a trigger needs EXECUTE,
-- firing one needs no right at all.

revoke all on all functions in schema queue_worker from public;
revoke all on all functions in schema queue_worker_data from public;

-- Supabase's default privileges grant to these roles by name, so that a revoke from public is not enough.
do $$
declare
    outsider name;
begin
    for outsider in select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated') loop
        execute pg_catalog.format('revoke all on all functions in schema queue_worker from %I', outsider);
        execute pg_catalog.format('revoke all on all functions in schema queue_worker_data from %I', outsider);
    end loop;
end $$;
