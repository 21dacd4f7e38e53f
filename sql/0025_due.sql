-- min_worker: 0.1.0
-- Waking without NOTIFY: over REST and behind a transaction pooler a process asks for all its queues at once.

-- When each of the queues has something to do: in `seconds`, 0 or less for now; no row for a queue where nothing is known
-- of, or that is not there. A look costs the same however much is delayed or running. A queue that is paused, or whose
-- breaker is open, has nothing to do. Among the queues 'schedules changed', which no queue can be called, stands for the
-- schedules.
create function queue_worker_data.due(queues text[]) returns table (queue text, seconds double precision)
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := pg_catalog.clock_timestamp();
    one record;
    first_at timestamptz;
begin
    if 'schedules changed' = any (due.queues) then
        return query
            select 'schedules changed', pg_catalog.date_part('epoch',
                min(greatest(coalesce(s.next_fire_at, read_at), coalesce(s.retry_at, read_at))) - read_at)
            from queue_worker_data.schedules s where s.enabled having count(*) > 0;
    end if;
    for one in
        select n.name, q.ordered, q.paused_at, q.broken_until
        from pg_catalog.unnest(due.queues) n (name)
        left join queue_worker_data.queues q on q.queue = n.name
        where pg_catalog.to_regclass(pg_catalog.format('pgmq.%I', 'q_' || n.name)) is not null
    loop
        continue when one.paused_at is not null;
        if one.ordered then
            first_at := queue_worker_data.first_due_ordered(one.name, read_at);
        else
            execute pg_catalog.format('select m.vt from pgmq.%I m where m.vt < ''infinity'' order by m.vt limit 1',
                'q_' || one.name) into first_at;
        end if;
        continue when first_at is null;
        queue := one.name;
        seconds := pg_catalog.date_part('epoch', greatest(first_at, one.broken_until, '-infinity') - read_at);
        return next;
    end loop;
exception when undefined_table or insufficient_privilege then
    -- A queue that is dropped at this moment, or is not ours: its loop says so.
    return;
end $$;

-- The earliest time at which a group, or a message without one, is due; bells that a claim has not folded in yet are due
-- at once.
create function queue_worker_data.first_due_ordered(queue text, read_at timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
    first_at timestamptz;
begin
    if exists (select from queue_worker_data.bells b where b.queue = first_due_ordered.queue) then
        return read_at;
    end if;
    execute pg_catalog.format(
        'select least(
             (select g.due_at from queue_worker_data.groups g
              where g.queue = $1 and g.due_at < ''infinity'' order by g.due_at limit 1),
             (select m.vt from pgmq.%I m where (m.headers ? ''group_key'') is not true and m.vt < ''infinity''
              order by m.vt limit 1))', 'q_' || queue) into first_at using queue;
    return first_at;
end $$;

-- for: worker
create function queue_worker.due(queues text[]) returns table (queue text, seconds double precision)
language sql stable set search_path = '' as $$
    select * from queue_worker_data.due(due.queues);
$$;

call queue_worker_data.allow('queue_worker', array['due']);

call queue_worker_data.lock_down();
