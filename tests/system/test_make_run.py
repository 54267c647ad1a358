"""``make run``: the service with a store of its own, started, used, killed and started again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.system.load import Load, check_complete
from tests.system.service import (
    APP,
    COHORT_PATH,
    DEADLINE,
    KEY,
    ROOT,
    Service,
    SlowRequest,
    running,
    wait_until,
)

RUN = (sys.executable, "-m", "app.embedded")
IDENTIFY = {"type": "identify", "userId": "ann", "traits": {"Early birds:e1": True}}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder with a short path, so that a socket can be in it."""
    path = Path(tempfile.mkdtemp(prefix="run-"))
    yield path
    shutil.rmtree(path)


@contextmanager
def make_run(data_dir: Path, **env: str) -> Iterator[Service]:
    """What ``make run`` starts, once it has told its user how to go on."""
    env = {"API_KEYS": "", "DATA_DIR": str(data_dir), "RATE_LIMIT": "off", **env}
    with running(env, RUN) as service:
        wait_until(lambda: "redis-cli " in service.output())
        yield service


def failing_run(data_dir: Path, **env: str) -> tuple[int, list[str]]:
    """Start what must not start. Returns the exit code and the lines that it printed."""
    result = subprocess.run(
        RUN,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": "0", "DATA_DIR": str(data_dir), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()


def ingest_key(data_dir: Path) -> str:
    return (data_dir / "ingest-key").read_text().strip()


def send(service: Service, data_dir: Path, body: object = None) -> int:
    headers = {"Authorization": f"Bearer {ingest_key(data_dir)}"}
    return service.post(body or IDENTIFY, **headers).status


def store_of(data_dir: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str((data_dir / "store.sock").resolve()), decode_responses=True
    )


def store_pid(data_dir: Path) -> int:
    with store_of(data_dir) as client:
        return int(client.info("server")["process_id"])


def service_pid(service: Service) -> int:
    return child_pid(service, "gunicorn")


def guard_pid(service: Service) -> int:
    return child_pid(service, "guard.py")


def child_pid(service: Service, word: str) -> int:
    """The run's process with this in its command line."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    (found,) = [
        int(line.split()[0])
        for line in listed.stdout.splitlines()
        if line.split()[1] == str(service.process.pid) and word in line
    ]
    return found


def nothing_runs(data_dir: Path) -> bool:
    """Whether all processes of a run have ended: each holds this lock for as long as it lives."""
    with open(data_dir / "processes.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_run__printed_commands_pasted__set_and_read_the_trait(data_dir: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    with make_run(data_dir) as service:
        output = service.output()
        curl = re.search(rf"^  curl .*?{COHORT_PATH}$", output, re.MULTILINE | re.DOTALL)
        read = re.search(r"^  \S*python\S* -c .*$", output, re.MULTILINE)
        assert curl
        assert read

        sent = subprocess.run(["bash", "-c", curl[0]], cwd=ROOT, capture_output=True, text=True)
        found = subprocess.run(["bash", "-c", read[0]], cwd=ROOT, capture_output=True, text=True)

    assert sent.stdout == '{"accepted":1,"changed":1,"rejected":0,"errors":[]}', sent.stderr
    assert sent.stdout in output, "the reply to expect was not printed"
    assert found.stdout == "{'cohort name:123': 'true'}\n", found.stderr


def test_run__printed_simulator_pasted__ends_well(data_dir: Path) -> None:
    with make_run(data_dir / "a folder's #1?") as service:
        printed = re.search(
            r"^  \S*python\S* -m simulator .*?--partitions \d+$", service.output(), re.M | re.S
        )
        assert printed
        command = printed[0].replace("--users 100000", "--users 20")
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_run__first_line__is_the_address_of_the_dashboard(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        first = next(line for line in service.lines if line.strip())
        assert first == f"The dashboard: {service.url}/\n"


def test_run__store_that_is_not_there__is_told_before_any_guide(data_dir: Path) -> None:
    env = {"API_KEYS": "", "DATA_DIR": str(data_dir), "REDIS_URL": f"unix://{data_dir}/nothing"}
    with running(env, RUN) as service:
        wait_until(lambda: "can't use its store yet" in service.output())
        assert "store_unreachable" in {event.get("reason") for event in service.events()}
        assert "The dashboard" not in service.output()


def test_run__started_again__finds_the_data_and_the_same_keys(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        assert send(service, data_dir) == 200
        keys = {path.name: path.read_text() for path in data_dir.glob("*-key")}
        assert service.stop() == 0

    with make_run(data_dir) as service:
        assert keys == {path.name: path.read_text() for path in data_dir.glob("*-key")}
        assert all(key.strip() in service.output() for key in keys.values())
        assert send(service, data_dir) == 200
        with store_of(data_dir) as client:
            assert client.hgetall("cohorts:{default}:user:ann") == {"Early birds:e1": "true"}
            assert client.xlen("cohorts:{default}:changes") == 1


def test_run__keys_made__are_readable_by_their_owner_alone(data_dir: Path) -> None:
    with make_run(data_dir):
        pass
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.glob("*-key")}
    assert modes == {"ingest-key": 0o600, "admin-key": 0o600}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_run__other_addresses__do_not_reach_it(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        port = int(service.url.rpartition(":")[2])
        with socket.socket() as other:
            # Free for another address: the service took 127.0.0.1 and not all of them.
            other.bind(("127.0.0.2", port))


def test_run__store_killed_under_load__loses_no_answered_write(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        with Load(lambda: service.url, ingest_key(data_dir)) as load:
            for _ in range(2):
                reached = len(load.answered) + 2000
                wait_until(lambda reached=reached: len(load.answered) > reached)
                told = service.output().count("The store is back")
                os.kill(store_pid(data_dir), signal.SIGKILL)
                wait_until(lambda told=told: service.output().count("The store is back") > told)
            reached = len(load.answered) + 2000
            wait_until(lambda: len(load.answered) > reached)

        assert set(load.refused) <= {"503 store_unreachable", "503 store_loading"}
        assert service.output().count("The store has ended (signal SIGKILL)") == 2
        with store_of(data_dir) as client:
            check_complete(client, "default", load.answered)


def test_run__service_killed__stops_the_store_and_says_so_in_one_line(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        assert send(service, data_dir) == 200
        os.kill(service_pid(service), signal.SIGKILL)
        assert service.process.wait(DEADLINE) == 1
        wait_until(lambda: nothing_runs(data_dir))  # what is killed may take a moment
        service.stop()
        assert service.lines[-1] == (
            "cohort-receiver: The service has ended (signal SIGKILL). Its log above says why.\n"
        )

    with make_run(data_dir), store_of(data_dir) as client:
        assert client.hgetall("cohorts:{default}:user:ann") == {"Early birds:e1": "true"}


def test_run__killed_itself_under_load__next_run_finds_every_answered_write(data_dir: Path) -> None:
    urls: list[str] = []
    with make_run(data_dir) as first:
        urls.append(first.url)
        with Load(lambda: urls[-1], ingest_key(data_dir)) as load:
            wait_until(lambda: len(load.answered) > 2000)
            first.hang_up()
            first.process.kill()
            with make_run(data_dir) as second:
                urls.append(second.url)
                reached = len(load.answered) + 2000
                wait_until(lambda: len(load.answered) > reached)
                load.finish()
                with store_of(data_dir) as client:
                    check_complete(client, "default", load.answered)


def test_run__killed_with_its_guard__next_run_ends_what_is_left(data_dir: Path) -> None:
    with make_run(data_dir) as first:
        assert send(first, data_dir) == 200
        left_behind = store_pid(data_dir)
        guard, master = guard_pid(first), service_pid(first)
        os.kill(guard, signal.SIGKILL)
        first.process.kill()
        os.kill(master, signal.SIGKILL)  # its workers end by themselves
        with make_run(data_dir), store_of(data_dir) as client:
            assert int(client.info("server")["process_id"]) != left_behind
            assert client.hgetall("cohorts:{default}:user:ann") == {"Early birds:e1": "true"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run__told_to_stop__ends_all_processes(data_dir: Path, number: signal.Signals) -> None:
    with make_run(data_dir) as service:
        service.hang_up()
        began = time.monotonic()
        os.killpg(service.process.pid, number)  # as a terminal does: to the whole group
        assert service.process.wait(DEADLINE) == 0
        assert time.monotonic() - began < 10
        assert nothing_runs(data_dir)
        assert not (data_dir / "store.sock").exists()
        service.stop()
        assert "Traceback" not in service.output()


def test_run__ctrl_c_while_a_request_arrives__answers_it(data_dir: Path) -> None:
    body = json.dumps(IDENTIFY).encode()
    with make_run(data_dir) as service, SlowRequest(service, body, ingest_key(data_dir)) as request:
        request.begin()
        service.hang_up()
        os.killpg(service.process.pid, signal.SIGINT)
        wait_until(lambda: "Handling signal: term" in service.output())
        assert request.finish().startswith(b"HTTP/1.1 200 ")
        assert service.process.wait(DEADLINE) == 0


def test_run__port_taken__says_so_in_one_line(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = failing_run(data_dir, PORT=str(port))
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"cohort-receiver: Port {port} is taken.")
    assert not (data_dir / "store.log").exists()  # nothing was started


def test_run__data_in_use__says_so_in_one_line(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        code, lines = failing_run(data_dir)
        assert (code, len(lines)) == (1, 1)
        assert f"{data_dir} is in use by another run (process {service.process.pid})" in lines[0]
        assert send(service, data_dir) == 200


def test_run__bad_settings__are_listed_without_a_traceback(data_dir: Path) -> None:
    code, lines = failing_run(data_dir, PORT="eighty", USER_POLICY="maybe")
    assert code == 1
    assert [line.split(":")[:2] for line in lines] == [
        ["cohort-receiver", " PORT"],
        ["cohort-receiver", " USER_POLICY"],
    ]
    assert list(data_dir.iterdir()) == []


def test_run__own_store_given__uses_it_and_starts_none(data_dir: Path, store_url: str) -> None:
    with make_run(data_dir, REDIS_URL=store_url, KEY_PREFIX="given") as service:
        assert send(service, data_dir) == 200
        assert not (data_dir / "store.sock").exists()
        assert service.stop() == 0
    assert "that store is used" in service.output()
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        assert client.hgetall("given:{default}:user:ann") == {"Early birds:e1": "true"}


def test_run__own_keys_given__work_and_are_not_printed(data_dir: Path) -> None:
    keys = {"API_KEYS": f"{APP}:{KEY}", "ADMIN_API_KEYS": "an-admin-key"}
    with make_run(data_dir, **keys) as service:
        assert service.post(IDENTIFY).status == 200
        assert not list(data_dir.glob("*-key"))
        assert KEY not in service.output()
        assert "an-admin-key" not in service.output()
        assert f"cohorts:{{{APP}}}:user:" in service.output()


def test_run__deep_folder_with_odd_characters__works(data_dir: Path) -> None:
    deep = data_dir / ('it\'s a "deep" folder; $HOME % ' + "x" * 60) / ("y" * 60)
    with make_run(deep) as service:
        assert send(service, deep) == 200
        place = (deep / "store.sock").resolve()
        assert place.is_socket()
        read = re.search(r"^  \S*python\S* -c .*$", service.output(), re.MULTILINE)
        assert read
        found = subprocess.run(
            ["bash", "-c", read[0].replace("test.user@email.com", "ann")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert found.stdout == "{'Early birds:e1': 'true'}\n", found.stderr
        assert service.stop() == 0
    assert not place.parent.exists()


def test_run__log_cut_off_in_the_middle__starts_without_the_last_write(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        assert send(service, data_dir) == 200
        assert send(service, data_dir, {**IDENTIFY, "userId": "bob"}) == 200
        service.stop()
    (log,) = (data_dir / "store" / "appendonlydir").glob("*.incr.aof")
    os.truncate(log, log.read_bytes().rindex(b"bob"))  # within the change stream's entry

    with make_run(data_dir) as service:
        with store_of(data_dir) as client:
            assert client.exists("cohorts:{default}:user:ann") == 1
            # All of the last step is gone, none of it is half there.
            assert client.exists("cohorts:{default}:user:bob") == 0
            assert client.zrange("cohorts:{default}:cohort:e1:members", 0, -1) == ["ann"]
            assert client.xlen("cohorts:{default}:changes") == 1
        assert send(service, data_dir, {**IDENTIFY, "userId": "bob"}) == 200


def test_run__data_that_is_no_data__says_so_in_one_line(data_dir: Path) -> None:
    with make_run(data_dir):
        pass
    manifest = data_dir / "store" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("not a manifest\n")
    code, lines = failing_run(data_dir)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("cohort-receiver: The store did not start (exit code 1): ")
    assert manifest.read_text() == "not a manifest\n"


def test_run__store_can_not_be_started_again__ends_with_one_line(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        pid = store_pid(data_dir)
        (data_dir / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("damaged\n")
        os.kill(pid, signal.SIGKILL)
        assert service.process.wait(DEADLINE) == 1
        wait_until(lambda: nothing_runs(data_dir))  # what is killed may take a moment
        service.stop()
        assert service.lines[-1].startswith(
            "cohort-receiver: The store did not start (exit code 1)"
        )
        assert "Traceback" not in service.output()


def test_run__guard_killed__goes_on_and_stops_in_order(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        os.kill(guard_pid(service), signal.SIGKILL)
        os.kill(store_pid(data_dir), signal.SIGKILL)
        wait_until(lambda: "The store is back" in service.output())
        assert send(service, data_dir) == 200
        assert service.stop() == 0
        assert nothing_runs(data_dir)


def test_make_run__as_printed_in_the_readme__starts(data_dir: Path) -> None:
    uptodate = subprocess.run(["make", "-q", ".venv/installed"], cwd=ROOT, capture_output=True)
    if uptodate.returncode != 0:
        pytest.skip("the project's .venv is not there or not up to date")
    env = {"API_KEYS": "", "DATA_DIR": str(data_dir)}
    with running(env, ("make", "run")) as service:
        wait_until(lambda: "redis-cli " in service.output())
        assert send(service, data_dir) == 200
        port = service.url.rpartition(":")[2]
        played = subprocess.run(
            ["make", "simulate", "SIMULATE=--users 20"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir), "PORT": port},
            capture_output=True,
            text=True,
        )
        assert played.returncode == 0, played.stdout + played.stderr
        service.hang_up()
        os.killpg(service.process.pid, signal.SIGINT)
        service.process.wait(DEADLINE)
        assert nothing_runs(data_dir)
