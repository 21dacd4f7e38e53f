"""An HTTP task service: a route of its own beside the HTTP API, in one process with the worker or apart."""
