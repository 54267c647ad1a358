"""The commands as an operator types them, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from simulator import payloads
from tests.support.cli import FLASK, environment, flask, on_a_terminal
from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, ROOT, Service, running
from tests.support.stores import empty, running_store

TRAIT = "[Amplitude] Power users: abc123"


@pytest.fixture(autouse=True)
def known_app(service: Service, redis_client: redis.Redis) -> None:
    """Wait until the running service has seen that its store is empty since the last test."""

    def is_known() -> bool:
        assert service.post({"name": "n: first"}, "/lists").status == 200
        return bool(redis_client.sismember("cohorts:apps", APP))

    wait_until(is_known)
    empty(redis_client, "*:{*")


@thorough
def test_commands__on_what_the_service_received__work_from_first_to_last(
    service: Service, store_url: str, redis_client: redis.Redis
) -> None:
    ids = payloads.user_ids(1000)
    assert service.post(payloads.batch(ids, TRAIT, True)).status == 200

    listed = flask(store_url, "cohorts", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    (cohort,) = json.loads(listed.stdout)
    assert (cohort["id"], cohort["members"], cohort["status"]) == ("abc123", 1000, "active")

    checked = flask(store_url, "store", "check", "--json")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert json.loads(checked.stdout)["streams"][0]["agreeing"] == 1000

    erased = flask(store_url, "users", "erase", ids[0], "--suppress", "--yes")
    assert (erased.returncode, erased.stderr) == (0, "")
    reply = service.post(payloads.batch(ids[:2], TRAIT, True)).json()
    assert [error["reason"] for error in reply["errors"]] == ["suppressed_user"]
    assert flask(store_url, "users", "unsuppress", ids[0]).returncode == 0

    deleted = flask(store_url, "cohorts", "delete", "abc123", "--yes")
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert redis_client.keys("*:user:*") == redis_client.keys("*:members") == []
    assert flask(store_url, "cohorts", "show", "abc123").returncode == 1
    assert flask(store_url, "store", "check").returncode == 0


@thorough
def test_register__of_twenty_thousand_from_a_file_and_a_pipe__lets_them_in(
    store_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    ids = "".join(f"user-{n:08}@example.com\n" for n in range(20_000))
    (tmp_path / "ids").write_text(ids)
    words = ("users", "register", "--app-id", APP)
    first = flask(store_url, *words, str(tmp_path / "ids"))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "20000 ids read, 20000 registered, 0 invalid.\n"
    again = flask(store_url, *words, "-", input=ids)
    assert again.stdout == "20000 ids read, 0 registered, 0 invalid.\n"
    assert redis_client.scard(f"cohorts:{{{APP}}}:registered") == 20_000


@thorough
def test_progress__on_a_terminal__is_shown(
    service: Service, store_url: str, tmp_path: Path
) -> None:
    ids = payloads.user_ids(1000)
    service.post(payloads.batch(ids, TRAIT, True))
    (tmp_path / "ids").write_text("\n".join(ids))
    for words in (
        ("users", "register", str(tmp_path / "ids")),
        ("store", "check"),
        ("cohorts", "delete", "abc123", "--yes"),
    ):
        assert "100%" in on_a_terminal(store_url, words), words


def test_command__store_not_there__is_one_line_without_traceback() -> None:
    run = flask("redis://user:secret@127.0.0.1:1", "cohorts", "list")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == (
        "Error: 127.0.0.1:1: The store is unreachable, or the connection broke. "
        "(store_unreachable) It reported: Error 111 connecting to 127.0.0.1:1. "
        "Connection refused.\n"
    )


@pytest.mark.parametrize(
    "typed", ["python -m app", pytest.param("flask --app wsgi", marks=thorough)]
)
def test_warning__of_a_command__is_text_and_not_among_its_results(typed: str) -> None:
    with running_store() as url, redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", 1)  # the audit trail can't be written
        result = subprocess.run(
            [*ENTRIES[typed], "store", "hold"],
            cwd=ROOT,
            env=environment(url),
            capture_output=True,
            text=True,
            check=True,
        )
    assert result.stdout == "Writes are on hold until `store release`.\n"
    assert re.match(
        r"\d\d:\d\d:\d\d warning: admin action is not in the audit trail reason=store_full",
        result.stderr,
    )


def test_command__settings_missing__says_which(store_url: str) -> None:
    run = flask(None, "cohorts", "list")
    assert run.returncode == 1
    assert run.stderr.startswith("cohort-receiver: REDIS_URL: not set.")
    assert "Traceback" not in run.stderr


def test_command__wrong_usage__is_2(store_url: str) -> None:
    assert flask(store_url, "cohorts", "list", "--nonsense").returncode == 2


@thorough
def test_deletion__interrupted__resumes_when_run_again() -> None:
    delete = ("cohorts", "delete", "abc123", "--yes")
    members = f"cohorts:{{{APP}}}:cohort:abc123:members"
    with running_store() as url, redis.Redis.from_url(url, decode_responses=True) as client:
        for _ in range(5):
            fill(url)
            with subprocess.Popen([*FLASK, *delete], cwd=ROOT, env=environment(url)) as process:
                wait_until(lambda: client.zcard(members) < 30_000)
                process.kill()
            if client.zcard(members):
                break
        else:
            pytest.fail("it was never stopped in the middle")
        run = flask(url, *delete)
        assert run.returncode == 0
        assert "Resuming the deletion" in run.stderr
        assert client.keys("*:user:*") == []
        assert flask(url, "store", "check").returncode == 0


def fill(store_url: str) -> None:
    """Fill a cohort, and leave no service that would go on with its deletion by itself."""
    with running({"REDIS_URL": store_url, "RATE_LIMIT": "off"}) as service:
        for part in range(3):
            ids = [f"user-{part}-{n}" for n in range(10_000)]
            assert service.post(payloads.batch(ids, TRAIT, True)).status == 200


ENTRIES = {
    "python -m app": (sys.executable, "-m", "app"),
    "flask --app wsgi": FLASK,
}


@thorough
@pytest.mark.parametrize("typed", ENTRIES)
def test_usage__of_each_way_to_type_a_command__shows_what_was_typed(
    store_url: str, typed: str
) -> None:
    for words in (("cohorts", "list"), ("cohorts", "resync", "start"), ("config",)):
        shown = subprocess.run(
            [*ENTRIES[typed], *words, "--help"],
            cwd=ROOT,
            env=environment(store_url),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.startswith(f"Usage: {typed} {' '.join(words)} [OPTIONS]")


def test_help__without_any_setting__works_and_a_command_says_what_is_missing() -> None:
    command, env = ENTRIES["python -m app"], {"PATH": os.environ["PATH"]}

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )

    assert typed("--help").returncode == 0
    shown = typed("store", "check", "--help")
    assert (shown.returncode, "Exit codes: 0 success; 1" in shown.stdout) == (0, True)
    result = typed("cohorts", "list")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: REDIS_URL: not set.")
    assert "unix://$PWD/var/store.sock" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "typed", ["python -m app", pytest.param("flask --app wsgi", marks=thorough)]
)
def test_ctrl_c__while_the_store_is_awaited__ends_with_130_and_no_traceback(typed: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [*ENTRIES[typed], "cohorts", "list"],
            cwd=ROOT,
            env=environment(f"redis://127.0.0.1:{silent.getsockname()[1]}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(DEADLINE)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (130, "\nInterrupted.\n")


@thorough
def test_ctrl_c__at_a_question__ends_with_130_and_changes_nothing(
    service: Service, store_url: str
) -> None:
    assert service.post(payloads.batch(["u1"], TRAIT, True)).status == 200
    command = [*FLASK, "cohorts", "delete", "abc123"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(store_url), stdin=pipe, stderr=pipe
    ) as process:
        assert process.stderr
        assert os.read(process.stderr.fileno(), 1000).startswith(b"Delete the cohort")
        # A signal just before it waits for the answer would only count after that.
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
        process.send_signal(signal.SIGINT)
        # With its input still open: at the end of the input, the question is answered.
        assert process.wait(DEADLINE) == 130
    assert flask(store_url, "cohorts", "show", "abc123").returncode == 0
