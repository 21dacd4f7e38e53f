// PM2: `pm2 start ecosystem.config.js`. Settings come from `.env` in this folder, which both programs read themselves.
const common = {
  cwd: __dirname,
  script: ".venv/bin/queue-worker", // relative: PM2 hands an absolute path with a space in it to a shell
  interpreter: "none",
  exec_mode: "fork",

  // PM2 stops with SIGINT and kills after kill_timeout, which must be longer than the grace (25 s).
  kill_timeout: 30000,

  // `pm2 start` and `pm2 reload` return when the program says that it is ready, or after listen_timeout.
  wait_ready: true,
  listen_timeout: 20000,

  // 78: configuration or schema, which a restart cannot mend. 0 must not stand here: PM2 takes a kill -9 (and so
  // the out-of-memory killer) for exit code 0 and would leave the worker down. `pm2 stop` stops it all the same.
  // PM2 7.0 lists a worker that it leaves alone as "waiting restart", because of the backoff; it does not restart it.
  autorestart: true,
  stop_exit_codes: [78],
  exp_backoff_restart_delay: 100,

  merge_logs: true, // one file for all instances; `pm2 install pm2-logrotate` keeps it short
  time: false, // the lines carry their own time; PM2's stamp would split them
};

module.exports = {
  apps: [
    {
      ...common,
      name: "queue-worker",
      args: "start",
      instances: 1, // more of them share the queues; so do the processes of QUEUE_WORKER_PROCESSES, for less memory
      env: { QUEUE_WORKER_STOP_TIMEOUT: "30" },
      out_file: "logs/worker.log",
      error_file: "logs/worker.log",
      max_memory_restart: "512M",
    },
    {
      ...common,
      name: "queue-worker-api",
      args: "api", // 127.0.0.1, port 3001: PORT, QUEUE_WORKER_API_HOST and QUEUE_WORKER_API_TOKEN in .env
      instances: 1,
      out_file: "logs/api.log",
      error_file: "logs/api.log",
      max_memory_restart: "300M",
    },
  ],
};
