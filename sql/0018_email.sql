-- min_worker: 0.1.0
-- Mail over an HTTP provider: the ledger of 0003 serves it as it is.

call queue_worker_data.lock_down();
