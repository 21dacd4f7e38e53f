-- min_worker: 0.1.0
-- Payments: refund, capture, webhook, resolve.

call queue_worker_data.lock_down();
