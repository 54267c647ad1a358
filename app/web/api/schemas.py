"""What reading calls take and give."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from app.cohorts import FreshnessState, Status
from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.cohorts.freshness import MAX_CADENCE_SECONDS, MIN_CADENCE_SECONDS
from app.web.http.cursors import (
    EARLIEST,
    LATEST,
    LIST_SORTS,
    FeedCursor,
    ListCursor,
    MemberCursor,
    close_cursor,
)
from app.web.http.fields import Base, Query, Whole, user_ids_field
from app.web.http.replies import Reply, count, ms, text, yes_or_no

MAX_MEMBERS, DEFAULT_MEMBERS = 10_000, 1000

MAX_CHANGES, DEFAULT_CHANGES = 1000, 100

MAX_COHORTS, DEFAULT_COHORTS = 1000, 100

# The cohort of the examples.
TRAIT = "[Amplitude] Power users: abc123"


class Seconds(fields.Integer):
    """A whole number of seconds, from a minute to a year."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            strict=True, validate=validate.Range(MIN_CADENCE_SECONDS, MAX_CADENCE_SECONDS), **kwargs
        )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if isinstance(value, (bool, str)):
            raise self.make_error("invalid")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON knows one kind of number: 60.0 is 60
        return super()._deserialize(value, attr, data, **kwargs)


class CohortOfUser(Reply):
    """A cohort that a user is in."""

    id = text("The cohort's id.", example="abc123")
    trait = text("The trait name, as the user's hash in the store has it.", example=TRAIT)
    since = ms("Since when the user is in it")


class UserReply(Reply):
    """A user's traits, and the cohorts that the user is in."""

    userId = text("The user's id.", example="user1@example.com")
    traits = fields.Dict(
        keys=fields.String(),
        values=fields.Boolean(truthy={True}, falsy={False}),
        required=True,
        metadata={
            "description": "Trait names, and whether the user has the trait.",
            "example": {TRAIT: True},
        },
    )
    cohorts = fields.List(fields.Nested(CohortOfUser), required=True)


class UsersQuery(Base):
    """The users that are asked for."""

    user_ids = user_ids_field("userIds", required=True)


class UsersReply(Reply):
    """Users, each once, in the order asked for."""

    users = fields.List(fields.Nested(UserReply), required=True)


class MembershipReply(Reply):
    """Whether a user is in a cohort."""

    userId = text("The user's id.", example="user1@example.com")
    cohortId = text("The cohort's id.", example="abc123")
    member = yes_or_no("Whether the user is in it.")
    since = ms("Since when the user is in it; null for who is not", allow_none=True)


class MemberReply(Reply):
    """A member of a cohort."""

    userId = text("The user's id.", example="user1@example.com")
    since = ms("Since when the user is in the cohort")


class MembersQuery(Query):
    """Which members."""

    cursor = MemberCursor(metadata={"description": "Where to go on: `next` of the page before."})
    limit = Whole(
        load_default=DEFAULT_MEMBERS,
        validate=validate.Range(1, MAX_MEMBERS),
        metadata={"description": "Members on a page, at most."},
    )
    entered_since = Whole(
        metadata={"description": "Only who entered then or later, ms since the epoch."},
    )


class MembersReply(Reply):
    """Some members of a cohort, by since when."""

    members = fields.List(fields.Nested(MemberReply), required=True)
    next = text(
        "The cursor of the next page; null on the last one.",
        allow_none=True,
        example=close_cursor(["m", 0, 1767225600000, "user1@example.com"]),
    )


class CohortsQuery(Query):
    """Which cohorts, and in which order."""

    name = fields.String(
        validate=validate.Length(1, MAX_TRAIT_BYTES),
        metadata={"description": "Only those with this in their trait name, in any case."},
    )
    status = fields.Enum(Status, by_value=fields.String, metadata={"description": "Only those."})
    freshness = fields.Enum(
        FreshnessState, by_value=fields.String, metadata={"description": "Only those."}
    )
    sort = fields.String(
        load_default="id",
        validate=validate.OneOf(LIST_SORTS),
        metadata={"description": "What to sort by; with `-`, from the greatest on."},
    )
    cursor = ListCursor(
        metadata={"description": "Where to go on: `next` of the page before."},
    )
    limit = Whole(
        load_default=DEFAULT_COHORTS,
        validate=validate.Range(1, MAX_COHORTS),
        metadata={"description": "Cohorts on a page, at most."},
    )

    @validates_schema
    def same_sort(self, data: dict[str, Any], **kwargs: Any) -> None:
        """A cursor is only good for the order that it was made in."""
        if data.get("cursor") and data["cursor"][0] != data["sort"]:
            raise ValidationError("Is of another order than sort.", "cursor")


class FreshnessReply(Reply):
    """Whether a cohort still arrives."""

    state = text(
        "`fresh`, `late` or `never`.",
        example="fresh",
        validate=validate.OneOf(list(FreshnessState)),
    )
    lastReceived = ms(
        "When users of it last came in, to the second; null for never", allow_none=True
    )
    cadence = count(
        "Time from sync to sync, ms; null while it isn't known.", allow_none=True, example=3600000
    )
    cadenceSource = text(
        "`learned` or `set`; null while it isn't known.",
        example="learned",
        allow_none=True,
        validate=validate.OneOf(["learned", "set"]),
    )
    lateAfter = ms("From when on it is late; null where that can't be told", allow_none=True)


class CohortReply(Reply):
    """A cohort, as lists show it."""

    id = text("The cohort's id.", example="abc123")
    trait = text("The current trait name.", example=TRAIT)
    status = text(
        "What is going on with it.", example="active", validate=validate.OneOf(list(Status))
    )
    members = count("Users who are in it now.", example=41234)
    freshness = fields.Nested(FreshnessReply, required=True)


class CohortsReply(Reply):
    """Some cohorts. A page may be short, or empty, and yet not be the last."""

    cohorts = fields.List(fields.Nested(CohortReply), required=True)
    next = text(
        "The cursor of the next page; null on the last one.",
        allow_none=True,
        example=close_cursor(["l", "id", "abc123"]),
    )


class EarlierName(Reply):
    """An earlier trait name of a cohort."""

    trait = text("The trait name.", example="[Amplitude] Heavy users: abc123")
    until = ms("When it was given up")


class CohortDetailReply(CohortReply):
    """A cohort with its history."""

    firstSeen = ms("When a call first named it")
    entered = count("Users who entered, in all.", example=50000)
    left = count("Users who left, in all.", example=8766)
    sources = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(strict=True),
        required=True,
        metadata={
            "description": "How it arrives, and when it last did so, ms since the epoch.",
            "example": {"identify": 1767225600000},
        },
    )
    earlierNames = fields.List(fields.Nested(EarlierName), required=True)


class CadenceBody(Base):
    """How often a cohort is expected to arrive."""

    seconds = Seconds(
        required=True, metadata={"description": "From sync to sync, in seconds.", "example": 3600}
    )


class ChangesQuery(Query):
    """Which changes."""

    cursor = FeedCursor(
        load_default=EARLIEST,
        metadata={
            "description": "Where to go on: `next` of the page before; `earliest` for all that is "
            "held, `latest` for what comes from now on."
        },
    )
    limit = Whole(
        load_default=DEFAULT_CHANGES,
        validate=validate.Range(1, MAX_CHANGES),
        metadata={"description": "Changes on a page, at most."},
    )


class StreamQuery(Query):
    """Which changes."""

    cursor = FeedCursor(
        load_default=LATEST,
        metadata={"description": "Where to begin; a Last-Event-ID header goes before it."},
    )


class ChangeReply(Reply):
    """Users who entered or left a cohort together."""

    cohortId = text("The cohort's id.", example="abc123")
    change = text("What they did.", example="entered", validate=validate.OneOf(["entered", "left"]))
    at = ms("When it was so, by the sender's time or else by its arrival")
    userIds = fields.List(
        fields.String(),
        required=True,
        metadata={
            "description": "The users who really did; at most 1,000.",
            "example": ["user1@example.com", "user2@example.com"],
        },
    )


class JsonText(fields.String):
    """A string that holds JSON."""

    def json_schema(self) -> dict[str, Any]:
        return {"contentMediaType": "application/json"}


class EventReply(Reply):
    """Each event of the stream: users who entered or left a cohort together."""

    id = text("The cursor of what follows.", example=close_cursor(["c", "1767225600000-0"]))
    event = text("Always `change`.", example="change", validate=validate.Equal("change"))
    data = JsonText(
        required=True,
        metadata={
            "description": "A change in JSON, as on the pages of changes.",
            "example": '{"cohortId":"abc123","change":"entered","at":1767225600000,'
            '"userIds":["user1@example.com"]}',
        },
    )


class ChangesReply(Reply):
    """Some changes, and where to go on."""

    changes = fields.List(fields.Nested(ChangeReply), required=True)
    more = yes_or_no("Whether there is more to read at once.", example=False)
    next = text(
        "The cursor of what follows, now or later.",
        example=close_cursor(["c", "1767225600000-0"]),
    )


class StreamHeaders(Query):
    """What a client that comes back tells."""

    last_event_id = FeedCursor(
        data_key="Last-Event-ID",
        metadata={"description": "The id of the last event that was received; before `cursor`."},
    )
