"""What calls that write say."""

from __future__ import annotations

from marshmallow import fields

from app.web.http.replies import ProblemReply, Reply, count, text


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
