// PM2: `pm2 start ecosystem.config.js`. Settings come from `.env` in this folder, which the worker reads by itself.
module.exports = {
  apps: [
    {
      name: "queue-worker",
      cwd: __dirname,
      script: ".venv/bin/queue-worker", // relative: PM2 hands an absolute path with a space in it to a shell
      args: "start",
      interpreter: "none",
      exec_mode: "fork", // more workers: QUEUE_WORKER_PROCESSES, or raise `instances`; they share the queues
      instances: 1,

      // PM2 stops with SIGINT and kills after kill_timeout, which must be longer than the grace (25 s).
      kill_timeout: 30000,
      env: { QUEUE_WORKER_STOP_TIMEOUT: "30" },

      // 78: configuration or schema, which a restart cannot mend. 0 must not stand here: PM2 takes a kill -9 (and so
      // the out-of-memory killer) for exit code 0 and would leave the worker down. `pm2 stop` stops it all the same.
      // PM2 7.0 lists a worker that it leaves alone as "waiting restart", because of the backoff; it does not restart it.
      autorestart: true,
      stop_exit_codes: [78],
      exp_backoff_restart_delay: 100,
      max_memory_restart: "512M",

      merge_logs: true,
      time: false, // the worker's lines carry their own time; PM2's stamp would split them
    },
  ],
};
