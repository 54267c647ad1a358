"""The lookups of docs/reading.md, as printed: with an answer, and when there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import payloads
from tests.integration.reader.docs_examples import examples
from tests.support.effort import thorough
from tests.support.polling import DEADLINE
from tests.support.service import Service, running

READ_KEY = "TEST_READ_KEY"
TRAIT = "[Amplitude] Power users: abc123"
# By language: the program, how to see that what it needs is there, and the file.
COMMANDS = {
    "ruby": (["ruby"], ["-r", "redis", "-e", ""], "example.rb"),
    "php": (["php"], ["-r", "exit((int) !class_exists('Redis'));"], "example.php"),
    "java": (["java"], ["--version"], "Cohorts.java"),
    "sh": (["sh"], ["-c", "command -v curl"], "example.sh"),
}
# The timeouts are short, and the machine may be busy.
ATTEMPTS = 5


@pytest.fixture(scope="module")
def service(store_url: str) -> Iterator[Service]:
    env = {"REDIS_URL": store_url, "RATE_LIMIT": "off", "READ_API_KEYS": f"default:{READ_KEY}"}
    with running(env | {"API_KEYS": "default:TEST_API_KEY"}) as service:
        yield service


def test_page__every_language__has_one_example() -> None:
    for language in [*COMMANDS, "go"]:
        assert len(examples("reading.md", language)) == 1, language


@pytest.mark.parametrize("language", ["ruby", "php", "sh", pytest.param("java", marks=thorough)])
def test_lookups__print_what_the_page_says_and_the_default_without_an_answer(
    language: str, service: Service, store_url: str, tmp_path: Path
) -> None:
    command, probe, name = COMMANDS[language]
    if (
        not shutil.which(command[0])
        or subprocess.run(
            [*command, *probe], capture_output=True, timeout=DEADLINE, check=False
        ).returncode
    ):
        pytest.skip(f"{language}, or what it needs, is missing")
    (example,) = examples("reading.md", language)
    (tmp_path / name).write_text(example.code)
    assert service.post(payloads.identify("alice", TRAIT, True)).status == 200

    def printed(env: dict[str, str]) -> list[str]:
        environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env}
        done = subprocess.run(
            [*command, name],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return done.stdout.splitlines()

    there = {
        "REDIS_URL": store_url,
        "REDIS_HOST": store_url.removeprefix("unix://"),
        "COHORTS_URL": service.url,
        "COHORTS_KEY": READ_KEY,
        "REDIS_PORT": "0",
    }
    found: list[str] = []
    for _ in range(ATTEMPTS):
        found = printed(there)
        if found == example.printed:
            break
    assert found == example.printed
    assert found
    away = {
        "REDIS_URL": "redis://127.0.0.1:1",
        "REDIS_HOST": "127.0.0.1",
        "COHORTS_URL": "http://127.0.0.1:1",
        "COHORTS_KEY": READ_KEY,
        "REDIS_PORT": "1",
    }
    default = [line.replace("true", "false") for line in found]
    assert printed(away) == ([] if language == "sh" else default)
