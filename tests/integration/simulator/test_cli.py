"""The command line: output and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from click.testing import CliRunner, Result

from simulator import payloads
from simulator.cli import main, options
from simulator.cli.exit_codes import ExitCode
from simulator.cohort_sync import CohortSync
from simulator.reader import ReaderError, Traits
from tests.integration.simulator.receiver import CLOSED_PORT, KEY, Receiver
from tests.support.polling import DEADLINE

ROOT = Path(__file__).resolve().parents[3]


def call(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, words)


def test_sync__table__says_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        monkeypatch.setattr(options, "HttpReader", lambda *_: receiver)
        result = call(
            *("sync", receiver.url, "--key", KEY, "--users", "2500", "--syncs", "2"),
            *("--reader", "http://reader"),
        )
        assert result.exit_code == ExitCode.OK, result.output
        rows = dict(re.findall(r"^ *(\S.*?)   +(\S.*?) *$", result.output, re.MULTILINE))
        # 5% left and as many entered; as many again could have entered later.
        assert rows["syncs that succeeded"] == "2 of 2"
        assert rows["users to sync"] == "2,625 (2,500 are members now)"
        assert rows["changes to send"] == "2,750 (2,625 entered, 125 left)"
        assert rows["changes acknowledged"].startswith("2,750 (")
        assert rows["HTTP requests"] == "5 (0 of them retries)"
        assert rows["changes in all requests"] == "2,750"
        assert rows["replies by status"] == "200: 5"
        assert rows["users read back and compared"].startswith("2,750 (125 of them never sent)")
        assert "rate limit" not in rows
        assert "Repeat with --seed" in result.output
        assert re.findall(r"2,500/2,500 changes +[1-9][0-9,]*/s", result.stderr)
        assert re.findall(r"250/250 changes +[1-9][0-9,]*/s", result.stderr)
        assert sum(trait for user in receiver.users.values() for trait in user.values()) == 2500


def test_sync__json__is_one_object() -> None:
    with Receiver() as receiver:
        result = call(
            *("sync", receiver.url, "--key", KEY, "--users", "30", "--batch-size", "7"),
            *("--mode", "list", "--cohort", "Power: users:a1", "--seed", "5", "--json"),
        )
        found = json.loads(result.stdout)
        assert found["outcome"] == "ok"
        assert found["cohort"]["trait"] == "[Amplitude] Power: users: a1"
        assert found["requests"] == 6
        assert found["changes_acknowledged"] == 30
        assert found["list_ids"] == ["list 1/ü"]
        assert len(found["syncs"]) == 1


def test_sync__ids_from_a_file__are_sent(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_text("alice\nbob\n")
    with Receiver() as receiver:
        result = call("sync", receiver.url, "--key", KEY, "--ids", str(ids), "--cohort", "n:1")
        assert result.exit_code == ExitCode.OK
        assert receiver.users == {user: {"[Amplitude] n: 1": True} for user in ("alice", "bob")}


def test_sync__receiver_that_limits_the_rate__is_reported() -> None:
    for words, limited in ((("--json",), '"throttled": 3'), ((), "3 requests got a 429")):
        with Receiver(fail_first=3, fail_status=429) as receiver:
            result = call(
                *("sync", receiver.url, "--key", KEY, "--users", "5", "--mode", "single"),
                *("--time-scale", "0.001", *words),
            )
        assert result.exit_code == ExitCode.OK
        assert limited in result.stdout


def test_sync__late_retries__are_not_counted_as_a_sync() -> None:
    with Receiver() as receiver:
        words = ("--users", "40", "--batch-size", "5", "--syncs", "2", "--time-scale", "0.001")
        words = ("sync", receiver.url, "--key", KEY, *words, "--seed", "1")
        result = call(*words, "--misbehave", "late=1", "--mode", "webhook")
    assert "2 of 2" in result.stdout


def test_sync__misbehaviour__is_counted() -> None:
    with Receiver() as receiver:
        result = call(
            *("sync", receiver.url, "--key", KEY, "--users", "1000", "--batch-size", "10"),
            *("--misbehave", "duplicate=0.5,drop-reply=0.2", "--time-scale", "0.001"),
            *("--seed", "1", "--json"),
        )
        found = json.loads(result.stdout)
        assert found["faults"]["duplicate"] > 20
        assert found["faults"]["drop-reply"] == found["retries"] > 5
        assert found["changes_acknowledged"] == 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--users", "5", "--ids", __file__], "mutually exclusive"),
        (["--misbehave", "nonsense"], "none of"),
        (["--cohort", "noid:"], "NAME:ID"),
        (["--header", "x"], "NAME: VALUE"),
        (["--auth", "headers", "--app-id", ""], "must not be empty"),
        (["--app-id", "shop"], "only sent with --auth headers"),
        (["--key", "ключ", "--auth", "headers"], "can't be sent"),
        (["--header", "X: é日"], "can't be sent"),
        (["--reader", "ftp://x"], "--reader"),
        (["--reader", f"redis://user:secret@127.0.0.1:{CLOSED_PORT}"], "--reader"),
    ],
)
def test_sync__wrong_command_line__says_what_is_wrong(words: list[str], said: str) -> None:
    with Receiver() as receiver:
        result = call("sync", receiver.url, *words)
    assert result.exit_code == ExitCode.USAGE
    assert said in result.output
    assert "secret" not in result.output


def test_sync__wrong_address__is_a_usage_error() -> None:
    assert call("sync", "localhost:80").exit_code == ExitCode.USAGE


@pytest.mark.parametrize("path", ["/ä", "/a b"])
def test_sync__path_that_a_request_line_cannot_hold__is_percent_encoded(path: str) -> None:
    with Receiver() as receiver:
        result = call("sync", receiver.url, "--key", KEY, "--users", "1", "--path", path)
        assert result.exit_code == ExitCode.FAILED
        assert [found for found, _ in receiver.bodies] == [quote(path)]


def test_certify__page_in_no_folder__is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with Receiver() as receiver:
        result = call("certify", receiver.url, "--key", KEY, "--html", str(tmp_path / "no" / "x"))
        assert result.exit_code == ExitCode.USAGE
        assert "--html" in result.output
        assert receiver.bodies == []


def test_sync__nothing_listens__says_so_at_once() -> None:
    result = call("sync", f"http://127.0.0.1:{CLOSED_PORT}")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.output.endswith(": Connection refused\n")


def test_sync__address_of_another_protocol__says_so_at_once() -> None:
    with Receiver() as receiver:
        result = call("sync", receiver.url.replace("http:", "https:"))
        assert result.exit_code == ExitCode.UNREACHABLE
        assert result.stderr == f"Error: The server does not speak HTTPS. Try {receiver.url}\n"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection, suppress(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        result = call("sync", f"http://{address}")
        thread.join(DEADLINE)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.stderr == f"Error: The server does not speak HTTP. Try https://{address}\n"


def test_sync__wrong_path__is_one_line() -> None:
    with Receiver() as receiver:
        result = call("sync", f"{receiver.url}/nowhere", "--key", KEY, "--users", "3")
    assert result.exit_code == ExitCode.FAILED
    assert "Every request got a 404. Is " in result.stderr
    assert "successful syncs" not in result.stdout


def test_certify__wrong_path__is_one_line() -> None:
    with Receiver() as receiver:
        for words in ((), ("--webhook-path", "/x", "--only", "webhook.*")):
            url = receiver.url if words else f"{receiver.url}/nowhere"
            result = call("certify", url, "--key", KEY, *words)
            assert result.exit_code == ExitCode.FAILED
            assert result.stdout == ""
            assert result.stderr.count("\n") == 1
            assert "got a 404 (" in result.stderr
            assert f"and {words[0] if words else '--path'} its path?" in result.stderr


@pytest.mark.parametrize("mode", ["property", "list", "webhook"])
def test_certify__reader_of_another_app__is_one_line(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with Receiver() as receiver, Receiver() as other:
        for reader, hint in (("HttpReader", "--reader-key"), ("RedisReader", "--app")):
            monkeypatch.setattr(options, reader, lambda *_, **__: other)
            result = call(
                *("certify", receiver.url, "--key", KEY, "--modes", mode),
                *("--reader", "http://reader" if reader == "HttpReader" else "redis://reader"),
            )
            assert result.exit_code == ExitCode.USAGE
            assert result.stdout == ""
            assert result.stderr.count("\n") == 1
            assert "found none of the users that the receiver acknowledged" in result.stderr
            assert hint in result.stderr


@pytest.mark.parametrize("command", ["sync", "certify"])
def test_command__without_a_key__says_how_to_give_one(command: str) -> None:
    with Receiver() as receiver:
        result = call(command, receiver.url)
    assert result.exit_code == ExitCode.UNAUTHORISED
    assert "Error: The receiver needs a key. Give it as --key" in result.stderr


def test_certify__interrupted__says_that_there_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["simulator.cli.certify"], "run_checks", _interrupt)
    with Receiver() as receiver:
        result = call("certify", receiver.url, "--key", KEY)
    assert result.exit_code == ExitCode.INTERRUPTED
    assert result.stderr == "Error: Interrupted, so there is no verdict.\n"


def test_bench_sink__interrupted__ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CohortSync, "sync", _interrupt)
    result = call("bench-sink", "--users", "10")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert result.output == ""


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_certify__list_without_an_address__lists_the_checks() -> None:
    assert call("certify", "--list").output.startswith("credentials.basic (must; document): ")
    assert call("certify").exit_code == ExitCode.USAGE


@pytest.mark.parametrize("flaws", [(), ("refusal-is-403",)])
def test_sync__wrong_key__has_its_own_exit_code(flaws: tuple[str, ...]) -> None:
    with Receiver(*flaws) as receiver:
        result = call("sync", receiver.url, "--key", "wrong")
        assert result.exit_code == ExitCode.UNAUTHORISED
        assert "Error: The receiver refuses the key: 40" in result.stderr
        assert result.stdout == ""


def test_sync__requests_given_up__fail() -> None:
    with Receiver("small-limit") as receiver:
        result = call("sync", receiver.url, "--key", KEY)
        assert result.exit_code == ExitCode.FAILED
        assert "refused with 400" in result.output


def test_sync__interrupted__prints_the_table_and_exits_130() -> None:
    # A background job of a shell inherits SIGINT as ignored, and would pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Receiver(delay=0.05) as receiver:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "simulator", "sync", receiver.url, "--key", KEY),
                *("--users", "100000", "--batch-size", "10"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        deadline = time.monotonic() + 20
        while not receiver.users and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "changes acknowledged" in output
        assert "0 of 1" in output


class _Failing:
    """Reads from a receiver `reads` times, then raises `error`."""

    def __init__(self, receiver: Receiver, reads: int, error: BaseException) -> None:
        self._receiver, self._left, self._error = receiver, reads, error

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return self._receiver.traits(user_ids)


@pytest.mark.parametrize(
    ("error", "code", "outcome"),
    [
        (ReaderError("the store is down"), ExitCode.USAGE, "usage"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    ],
)
@pytest.mark.parametrize(("reads", "syncs"), [(1, 0), (2, 1)])  # the first read is a trial
def test_sync__reader_fails_or_is_interrupted__still_prints_what_was_done(
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: ExitCode,
    outcome: str,
    reads: int,
    syncs: int,
) -> None:
    with Receiver() as receiver:
        monkeypatch.setattr(options, "HttpReader", lambda *_: _Failing(receiver, reads, error))
        words = ("sync", receiver.url, "--key", KEY, "--users", "30", "--reader", "http://reader")
        table = call(*words)
        found = call(*words, "--json")
    assert table.exit_code == found.exit_code == code, table.output
    assert f"{syncs} of {syncs}" in table.stdout
    assert str(error) in table.stdout
    report = json.loads(found.stdout)
    assert report["outcome"] == outcome
    assert report["changes_acknowledged"] == syncs * 30
    assert report.get("reader_error", "") == str(error)


def test_mock__commands__are_understood_by_a_shell_and_the_receiver() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    with Receiver() as receiver:
        result = call("mock", receiver.url + "/", "--key", KEY, "--app-id", "test-app")
        assert result.exit_code == 0
        assert result.output.count("curl --request POST") == 12
        script = result.output.replace("curl ", "curl --silent --show-error --fail-with-body ")
        run = subprocess.run(
            ["sh", "-e"],
            input=script,
            env={**os.environ, "LIST_ID": "list%201%2F%C3%BC", "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr + run.stdout
        assert receiver.statuses == {200: 12}
        paths = [path for path, _ in receiver.bodies]
        assert paths[:5] == [payloads.COHORT_PATH] * 5
        assert paths[5:] == [
            "/lists",
            "/lists/list%201%2F%C3%BC/add",
            *["/lists/list%201%2F%C3%BC/remove"] * 3,
            *[payloads.WEBHOOK_PATH] * 2,
        ]
        assert json.loads(receiver.bodies[0][1]) == {
            "traits": {"cohort name:123": True},
            "type": "identify",
            "userId": "test.user@email.com",
        }


def test_mock__quotes_in_the_names__survive_the_shell() -> None:
    result = call(
        "mock", "http://h", "--key", "it's", "--cohort", "a'b\"c$(d):1", "--auth", "bearer"
    )
    single = result.output.split("\n\n")[1].partition("\n")[2]
    words = shlex.split(single)
    assert words[:4] == ["curl", "--request", "POST", f"http://h{payloads.COHORT_PATH}"]
    assert "Authorization: Bearer it's" in words
    assert json.loads(words[-1])["traits"] == {"[Amplitude] a'b\"c$(d): 1": True}


def test_certify__correct_receiver__exits_0_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with Receiver() as receiver:
        result = call(
            *("certify", receiver.url, "--key", KEY, "--app-id", "test-app"),
            *("--skip", "network.*", "--skip", "sync.*", "--skip", "*within*"),
            *("--html", str(page)),
        )
    assert result.exit_code == ExitCode.OK, result.output
    assert "CERTIFIED BY ITS REPLIES ONLY (checks: " in result.output
    assert "<svg" in page.read_text()


def test_certify__flawed_receiver__exits_1_with_json() -> None:
    with Receiver("second-list") as receiver:
        result = call(
            *("certify", receiver.url, "--key", KEY, "--json"),
            *("--modes", "list", "--only", "list.create*"),
        )
    assert result.exit_code == ExitCode.FAILED
    found = json.loads(result.stdout)
    assert found["certified"] is False
    assert found["counts"]["failed"] == 2


def test_certify__wrong_key_or_no_check__ends_as_said() -> None:
    with Receiver() as receiver:
        assert call("certify", receiver.url).exit_code == ExitCode.UNAUTHORISED
        assert call("certify", receiver.url, "--only", "x").exit_code == ExitCode.USAGE
        assert call("certify", receiver.url, "--modes", "x").exit_code == ExitCode.USAGE


def test_certify__list__says_the_checks_and_sends_nothing() -> None:
    result = call("certify", "http://127.0.0.1:1", "--list", "--modes", "webhook")
    assert result.exit_code == 0
    assert result.output.startswith("credentials.webhook (must; document): ")


def test_bench_sink__small_run__sends_what_it_says() -> None:
    result = call("bench-sink", "--users", "3000", "--batch-size", "100")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["modes"]["property"]["requests"] == 30
    assert found["modes"]["list"]["requests"] == 31
    assert found["sink"]["requests"] == 30 + 31 + 30 + 3000
    assert found["sink"]["bytes"] > 1_000_000


def test_help__every_exit_code__is_documented() -> None:
    output = call("sync", "--help").output
    for code in ExitCode:
        assert f" {code.value}  " in output
