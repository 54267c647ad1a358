"""The payload builder prints the document's shapes."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

from simulator import payloads

DOCUMENT_CONTEXT = {"integration": {"name": "Amplitude Cohort Sync", "version": "1.0.0"}}


def test_trait_name__plain_cohort__is_spelled_as_in_the_document() -> None:
    assert payloads.trait_name("Power: users", "a1b2") == "[Amplitude] Power: users: a1b2"


def test_identify__extra_field__stands_beside_the_documents_fields() -> None:
    assert payloads.identify("alice", "name:1", True, messageId="m") == {
        "type": "identify",
        "traits": {"name:1": True},
        "userId": "alice",
        "context": DOCUMENT_CONTEXT,
        "messageId": "m",
    }


def test_batch__two_users__is_one_identify_each() -> None:
    body = payloads.batch(["a", "b"], "name:1", False)
    assert body == {
        "batch": [payloads.identify("a", "name:1", False), payloads.identify("b", "name:1", False)]
    }


def test_batch__one_context_changed__leaves_the_others_alone() -> None:
    body = payloads.batch(["a", "b"], "name:1", False)
    body["batch"][0]["context"]["integration"]["name"] = "changed"
    assert body["batch"][1]["context"] == DOCUMENT_CONTEXT == payloads.CONTEXT


def test_lists__create_and_users__carry_the_context() -> None:
    assert payloads.list_create("n: 1") == {"name": "n: 1", "context": DOCUMENT_CONTEXT}
    assert payloads.list_users(iter(["a"])) == {"userIds": ["a"], "context": DOCUMENT_CONTEXT}


def test_webhook__time_as_number__travels_as_a_string() -> None:
    body = payloads.webhook("n", "1", ["a"], True, computed_time=1_700_000_000, message_id="m")
    assert body == {
        "cohort_name": "n",
        "cohort_id": "1",
        "in_cohort": True,
        "computed_time": "1700000000",
        "message_id": "m",
        "users": [{"user_id": "a"}],
    }
    assert json.loads(json.dumps(body)) == body


def test_message_id__same_seed__is_the_same_and_well_formed() -> None:
    first = payloads.message_id(random.Random(1), True)
    assert first == payloads.message_id(random.Random(1), True)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}::enter::0", first)
    assert "::exit::3" in payloads.message_id(random.Random(1), False, 3)


def test_user_ids__same_seed__same_distinct_ids_of_24_bytes() -> None:
    ids = payloads.user_ids(5000, seed=7)
    assert ids == payloads.user_ids(5000, seed=7)
    assert ids[:10] == payloads.user_ids(10, seed=7)
    assert len(set(ids)) == 5000
    assert {len(i.encode()) for i in ids} == {24}
    assert not set(ids) & set(payloads.user_ids(5000, seed=8))


def test_payloads__imported_alone__needs_only_the_standard_library() -> None:
    code = (
        "import sys, simulator.payloads\n"
        "foreign = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(foreign - {'simulator', '__main__'}))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
