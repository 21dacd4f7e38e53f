-- min_worker: 0.1.0
-- Mail over an HTTP provider.

call queue_worker_data.lock_down();
