-- min_worker: 0.1.0
-- Producers: priority, unique keys, groups, expiry.

call queue_worker_data.lock_down();
