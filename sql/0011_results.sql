-- min_worker: 0.1.0
-- Results that are kept, and batches with a follow-up. See docs/sql.md, "Results and follow-ups".

create function queue_worker_data.open_batch(queue text, total int, then_queue text, then_payload jsonb) returns jsonb
language plpgsql set search_path = '' as $$
begin
    raise exception 'then_queue is not available yet' using errcode = '0A000';
end $$;

call queue_worker_data.lock_down();
