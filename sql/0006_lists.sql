-- min_worker: 0.1.0
-- The operator's views as functions, for whoever can only call functions: the command line, on every transport.

create function queue_worker.list_queues() returns setof queue_worker.queues
language sql stable set search_path = '' as $$
    select * from queue_worker.queues;
$$;

create function queue_worker.list_workers() returns setof queue_worker.workers
language sql stable set search_path = '' as $$
    select * from queue_worker.workers w order by w.started_at, w.worker;
$$;

-- Dead letters of one queue, newest first; dead_ids narrows them down.
create function queue_worker.list_dead(queue text, dead_ids bigint[] default null, max_count int default 100)
returns setof queue_worker.dead_letters
language sql stable set search_path = '' as $$
    select * from queue_worker.dead_letters d
    where d.queue = list_dead.queue and (list_dead.dead_ids is null or d.dead_id = any (list_dead.dead_ids))
    order by d.dead_id desc limit list_dead.max_count;
$$;
