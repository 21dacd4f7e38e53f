"""The dashboard: pages made on the server, one small script, nothing from elsewhere."""

from queue_worker.api.dashboard.routes import routers

__all__ = ["routers"]
