-- min_worker: 0.1.0
-- Pruning by age, and the settings of hot tables.

call queue_worker_data.lock_down();
