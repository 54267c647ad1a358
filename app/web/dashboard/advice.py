"""What each reason means, and what to do about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from app.cohorts import IncompleteReason


class Advice(NamedTuple):
    """An explanation of a reason, for operators.

    Attributes:
        meaning: what happened.
        action: what to do about it.
        action_now: for store errors, what to do while the store is still failing.
    """

    meaning: str
    action: str
    action_now: str = ""


# Every reason for which a sender's request can fail, or a user can be left out.
ADVICE = {
    "invalid_json": Advice(
        "The body is not valid JSON.",
        "Check the webhook template in Amplitude: a quote or comma may be missing, or a cohort "
        "name contains a quote that the template does not escape.",
    ),
    "invalid_encoding": Advice(
        "The body was truncated or is not valid gzip.",
        "If this persists, look for a proxy in front of the service that modifies or truncates "
        "bodies.",
    ),
    "invalid_payload": Advice(
        "The body is JSON but does not match what this call accepts. Nothing was written.",
        "Compare the payload template in Amplitude with the one in the setup guide.",
    ),
    "invalid_parameter": Advice(
        "The URL contains an invalid id.",
        "Check the URLs in the Amplitude destination.",
    ),
    "unsupported_type": Advice(
        "Not an identify call, so it says nothing about cohorts.",
        "Harmless. To save traffic, send only identify calls.",
    ),
    "no_cohort_traits": Advice(
        "The identify call has no trait that is true or false, so it says nothing about cohorts.",
        "Harmless. To save traffic, send only traits that stand for cohorts.",
    ),
    "missing_credentials": Advice(
        "No API key was sent.",
        "Enter the key in Amplitude: in a destination as the username, without a password; in a "
        "cohort webhook as the header api_key.",
    ),
    "invalid_credentials": Advice(
        "The API key is unknown or does not belong to the app in app_id.",
        "The key in Amplitude (in a destination the username, in a cohort webhook the header "
        "api_key) must be one of API_KEYS, or one printed by cohort-receiver keys create. Was a "
        "key rotated?",
    ),
    "expired_key": Advice(
        "The API key has expired.",
        "Create a new key and enter it in the Amplitude destination.",
    ),
    "revoked_key": Advice(
        "The API key was revoked.",
        "If this was intended, remove the sender. Otherwise create a new key and enter it in the "
        "Amplitude destination.",
    ),
    "https_required": Advice(
        "The request was sent over plain HTTP.",
        "Enter the URL with https:// in the Amplitude destination, and replace the key: it was "
        "sent unencrypted.",
    ),
    "missing_scope": Advice(
        "The API key is valid but may not send cohorts.",
        "Enter a key with scope ingest in the Amplitude destination.",
    ),
    "not_found": Advice(
        "There is no such path.",
        "Check the address in the Amplitude destination or cohort webhook. The log names the key "
        "that was sent.",
    ),
    "method_not_allowed": Advice(
        "The path exists but does not accept this method.",
        "Send cohorts with POST. The log names the path, and the key that was sent.",
    ),
    "invalid_user_id": Advice(
        "The user id is missing, blank, too long or otherwise invalid.",
        "Check which user property the Amplitude destination sends as the user id. Users without "
        "it can't be stored.",
    ),
    "unknown_user": Advice(
        "The user is not registered, and USER_POLICY=known adds only registered users.",
        "Register the users, or set USER_POLICY=open. The sync's page lists them for "
        "administrators, as a file for cohort-receiver users register.",
    ),
    "suppressed_user": Advice(
        "The user was erased and is suppressed.",
        "Nothing to do. To accept the user again, end the suppression (cohort-receiver users "
        "unsuppress).",
    ),
    "unknown_cohort": Advice(
        "There is no list with this id.",
        "Amplitude creates a list before filling it. If the store has been emptied since, set up "
        "the destination again so that Amplitude creates a new list.",
    ),
    "cohort_being_deleted": Advice(
        "The cohort is being deleted and accepts no changes.",
        "Changes sent after the deletion create it again. To prevent that, remove the sync in "
        "Amplitude.",
    ),
    "body_timeout": Advice(
        "The body did not arrive in time.",
        "If this persists, the network is slow or BODY_TIMEOUT_SECONDS is too short.",
    ),
    "body_too_large": Advice(
        "The body is larger than this service accepts.",
        "Reduce the batch size in the Amplitude destination, or raise MAX_BODY_BYTES.",
    ),
    "unsupported_media_type": Advice(
        "The Content-Type is not JSON in UTF-8.",
        "Set the header Content-Type: application/json in the Amplitude destination.",
    ),
    "rate_limited": Advice(
        "Too many requests for RATE_LIMIT or APP_RATE_LIMIT.",
        "Amplitude retries later, so nothing is lost. If syncs take too long, raise the limit or "
        "the batch size.",
    ),
    "internal_error": Advice(
        "An error in this service.",
        "Amplitude retries the request. Search the log for the request id and report the error.",
    ),
    "store_unreachable": Advice(
        "The store could not be reached.",
        "Amplitude retries, so nothing is lost if the store is back soon. See Health.",
        "Check that the store is running and that REDIS_URL points to it.",
    ),
    "store_timeout": Advice(
        "The store did not respond in time.",
        "Amplitude retries. If this persists, the store is overloaded or too far away.",
        "If this persists, the store is overloaded or too far away.",
    ),
    "store_loading": Advice(
        "The store was starting or failing over.",
        "Amplitude retries. This resolves itself.",
        "This resolves itself.",
    ),
    "store_held": Advice(
        "Writes are on hold while the store is copied or moved.",
        "Amplitude retries. If nobody is moving the store, release it (cohort-receiver store "
        "release).",
        "If nobody is moving the store, release it (cohort-receiver store release).",
    ),
    "store_full": Advice(
        "The store is full and rejects writes.",
        "Add memory, or delete cohorts that are no longer needed. See Health.",
        "Add memory, or delete cohorts that are no longer needed.",
    ),
    "store_read_only": Advice(
        "The store accepts no writes: it cannot save to disk, or lacks replicas.",
        "Amplitude retries. The store's log names the cause: MISCONF or NOREPLICAS.",
        "The store's log names the cause: MISCONF or NOREPLICAS.",
    ),
    "store_misconfigured": Advice(
        "The store is misconfigured.",
        "Search the log for the request id: detail and store_reported name the cause.",
        "The log names the cause in detail and store_reported.",
    ),
    "cohort_partly_deleted": Advice(
        "The deletion of a cohort began while the request was applied.",
        "Amplitude retries. A retry after the deletion creates the cohort again.",
        "Later requests create the cohort again.",
    ),
    "store_not_replicated": Advice(
        "The store applied the write, but too few replicas confirmed it in time.",
        "Amplitude retries. If this persists, check the replicas.",
        "If this persists, check the replicas.",
    ),
    "store_error": Advice(
        "The store rejected a command.",
        "Search the log for the request id: store_reported names the cause.",
        "The log names the cause in store_reported.",
    ),
}
_UNKNOWN_REASON = Advice("Unknown reason.", "Search the log for the request id.")
# The first error of an invalid payload that only holds too many users.
_TOO_MANY_USERS = re.compile(r"ust hold at most ([\d,]+) users\.$")


def advice(reason: str, detail: str = "") -> Advice:
    """The advice for a reason; ``detail`` is the first error of the request, if it is known."""
    if reason == "invalid_payload" and (found := _TOO_MANY_USERS.search(detail)):
        return Advice(
            f"The request holds more than {found[1]} users. Nothing was written.",
            f"Lower the batch size in Amplitude to {found[1]} or less, or raise MAX_BATCH_USERS. "
            "Cohort webhooks have no batch size: for them, raise MAX_BATCH_USERS.",
        )
    return ADVICE.get(reason, _UNKNOWN_REASON)


# What each reason why a cohort is incomplete means; docs/completeness.md has the steps.
_REPLACE = (
    "Replace the members: open a resync and send everything again from Amplitude, or import a "
    "file, or, with AMPLITUDE_KEYS, compare with Amplitude."
)
INCOMPLETE_ADVICE = {
    IncompleteReason.STORE_LOST: Advice(
        "The store lost its data; only differences have arrived since.", _REPLACE
    ),
    IncompleteReason.STORE_SET_BACK: Advice(
        "The store went back to an earlier state, and changes since then are missing.", _REPLACE
    ),
    IncompleteReason.SYNC_FAILED: Advice(
        "A request failed, and no retry succeeded.",
        "Fix the cause, which the page of the failed sync shows. The next sync that succeeds "
        "clears this and resends what failed. But if other requests of the failed sync succeeded, "
        "Amplitude may count it as successful and resend nothing: then replace the members.",
    ),
    IncompleteReason.DELETED_HERE: Advice(
        "The cohort was deleted here, and only differences have arrived since.", _REPLACE
    ),
    IncompleteReason.COUNT_DIFFERS: Advice(
        "Its number of members differs from Amplitude's count.",
        "On the cohort's page, Compare with Amplitude shows who is missing and who is extra.",
    ),
}


def incomplete_advice(reason: IncompleteReason) -> Advice:
    return INCOMPLETE_ADVICE[reason]
