-- min_worker: 0.1.0
-- Schedules.

call queue_worker_data.lock_down();
