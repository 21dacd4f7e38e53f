"""`python -m queue_worker` is the same as `queue-worker`."""

from queue_worker.cli import main

if __name__ == "__main__":
    main()
