-- min_worker: 0.1.0
-- Operators: cancel, complete, purge, drop, edit.

call queue_worker_data.lock_down();
