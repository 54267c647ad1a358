"""What calls answer: what all replies share, errors, and what calls that write say."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields


class Reply(Schema):
    """A reply: all that it holds, and nothing else."""

    class Meta:
        unknown = RAISE


def text(description: str, **kwargs: Any) -> fields.String:
    """A string in replies. ``example`` is one that the API's description shows."""
    return fields.String(required=True, metadata=_metadata(description, kwargs), **kwargs)


def ms(description: str, **kwargs: Any) -> fields.Integer:
    """A time in replies, in ms since the epoch."""
    kwargs.setdefault("example", 1767225600000)
    return count(f"{description}, ms since the epoch.", **kwargs)


def count(description: str, **kwargs: Any) -> fields.Integer:
    """A whole number in replies."""
    kwargs.setdefault("example", 2)
    return fields.Integer(
        required=True, strict=True, metadata=_metadata(description, kwargs), **kwargs
    )


def yes_or_no(description: str, **kwargs: Any) -> fields.Boolean:
    """True or false in replies."""
    kwargs.setdefault("example", True)
    metadata = _metadata(description, kwargs)
    return fields.Boolean(required=True, truthy={True}, falsy={False}, metadata=metadata, **kwargs)


def _metadata(description: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    example = {"example": kwargs.pop("example")} if "example" in kwargs else {}
    return {"description": description, **example}


class ErrorPlace(Reply):
    """What is wrong at one place of a request."""

    place = text(
        "Where: names and numbers from the outside in, joined by dots.", example="batch.0.userId"
    )
    message = text("What is wrong there.", example="Must not be empty.")


class ProblemReply(Reply):
    """A problem document (RFC 9457)."""

    type = text("Always `about:blank`: `reason` says more.", example="about:blank")
    title = text("The status in words.", example="Bad Request")
    status = count("The status.", example=400)
    reason = text("Which problem it is, for machines. The log line has it too.")
    detail = text("What is wrong and what to do about it, for people.")
    request_id = text("The request's id, as in `X-Request-ID` and in the log line.")
    errors = fields.List(
        fields.Nested(ErrorPlace),
        metadata={"description": "What is wrong at each place; at most 50."},
    )


class SegmentProblemReply(ProblemReply):
    """A problem document with what the Segment protocol's libraries read."""

    code = fields.String(metadata={"description": "The reason again."})
    message = fields.String(metadata={"description": "The detail again."})


class Rejected(Reply):
    """Something of a request that was left out."""

    place = text("Where it stands in the request.", example="batch.17.userId")
    reason = text("Why, for machines.", example="unknown_user")
    message = text("Why, for people.", example="The user is not registered here.")


class AppliedReply(Reply):
    """What happened. It is sent when the store has acknowledged all of it."""

    accepted = count("Identify calls, or users, that were applied.", example=1000)
    changed = count("Users for whom something is different now; 0 for a repeat.", example=997)
    rejected = count("Identify calls, or users, that were left out.", example=1)
    errors = fields.List(
        fields.Nested(Rejected),
        required=True,
        metadata={
            "description": "What was left out, and why; at most 50. Also a trait of a call that "
            "was accepted, where its cohort is being deleted."
        },
    )


class ListIds(Reply):
    """The id of a list, under the names that Amplitude may look for."""

    list_id = text("The list's id, which is the cohort's id.", example="abc123")
    listId = text("The same.", example="abc123")


class ListReply(ListIds):
    """A list, made or found again."""

    response = fields.Nested(ListIds, required=True)


class DeletingReply(Reply):
    """A cohort whose deletion has begun."""

    cohort_id = text("The cohort's id.", example="abc123")
    status = text("Always `deleting`.", example="deleting")


class ErasedReply(Reply):
    """What was erased with a user."""

    traits = count("Traits that the user had.")
    stream_entries_removed = count("Entries of the change stream about this user alone.")
    stream_entries_kept = count("Entries that name others too; they leave the stream by age.")
    suppressed = yes_or_no("Whether the user is kept out for good.", example=False)


class UnsuppressedReply(Reply):
    """A user who may come in again."""

    removed = yes_or_no("Whether the user was suppressed before.")


class RegisteredReply(Reply):
    """How many users were registered."""

    registered = count("Users who were not registered before.")


class AliveReply(Reply):
    """The process answers."""

    status = text("Always `ok`.", example="ok")


class CohortCounts(Reply):
    """How many cohorts are in each state of freshness, of the first hundred apps."""

    fresh = count("Cohorts that arrive as expected.", example=12)
    late = count("Cohorts that should have arrived again.", example=1)
    never = count("Cohorts that never arrived.", example=0)


class ReadyReply(Reply):
    """The store answers."""

    status = text("Always `ready`.", example="ready")
    store_ms = fields.Float(
        required=True, metadata={"description": "How long the store took, ms.", "example": 0.31}
    )
    cohorts = fields.Nested(CohortCounts, required=True)
