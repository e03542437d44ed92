"""The page at `/`: static files of this package, and what they need to know before they ask for anything.

Without MLX and without the pipeline, as the launcher's front door serves it too.
"""

from server.dashboard.routes import dashboard_routes

__all__ = ["dashboard_routes"]
