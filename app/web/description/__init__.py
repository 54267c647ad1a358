"""The API's description: as OpenAPI 3.1 for programs, and as a page to read and try it."""

from app.web.description.document import document
from app.web.description.views import blueprint

__all__ = ["blueprint", "document"]
