-- min_worker: 0.1.0
-- Results that are kept, and batches with a follow-up.

call queue_worker_data.lock_down();
