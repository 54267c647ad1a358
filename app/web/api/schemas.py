"""Schemas of the read API."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from app.cohorts import CompletenessState, FreshnessState, IncompleteReason, Status, VerifiedBy
from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.cohorts.freshness import MAX_CADENCE_SECONDS, MIN_CADENCE_SECONDS
from app.web.http.cursors import (
    EARLIEST,
    LATEST,
    LIST_SORTS,
    ListCursor,
    MemberCursor,
    StreamCursor,
    close_cursor,
)
from app.web.http.fields import Base, Query, Whole, user_ids_field
from app.web.http.replies import Reply, count, ms, text, yes_or_no

MAX_MEMBERS, DEFAULT_MEMBERS = 10_000, 1000

MAX_CHANGES, DEFAULT_CHANGES = 1000, 100

MAX_COHORTS, DEFAULT_COHORTS = 1000, 100

# A trait name for examples.
EXAMPLE_TRAIT = "[Amplitude] Power users: abc123"


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
            value = int(value)  # JSON has one kind of number: 60.0 is 60
        return super()._deserialize(value, attr, data, **kwargs)


class CohortOfUser(Reply):
    """A cohort that a user is in."""

    id = text("The cohort's id.", example="abc123")
    trait = text("The trait name, as in the user's hash in the store.", example=EXAMPLE_TRAIT)
    since = ms("Time of entry")


class UserReply(Reply):
    """A user's traits and cohorts."""

    userId = text("The user's id.", example="user1@example.com")
    traits = fields.Dict(
        keys=fields.String(),
        values=fields.Boolean(truthy={True}, falsy={False}),
        required=True,
        metadata={
            "description": "Trait names, and whether the user has the trait.",
            "example": {EXAMPLE_TRAIT: True},
        },
    )
    cohorts = fields.List(fields.Nested(CohortOfUser), required=True)


class UsersQuery(Base):
    """The requested users."""

    user_ids = user_ids_field("userIds", required=True)


class UsersReply(Reply):
    """Users, each once, in the requested order."""

    users = fields.List(fields.Nested(UserReply), required=True)


class MembershipReply(Reply):
    """Whether a user is in a cohort."""

    userId = text("The user's id.", example="user1@example.com")
    cohortId = text("The cohort's id.", example="abc123")
    member = yes_or_no("Whether the user is in it.")
    since = ms("Time of entry; null if the user is not in it", allow_none=True)


class MemberReply(Reply):
    """A member of a cohort."""

    userId = text("The user's id.", example="user1@example.com")
    since = ms("Time of entry")


class MembersAmongReply(Reply):
    """Those of the requested users who are in the cohort, each once, in the requested order."""

    cohortId = text("The cohort's id.", example="abc123")
    members = fields.List(fields.Nested(MemberReply), required=True)


class MembersQuery(Query):
    """Selects members."""

    cursor = MemberCursor(metadata={"description": "`next` of the previous page."})
    limit = Whole(
        load_default=DEFAULT_MEMBERS,
        validate=validate.Range(1, MAX_MEMBERS),
        metadata={"description": "Page size."},
    )
    entered_since = Whole(
        metadata={"description": "Only members who entered then or later, ms since the epoch."},
    )


class MembersReply(Reply):
    """Members of a cohort, by partition, then by time of entry."""

    members = fields.List(fields.Nested(MemberReply), required=True)
    next = text(
        "The cursor of the next page; null on the last one.",
        allow_none=True,
        example=close_cursor(["m", 0, 1767225600000, "user1@example.com"]),
    )


class CohortsQuery(Query):
    """Selects and sorts cohorts."""

    name = fields.String(
        validate=validate.Length(1, MAX_TRAIT_BYTES),
        metadata={"description": "Only cohorts whose trait name contains this, ignoring case."},
    )
    status = fields.Enum(
        Status, by_value=fields.String, metadata={"description": "Only cohorts with this status."}
    )
    freshness = fields.Enum(
        FreshnessState,
        by_value=fields.String,
        metadata={"description": "Only cohorts with this freshness."},
    )
    completeness = fields.Enum(
        CompletenessState,
        by_value=fields.String,
        metadata={"description": "Only cohorts in this state of completeness."},
    )
    reason = fields.Enum(
        IncompleteReason,
        by_value=fields.String,
        metadata={"description": "Only cohorts that are incomplete for this reason."},
    )
    sort = fields.String(
        load_default="id",
        validate=validate.OneOf(LIST_SORTS),
        metadata={"description": "The sort order; a leading `-` reverses it."},
    )
    cursor = ListCursor(
        metadata={"description": "`next` of the previous page."},
    )
    limit = Whole(
        load_default=DEFAULT_COHORTS,
        validate=validate.Range(1, MAX_COHORTS),
        metadata={"description": "Page size."},
    )

    @validates_schema
    def same_sort(self, data: dict[str, Any], **kwargs: Any) -> None:
        """A cursor is only valid for the sort order that it was created with."""
        if data.get("cursor") and data["cursor"][0] != data["sort"]:
            raise ValidationError("Belongs to another sort order.", "cursor")


class FreshnessReply(Reply):
    """Whether a cohort arrives as expected."""

    state = text(
        "`fresh`, `late` or `never`.",
        example="fresh",
        validate=validate.OneOf(list(FreshnessState)),
    )
    lastReceived = ms(
        "When users were last received, to the second; null for never", allow_none=True
    )
    cadence = count(
        "Time from sync to sync in ms; null if unknown.", allow_none=True, example=3600000
    )
    cadenceSource = text(
        "`learned` or `set`; null if the cadence is unknown.",
        example="learned",
        allow_none=True,
        validate=validate.OneOf(["learned", "set"]),
    )
    lateAfter = ms("When it becomes late; null if unknown", allow_none=True)


class ReasonReply(Reply):
    """Why a cohort is incomplete."""

    reason = text(
        "The reason.", example="store_lost", validate=validate.OneOf(list(IncompleteReason))
    )
    since = ms("Since when")
    count = count("How many events caused it, such as failed requests.", example=1)


class UpstreamReply(Reply):
    """Amplitude's own record of a cohort."""

    size = count("Users, including anonymous ones; null if unknown.", allow_none=True, example=6512)
    computedAt = ms("When it was counted; null if unknown", allow_none=True)
    anonymous = count(
        "Anonymous users, who are never synced; null if unknown.", allow_none=True, example=12
    )
    frequency = text(
        "How often it is synced, such as `minute`, `hourly` or `daily`; null without a sync.",
        allow_none=True,
        example="hourly",
    )
    lastSuccess = ms("Its last successful sync; null if unknown", allow_none=True)
    lastFailure = ms("Its last failed sync; null if unknown", allow_none=True)


class CompletenessReply(Reply):
    """Whether a cohort's members are known to be right: none missing, none stale."""

    state = text(
        "`verified`, `unverified` or `incomplete`.",
        example="verified",
        validate=validate.OneOf(list(CompletenessState)),
    )
    reasons = fields.List(
        fields.Nested(ReasonReply),
        required=True,
        metadata={"description": "Why it is incomplete; empty if it is not."},
    )
    verifiedAt = ms("When it was last verified; null for never", allow_none=True)
    verifiedBy = text(
        "What verified it then; null for never.",
        allow_none=True,
        example="resync",
        validate=validate.OneOf(list(VerifiedBy)),
    )
    leftOut = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(strict=True),
        required=True,
        metadata={
            "description": "Users skipped since the last verification, by reason.",
            "example": {"invalid_user_id": 3},
        },
    )
    upstream = fields.Nested(
        UpstreamReply,
        required=True,
        allow_none=True,
        metadata={"description": "Amplitude's own record; null if it has not been read."},
    )


class CohortReply(Reply):
    """A cohort in a list."""

    id = text("The cohort's id.", example="abc123")
    trait = text("The current trait name.", example=EXAMPLE_TRAIT)
    status = text(
        "Whether a rename or deletion is in progress.",
        example="active",
        validate=validate.OneOf(list(Status)),
    )
    members = count("Current number of members.", example=41234)
    freshness = fields.Nested(FreshnessReply, required=True)
    completeness = fields.Nested(CompletenessReply, required=True)


class CohortsReply(Reply):
    """Cohorts. A page may be short or empty without being the last."""

    cohorts = fields.List(fields.Nested(CohortReply), required=True)
    next = text(
        "The cursor of the next page; null on the last one.",
        allow_none=True,
        example=close_cursor(["l", "id", "abc123", "abc123"]),
    )


class EarlierName(Reply):
    """An earlier trait name of a cohort."""

    trait = text("The trait name.", example="[Amplitude] Heavy users: abc123")
    until = ms("When it was replaced")


class CohortDetailReply(CohortReply):
    """A cohort with its counts, sources and earlier names."""

    firstSeen = ms("When it was first received or imported")
    entered = count("How often users have entered, in total.", example=50000)
    left = count("How often users have left, in total.", example=8766)
    sources = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(strict=True),
        required=True,
        metadata={
            "description": "Its sources, with the time of the last request, ms since the epoch.",
            "example": {"identify": 1767225600000},
        },
    )
    earlierNames = fields.List(fields.Nested(EarlierName), required=True)


class CadenceBody(Base):
    """How often a cohort is expected to arrive."""

    seconds = Seconds(
        required=True,
        metadata={"description": "Time from sync to sync in seconds.", "example": 3600},
    )


class ChangesQuery(Query):
    """Selects changes."""

    cursor = StreamCursor(
        load_default=EARLIEST,
        metadata={
            "description": "`next` of the previous page; `earliest` for all stored changes, "
            "`latest` for new ones."
        },
    )
    limit = Whole(
        load_default=DEFAULT_CHANGES,
        validate=validate.Range(1, MAX_CHANGES),
        metadata={"description": "Page size."},
    )


class StreamQuery(Query):
    """Selects changes."""

    cursor = StreamCursor(
        load_default=LATEST,
        metadata={"description": "Where to begin. A Last-Event-ID header takes precedence."},
    )


class ChangeReply(Reply):
    """Users who entered or left a cohort together."""

    cohortId = text("The cohort's id.", example="abc123")
    change = text("What they did.", example="entered", validate=validate.OneOf(["entered", "left"]))
    at = ms("The sender's timestamp, or else the time of arrival")
    userIds = fields.List(
        fields.String(),
        required=True,
        metadata={
            "description": "The users, at most 1,000.",
            "example": ["user1@example.com", "user2@example.com"],
        },
    )


class JsonText(fields.String):
    """A string that holds JSON."""

    def json_schema(self) -> dict[str, Any]:
        return {"contentMediaType": "application/json"}


class EventReply(Reply):
    """An event. `position` comes first, then a `change` for each entry of the stream.

    `cursor_expired` ends a stream whose changes are no longer available.
    """

    id = fields.String(
        metadata={
            "description": "The cursor of the next event. `cursor_expired` has none.",
            "example": close_cursor(["c", "1767225600000-0"]),
        }
    )
    event = text(
        "The kind of event.",
        example="change",
        validate=validate.OneOf(["position", "change", "cursor_expired"]),
    )
    retry = fields.Integer(
        strict=True,
        metadata={
            "description": "In the first event: how many ms to wait before reconnecting.",
            "example": 1000,
        },
    )
    data = JsonText(
        required=True,
        metadata={
            "description": "JSON. For `change`: the change, as in pages of changes. For "
            "`position`: `next`, the cursor of the next event. For `cursor_expired`: `reason` and "
            "`detail`, as in error replies.",
            "example": '{"cohortId":"abc123","change":"entered","at":1767225600000,'
            '"userIds":["user1@example.com"]}',
        },
    )


class ChangesReply(Reply):
    """Changes, and the cursor of the next ones."""

    changes = fields.List(fields.Nested(ChangeReply), required=True)
    more = yes_or_no("Whether more changes are available now.", example=False)
    next = text(
        "The cursor of the next changes, present or future.",
        example=close_cursor(["c", "1767225600000-0"]),
    )


class StreamHeaders(Query):
    """Headers of a client that reconnects."""

    last_event_id = StreamCursor(
        data_key="Last-Event-ID",
        metadata={
            "description": "The id of the last received event. Takes precedence over `cursor`."
        },
    )
