"""The OpenAI API over one `Generator`: validation, chat templates, text, streaming."""

from server.api.app import create_app
from server.api.service import ServedModel, Service

__all__ = ["ServedModel", "Service", "create_app"]
