"""The API's description: as OpenAPI 3.1 for programs, and as a page to read and try it."""

from app.web.openapi.document import document
from app.web.openapi.views import blueprint

__all__ = ["blueprint", "document"]
