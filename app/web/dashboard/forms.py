"""What a page sends back: only from this site, and in time."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from flask import abort, g, request

from app.errors import InvalidPayload, UnsupportedMediaType
from app.services import services
from app.web.http.body import read_raw

_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 20
# A form is read before anybody has shown a key. The longest id takes a fifth of this, encoded.
_MOST_BYTES = 16 << 10


def read_form() -> dict[str, str]:
    """The fields of the form that was sent from a page of this site.

    Raises:
        Forbidden: another site sent it.
        UnsupportedMediaType, InvalidPayload: it is not a form.
        BodyTooLarge: over 16 KiB.
        BodyTimeout, InvalidEncoding: it is not there to its end.
    """
    if not _is_from_here():
        abort(403, "This form was sent from another site. Open the page again and send it there.")
    if request.mimetype != _FORM:
        raise UnsupportedMediaType(f"A form must be {_FORM}.")
    raw = read_raw(services().settings, _MOST_BYTES)
    try:
        fields = parse_qs(
            raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        raise InvalidPayload("The form can't be read.") from None
    return {name: values[-1] for name, values in fields.items()}


def read_signed_form() -> dict[str, str]:
    """The fields of a form that changes something. Raises Forbidden without the session's token."""
    form = read_form()
    if not g.session.sent(form.get("token")):
        abort(403, "This form is out of date. Open the page again and send it there.")
    return form


def _is_from_here() -> bool:
    """Whether a page of this site sends it, as browsers tell.

    What is no browser tells nothing, and acts for nobody but itself.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host
