"""Replies of sources: the form that identify, list and webhook share, and its schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flask import Response
from marshmallow import Schema, fields

from app.errors import Problem, render
from app.web.http.replies import ProblemReply, Reply, count, json_reply, text
from app.web.ingest.apply import Result


class RejectedReply(Reply):
    """Part of a request that was not applied."""

    place = text("Where it is in the request.", example="batch.17.userId")
    reason = text("Why, machine-readable.", example="unknown_user")
    message = text("Why, in words.", example="The user is not registered.")


class AppliedReply(Reply):
    """The outcome. Sent once the store has acknowledged all of it."""

    accepted = count("Identify calls, or users, that were applied.", example=1000)
    changed = count("Users whose traits or memberships changed; 0 for a repeat.", example=997)
    rejected = count("Identify calls, or users, that were not applied.", example=1)
    errors = fields.List(
        fields.Nested(RejectedReply),
        required=True,
        metadata={
            "description": "What was not applied, and why; at most 50. Includes individual traits "
            "of accepted calls if their cohort is being deleted or the user is not registered."
        },
    )


class ErrorForm(NamedTuple):
    """The form of a source's error replies: a problem document, with further members if needed.

    Attributes:
        schema: the schema of an error reply.
        members: the further members of a problem.
    """

    schema: Schema
    members: Callable[[Problem], dict[str, Any]]

    def render(self, problem: Problem) -> Response:
        """The error reply for a problem."""
        return render(problem, **self.members(problem))


PROBLEM_DOCUMENT = ErrorForm(ProblemReply(), lambda _: {})


def applied(result: Result, **members: Any) -> Response:
    """The reply about an applied request: :class:`AppliedReply`, with further members if needed."""
    document = {
        "accepted": result.accepted,
        "changed": result.changed,
        "rejected": result.rejected,
        "errors": [
            {"place": place, "reason": problem.reason, "message": problem.detail}
            for place, problem in result.skipped
        ],
        **members,
    }
    return json_reply(document)
