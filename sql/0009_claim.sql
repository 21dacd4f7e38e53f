-- min_worker: 0.1.0
-- Claims with lanes and limits.

call queue_worker_data.lock_down();
