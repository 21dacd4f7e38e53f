"""Programs to begin with. Each is one command: `make example-mail_queue`, or `python -m examples.mail_queue`."""
