"""The template of docs/amplitude-setup.md, filled in by the real FreeMarker, is what we take."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from simulator.payloads import WEBHOOK_PATH
from tests.support.effort import thorough
from tests.support.polling import DEADLINE
from tests.support.service import APP, ROOT, Service
from tests.support.stores import empty

PAGE = ROOT / "docs" / "amplitude-setup.md"
RENDER = Path(__file__).with_name("Render.java")
JAR = Path(os.environ.get("FREEMARKER_JAR", "/usr/share/java/freemarker.jar"))

NAMES = [
    "Power users",
    "",
    " ",
    '"quoted", "twice"',
    "it's",
    "back\\slash \\n \\u0041 \\",
    "line\nbreak\r\nand\ttab",
    "a: b: c:",
    "<b>",
    "</script><!-- x --> ]]> & &amp;",
    "${x} #{y} <#if x> ${input.cohort_id} [=z]",
    "🎉 👩‍👩‍👧 naïve 日本語 \U0010ffff",
    "line\u2028and\u2029paragraph \x7f\x85\xa0\ufeff\ufffe",
    "".join(map(chr, range(1, 32))),
    "1,000.5",
    "true",
    "x" * 492,
    "é" * 246,
]
USER_IDS = ["a@example.com", 'o"brien', "back\\slash", "</a>", "${y}", "12345", "🎉", "a\nb\u2028"]


class Message(NamedTuple):
    """What Amplitude fills in."""

    name: str
    member: bool
    user_ids: Sequence[str | int | None] = USER_IDS
    cohort_id: str | int = "abc123"
    message_id: str = '9baaa88f-9d46-4ee5-a946-be0c6aea0046::enter::0 "x"'
    computed_time: int | None = None


Render = Callable[..., list[bytes]]


def template() -> str:
    """The one fenced block of the page that is marked as a template."""
    (found,) = re.findall(r"^```freemarker\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return found


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Fill in the page's template, by the real engine."""
    missing = missing_engine()
    if missing:
        pytest.skip(f"{missing}; Debian has it in libfreemarker-java and default-jdk-headless")

    classes = tmp_path_factory.mktemp("classes")
    subprocess.run(["javac", "-cp", str(JAR), "-d", str(classes), str(RENDER)], check=True)

    def run(messages: Sequence[Message], ftl: str | None = None) -> list[bytes]:
        now = str(int(time.time()))
        rows: list[list[str | int | None]] = [[ftl or template()]]
        for name, member, user_ids, cohort_id, message_id, at in messages:
            rows.append([name, cohort_id, str(member).lower(), at or now, message_id, *user_ids])
        lines = [",".join(map(field, row)) for row in rows]
        done = subprocess.run(
            ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{JAR}:{classes}", RENDER.stem],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        return [b64decode(line) for line in done.stdout.split()]

    return run


def field(value: str | int | None) -> str:
    """A value as Render.java reads it."""
    if value is None:
        return "-"
    return f"#{value}" if isinstance(value, int) else b64encode(value.encode()).decode()


def missing_engine() -> str:
    """What of it isn't there, in a few words."""
    if not JAR.exists():
        return f"FreeMarker ({JAR}) is missing"
    missing = [name for name in ("java", "javac") if not shutil.which(name)]
    return f"{missing[0]} is missing" if missing else ""


def stored(client: redis.Redis) -> dict[str, dict[str, str]]:
    prefix = f"cohorts:{{{APP}}}:user:"
    return {
        key.removeprefix(prefix): client.hgetall(key)
        for key in client.scan_iter(match=prefix + "*", count=10_000)
    }


def test_template__with_any_name__sets_the_trait_of_that_name(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    messages = [Message(name, member) for name in NAMES for member in (True, False)]
    for (name, member, *_), body in zip(messages, render(messages), strict=True):
        empty(redis_client)
        reply = service.post(body, WEBHOOK_PATH)
        assert (reply.status, reply.json()["accepted"]) == (200, len(USER_IDS)), (name, body)
        trait = f"[Amplitude] {name}: abc123"
        assert stored(redis_client) == {user: {trait: str(member).lower()} for user in USER_IDS}


@thorough
def test_template__with_user_ids_of_every_character__keeps_them(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    """All of the basic plane, and some of the others; NUL and lone surrogates are no user ids."""
    points = [*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 1009)]
    user_ids = ["".join(map(chr, points[i : i + 200])) for i in range(0, len(points), 200)]
    (body,) = render([Message("n", True, user_ids)])
    reply = service.post(body, WEBHOOK_PATH)
    assert (reply.status, reply.json()["changed"]) == (200, len(user_ids))
    assert set(stored(redis_client)) == set(user_ids)


def test_template__with_users_without_an_id__skips_them_alone(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    empty(redis_client)
    some, nobody = render([Message("n", True, [None, "a", None, "b"]), Message("n", True, [None])])
    reply = service.post(some, WEBHOOK_PATH)
    assert (reply.status, reply.json()["accepted"], reply.json()["rejected"]) == (200, 2, 2)
    assert [e["place"] for e in reply.json()["errors"]] == ["users.0.user_id", "users.2.user_id"]
    assert set(stored(redis_client)) == {"a", "b"}
    reply = service.post(nobody, WEBHOOK_PATH)
    assert (reply.status, reply.json()["reason"]) == (404, "invalid_user_id")
    with pytest.raises(AssertionError, match=re.escape("user.user_id")):
        render([Message("n", True, [None])], template().replace('!""', ""))


def test_template__with_numbers__prints_them_without_separators(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    empty(redis_client)
    message = Message("n", True, [1234567, "a"], 7654321, "m", int(time.time()))
    (body,) = render([message])
    assert service.post(body, WEBHOOK_PATH).json()["changed"] == 2
    trait = "[Amplitude] n: 7654321"
    assert stored(redis_client) == {"1234567": {trait: "true"}, "a": {trait: "true"}}


@pytest.mark.parametrize("quotes", [True, False])
def test_template__that_prints_numbers_with_separators__is_refused_with_the_cause(
    render: Render, service: Service, quotes: bool
) -> None:
    ftl = "".join(line for line in template().splitlines(keepends=True) if "<#setting" not in line)
    if not quotes:
        ftl = ftl.replace('"${input.computed_time?json_string}"', "${input.computed_time}")
    (body,) = render([Message("n", True, ["a"], computed_time=int(time.time()))], ftl)
    reply = service.post(body, WEBHOOK_PATH)
    assert reply.status == 400
    assert "thousands separators" in str(reply.json())
    assert "?c" in str(reply.json())


def test_template__of_one_user_or_none__is_valid(render: Render, service: Service) -> None:
    for count, body in enumerate(render([Message("n", True, USER_IDS[:n]) for n in (0, 1)])):
        reply = service.post(body, WEBHOOK_PATH)
        assert (reply.status, reply.json()["accepted"]) == (200, count)


def test_template__without_its_escapes__breaks_on_a_quote(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    """As Amplitude's default does; so the escapes are what the other tests are about."""
    ftl = template().replace("?json_string", "")
    plain, quoted = render([Message("n", True, ["u"], "1", "m"), Message('"n"', True)], ftl)
    assert service.post(plain, WEBHOOK_PATH).json()["changed"] == 1
    reply = service.post(quoted, WEBHOOK_PATH)
    assert (reply.status, reply.json()["reason"]) == (400, "invalid_json")


def test_template__passes_on_time_and_message_id(render: Render, service: Service) -> None:
    (body,) = render([Message("n", True, message_id="1::enter::0")])
    assert abs(int(json.loads(body)["computed_time"]) - time.time()) < 60
    assert json.loads(body)["message_id"] == "1::enter::0"
    assert [service.post(body, WEBHOOK_PATH).json()["changed"] for _ in range(2)] == [8, 0]


def test_template__with_a_name_that_is_too_long__is_refused_with_its_place(
    render: Render, service: Service, redis_client: redis.Redis
) -> None:
    (body,) = render([Message("x" * 600, True)])
    reply = service.post(body, WEBHOOK_PATH)
    assert (reply.status, [e["place"] for e in reply.json()["errors"]]) == (400, ["cohort_name"])
    assert stored(redis_client) == {}
