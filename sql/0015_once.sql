-- min_worker: 0.1.0
-- The ledger of outside calls.

call queue_worker_data.lock_down();
