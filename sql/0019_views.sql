-- min_worker: 0.1.0
-- What operators see.

call queue_worker_data.lock_down();
