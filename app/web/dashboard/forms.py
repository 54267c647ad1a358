"""Forms: accepted only from this site, and within size and time limits."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

from flask import abort, g, request

from app.errors import InvalidPayload, UnsupportedMediaType
from app.services import services
from app.web.http.body import read_raw

_MIMETYPE = "application/x-www-form-urlencoded"
_MAX_FIELDS = 20
# The login form is read before any key is checked. The longest id, encoded twice, takes a third of
# this.
_MAX_BYTES = 16 << 10


def read_form() -> dict[str, str]:
    """The fields of the submitted form.

    Raises:
        Forbidden: it was sent from another site.
        UnsupportedMediaType, InvalidPayload: it is not a form.
        BodyTooLarge: over 16 KiB.
        BodyTimeout, InvalidEncoding: the body is incomplete.
    """
    if not _is_same_origin():
        abort(403, "This form was sent from another site. Reload the page and try again.")
    if request.mimetype != _MIMETYPE:
        raise UnsupportedMediaType(f"Content-Type must be {_MIMETYPE}.")
    raw = read_raw(services().settings, _MAX_BYTES)
    try:
        fields = parse_qs(
            raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise InvalidPayload("The form is malformed.") from None
    return {name: values[-1] for name, values in fields.items()}


def read_signed_form() -> dict[str, str]:
    """The fields of a form that changes something. Raises Forbidden without the session's token."""
    form = read_form()
    if not g.session.sent(form.get("token")):
        abort(403, "This form has expired. Reload the page and try again.")
    return form


def decoded_id(form: dict[str, str]) -> str:
    """The form's id, which is percent-encoded because browsers normalise white space in forms."""
    return unquote(form.get("id", ""))


def _is_same_origin() -> bool:
    """Whether a page of this site sent the request, according to the browser.

    Clients other than browsers send neither header. They carry no user's cookies, so no other site
    can act through them.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host
