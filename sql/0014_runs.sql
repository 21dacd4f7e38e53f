-- min_worker: 0.1.0
-- Running messages: progress, and those that were cancelled.

call queue_worker_data.lock_down();
