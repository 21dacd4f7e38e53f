"""The HTTP API and the dashboard: thin routes over the SQL functions that everybody else calls."""

from queue_worker.api.application import create_api, mount_api

__all__ = ["create_api", "mount_api"]
