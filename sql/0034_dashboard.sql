-- min_worker: 0.1.0
-- One question every few seconds, however many pages are open: queues, workers and open alerts in one document.

create function queue_worker_data.snapshot(minutes int default 60) returns jsonb
language sql stable security definer set search_path = '' as $$
    select pg_catalog.jsonb_build_object(
        'at', pg_catalog.clock_timestamp(),
        'queues', coalesce((select pg_catalog.jsonb_agg(o order by o.queue)
            from queue_worker_data.overview(snapshot.minutes) o), '[]'),
        'workers', coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                'worker', w.worker, 'host', w.host, 'pid', w.pid, 'version', w.version, 'queues', w.queues,
                'slots', w.slots, 'busy', w.busy, 'started_at', w.started_at, 'last_seen', w.last_seen,
                'alive', w.last_seen > pg_catalog.now() - interval '45 seconds') order by w.started_at, w.worker)
            from queue_worker_data.workers w), '[]'),
        'alerts', coalesce((select pg_catalog.jsonb_agg(a order by a.fired_at)
            from queue_worker_data.list_alerts(100) a where a.cleared_at is null), '[]'));
$$;

create function queue_worker.snapshot(minutes int default 60) returns jsonb
language sql set search_path = '' as $$
    select queue_worker_data.snapshot(snapshot.minutes);
$$;

do $$
declare
    role text;
begin
    foreach role in array array['queue_worker', 'queue_reader', 'queue_operator'] loop
        call queue_worker_data.allow(role, array['snapshot']);
    end loop;
end $$;

call queue_worker_data.lock_down();
call queue_worker_data.remember();
