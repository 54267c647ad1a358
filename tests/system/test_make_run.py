"""``make run``: the service with a store of its own, started, used, killed and started again.

Each start costs seconds, so one run answers several questions.
"""

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.effort import THOROUGH, thorough
from tests.support.load import Load, check_complete
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, COHORT_PATH, KEY, ROOT, Service, SlowRequest, running

RUN = (sys.executable, "-m", "app.embedded")
IDENTIFY = {"type": "identify", "userId": "ann", "traits": {"Early birds:e1": True}}
BOB = {**IDENTIFY, "userId": "bob"}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder with a short path, so that a socket can be in it."""
    path = Path(tempfile.mkdtemp(prefix="run-"))
    yield path
    shutil.rmtree(path)


@contextmanager
def make_run(data_dir: Path, **env: str) -> Iterator[Service]:
    """What ``make run`` starts, once it has printed its guide."""
    env = {
        "API_KEYS": "",
        "DATA_DIR": str(data_dir),
        "RATE_LIMIT": "off",
        "WEB_CONCURRENCY": "1",
        **env,
    }
    with running(env, RUN) as service:
        wait_until(lambda: "redis-cli " in service.output())
        service.hang_up()
        yield service


def failing_run(data_dir: Path, prefix: Sequence[str] = (), **env: str) -> tuple[int, list[str]]:
    """Start what must not start. Returns the exit code and the lines that it printed."""
    result = subprocess.run(
        [*prefix, *RUN],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": "0", "DATA_DIR": str(data_dir), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()


def paste(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that was printed, as its reader would."""
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)


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


def supervisor(service: Service) -> psutil.Process:
    (process,) = psutil.Process(service.process.pid).children()
    return process


def gunicorn(service: Service) -> psutil.Process:
    children = supervisor(service).children()
    (process,) = [child for child in children if "gunicorn" in child.cmdline()]
    return process


def nothing_runs(data_dir: Path) -> bool:
    """Whether all processes of a run have ended: each holds this lock for as long as it lives."""
    with open(data_dir / "run.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def manifest(data_dir: Path) -> Path:
    return data_dir / "store" / "appendonlydir" / "appendonly.aof.manifest"


@thorough
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_guide__commands_pasted__work_in_a_folder_with_an_odd_and_long_name(
    data_dir: Path,
) -> None:
    deep = data_dir / ('it\'s a "deep" folder; $HOME % #1?' + "x" * 60) / ("y" * 60)
    with make_run(deep) as service:
        output = service.output()
        curl = re.search(rf"^  curl .*?{COHORT_PATH}$", output, re.MULTILINE | re.DOTALL)
        read = re.search(r"^  \S*python\S* -c .*$", output, re.MULTILINE)
        simulate = re.search(
            r"^  \S*python\S* -m simulator .*?--partitions \d+$", output, re.M | re.S
        )
        assert curl
        assert read
        assert simulate

        sent = paste(curl[0])
        assert sent.stdout == '{"accepted":1,"changed":1,"rejected":0,"errors":[]}\n', sent.stderr
        assert sent.stdout.strip() in output, "the reply to expect was not printed"
        logged = rf"\d\d:\d\d:\d\d POST {COHORT_PATH} 200 in [\d.]+ ms app=default .*changed=1.*\n"
        wait_until(lambda: any(re.fullmatch(logged, line) for line in service.lines))
        found = paste(read[0])
        assert found.stdout == "{'cohort name:123': 'true'}\n", found.stderr
        simulated = paste(simulate[0].replace("--users 100000", "--users 20"))
        assert simulated.returncode == 0, simulated.stdout + simulated.stderr

        first = next(line for line in service.lines if line.strip())
        assert first == f"The dashboard: {service.url}/\n"
        place = (deep / "store.sock").resolve()
        assert place.is_socket()
        assert service.stop(signal.SIGHUP) == 0  # the terminal was closed
    assert nothing_runs(deep)
    assert not place.parent.exists()


def test_run__started_again__finds_the_data_and_the_same_keys(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        assert send(service, data_dir) == 200
        assert send(service, data_dir, BOB) == 200
        keys = {path.name: path.read_text() for path in data_dir.glob("*-key")}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.glob("*-key")}
        assert modes == {"ingest-key": 0o600, "admin-key": 0o600}

        code, lines = failing_run(data_dir)
        assert (code, len(lines)) == (1, 1)
        assert f"{data_dir} is in use by another run (process {service.process.pid})" in lines[0]
        assert service.stop() == 0
    assert nothing_runs(data_dir)

    # As a crash leaves it: cut off within the last step, in the change stream's entry.
    (log,) = (data_dir / "store" / "appendonlydir").glob("*.incr.aof")
    os.truncate(log, log.read_bytes().rindex(b"bob"))
    with make_run(data_dir) as service:
        assert keys == {path.name: path.read_text() for path in data_dir.glob("*-key")}
        assert all(key.strip() in service.output() for key in keys.values())
        with store_of(data_dir) as client:
            assert client.hgetall("cohorts:{default}:user:ann") == {"Early birds:e1": "true"}
            # All of the last step is gone, none of it is half there.
            assert client.exists("cohorts:{default}:user:bob") == 0
            assert client.zrange("cohorts:{default}:cohort:e1:members", 0, -1) == ["ann"]
            assert client.xlen("cohorts:{default}:changes") == 1
            assert send(service, data_dir) == 200
            assert send(service, data_dir, BOB) == 200
            assert client.xlen("cohorts:{default}:changes") == 2


@thorough
def test_run__store_killed_under_load__loses_no_acknowledged_write(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        with Load(lambda: service.url, ingest_key(data_dir)) as load:
            for restarts in (1, 2):
                reached = len(load.answered) + 2000
                wait_until(lambda reached=reached: len(load.answered) > reached)
                os.kill(store_pid(data_dir), signal.SIGKILL)
                wait_until(
                    lambda restarts=restarts: service.output().count("store is back") == restarts
                )
            reached = len(load.answered) + 2000
            wait_until(lambda: len(load.answered) > reached)

        assert set(load.refused) <= {"503 store_unreachable", "503 store_loading"}
        assert service.output().count("The store ended (signal SIGKILL)") == 2
        with store_of(data_dir) as client:
            check_complete(client, "default", load.answered)


@thorough
def test_run__killed_under_load__next_run_finds_every_acknowledged_write(data_dir: Path) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(make_run(data_dir))
        load = stack.enter_context(Load(lambda: service.url, ingest_key(data_dir)))
        for victims in ("launcher", "supervisor", "all but the store"):
            reached = len(load.answered) + 2000
            wait_until(lambda reached=reached: len(load.answered) > reached)
            store = store_pid(data_dir)
            master, parent = gunicorn(service), supervisor(service)
            if victims == "all but the store":
                parent.suspend()  # it must not notice
                service.process.kill()
                for worker in master.children():
                    worker.kill()
                master.kill()
            if victims != "launcher":
                parent.kill()
            if victims != "supervisor":
                service.process.kill()
            code = service.process.wait(DEADLINE)
            if victims == "supervisor":
                assert code == 1
                wait_until(lambda: nothing_runs(data_dir))
                wait_until(lambda service=service: "supervisor was killed" in service.output())
            service = stack.enter_context(make_run(data_dir))
            assert store_pid(data_dir) != store
        reached = len(load.answered) + 2000
        wait_until(lambda: len(load.answered) > reached)
        load.finish()
        with store_of(data_dir) as client:
            check_complete(client, "default", load.answered)


@thorough
def test_run__service_or_store_cannot_continue__ends_with_one_line(data_dir: Path) -> None:
    with make_run(data_dir) as service:
        assert send(service, data_dir) == 200
        gunicorn(service).kill()
        assert service.process.wait(DEADLINE) == 1
        wait_until(lambda: nothing_runs(data_dir))  # what is killed may take a moment
        service.stop()
        line = "cohort-receiver: The service ended (signal SIGKILL). See its log above.\n"
        assert service.lines.count(line) == 1
        assert "Traceback" not in service.output()

    intact = manifest(data_dir).read_text()
    manifest(data_dir).write_text("not a manifest\n")
    code, lines = failing_run(data_dir)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("cohort-receiver: The store did not start (exit code 1): ")
    assert manifest(data_dir).read_text() == "not a manifest\n"

    manifest(data_dir).write_text(intact)
    with make_run(data_dir) as service:
        with store_of(data_dir) as client:
            assert client.hgetall("cohorts:{default}:user:ann") == {"Early birds:e1": "true"}
        pid = store_pid(data_dir)
        manifest(data_dir).write_text("damaged\n")
        os.kill(pid, signal.SIGKILL)
        assert service.process.wait(DEADLINE) == 1
        wait_until(lambda: nothing_runs(data_dir))
        service.stop()
        assert "cohort-receiver: The store did not start (exit code 1)" in service.output()
        assert "Traceback" not in service.output()


@thorough
def test_run__ctrl_c_while_a_request_arrives__answers_it_and_ends_everything(
    data_dir: Path,
) -> None:
    body = json.dumps(IDENTIFY).encode()
    with make_run(data_dir) as service, SlowRequest(service, body, ingest_key(data_dir)) as request:
        request.begin()
        service.hang_up()
        began = time.monotonic()
        os.killpg(service.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        wait_until(lambda: not accepts_connections(service))
        assert request.finish().startswith(b"HTTP/1.1 200 ")
        assert service.process.wait(DEADLINE) == 0
        assert time.monotonic() - began < 10
        assert nothing_runs(data_dir)
        assert not (data_dir / "store.sock").exists()
        service.stop()
        assert "Traceback" not in service.output()


def accepts_connections(service: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), 1).close()
    except OSError:
        return False
    return True


def test_run__port_taken__says_so_in_one_line(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = failing_run(data_dir, PORT=str(port))
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"cohort-receiver: Port {port} is already in use.")
    assert not (data_dir / "store.log").exists()  # nothing was started


@pytest.mark.parametrize(
    "name",
    ["run.lock", *(["store.sock", "ingest-key", "admin-key", "store.log"] if THOROUGH else [])],
)
def test_run__directory_where_a_file_belongs__says_so_in_one_line(
    data_dir: Path, name: str
) -> None:
    (data_dir / name).mkdir()
    code, lines = failing_run(data_dir)
    assert (code, lines) == (
        1,
        [
            f"cohort-receiver: Cannot use {data_dir / name}: Is a directory. "
            "Fix this, or set DATA_DIR to another folder."
        ],
    )
    assert (data_dir / name).is_dir()


def test_run__file_where_the_folder_belongs__says_so_in_one_line(data_dir: Path) -> None:
    (data_dir / "var").touch()
    code, lines = failing_run(data_dir / "var")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"cohort-receiver: Cannot use {data_dir / 'var'}: File exists.")


@thorough
def test_run__binary_key_file__says_so_in_one_line(data_dir: Path) -> None:
    (data_dir / "ingest-key").write_bytes(b"\xff\xfe\x00key")
    code, lines = failing_run(data_dir)
    assert (code, len(lines)) == (1, 1)
    assert "ingest-key does not hold a key. Delete it to get a new one." in lines[0]


@thorough
@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        ('mkdir "$0/store"; mount -o remount,ro "$0"', "Read-only file system"),
        ('head -c 1000000 /dev/zero >"$0/big" 2>/dev/null', "No space left on device"),
    ],
)
def test_run__disk_that_cannot_be_written__says_so_in_one_line(
    data_dir: Path, prepare: str, error: str
) -> None:
    mount = f'mount -t tmpfs -o size=64k none "$0"; {prepare}; exec "$@"'
    namespace = ("unshare", "--mount", "--map-root-user")
    if subprocess.run([*namespace, "sh", "-c", mount, data_dir, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    code, lines = failing_run(data_dir, (*namespace, "sh", "-c", mount, str(data_dir)))
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith(f"cohort-receiver: Cannot use {data_dir}")
    assert f": {error}. Fix this, or set DATA_DIR to another folder." in lines[0]


def test_run__bad_settings__are_listed_without_a_traceback(data_dir: Path) -> None:
    code, lines = failing_run(data_dir, PORT="eighty", USER_POLICY="maybe")
    assert code == 1
    assert [line.split(":")[:2] for line in lines] == [
        ["cohort-receiver", " PORT"],
        ["cohort-receiver", " USER_POLICY"],
    ]
    assert list(data_dir.iterdir()) == []


@thorough
def test_run__own_store_and_keys__are_used_and_not_printed(data_dir: Path, store_url: str) -> None:
    env = {"API_KEYS": f"{APP}:{KEY}", "ADMIN_API_KEYS": "an-admin-key"}
    with make_run(data_dir, REDIS_URL=store_url, KEY_PREFIX="given", **env) as service:
        assert service.post(IDENTIFY).status == 200
        assert "using that store" in service.output()
        assert f"given:{{{APP}}}:user:" in service.output()
        assert KEY not in service.output()
        assert "an-admin-key" not in service.output()
        assert [path.name for path in data_dir.iterdir()] == ["store"]
        if sys.platform == "linux":
            port = int(service.url.rpartition(":")[2])
            with socket.socket() as other:
                # Free for another address: the service took 127.0.0.1 and not all of them.
                other.bind(("127.0.0.2", port))
        assert service.stop() == 0
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        assert client.hgetall(f"given:{{{APP}}}:user:ann") == {"Early birds:e1": "true"}


@thorough
def test_run__own_store_unavailable__says_so_before_any_guide(data_dir: Path) -> None:
    env = {"API_KEYS": "", "DATA_DIR": str(data_dir), "REDIS_URL": f"unix://{data_dir}/nothing"}
    env["LOG_FORMAT"] = "json"
    with running(env, RUN) as service:
        wait_until(lambda: "its store is not available yet" in service.output())
        assert "store_unreachable" in {event.get("reason") for event in service.events()}
        assert "The dashboard" not in service.output()


def test_make_simulate__nothing_listens__says_how_to_select_another_port(data_dir: Path) -> None:
    (data_dir / "ingest-key").write_text("key")
    simulated = subprocess.run(
        ["make", "--assume-old=install", f"BIN={Path(sys.executable).parent}", "simulate"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir), "PORT": "1"},
        capture_output=True,
        text=True,
    )
    assert simulated.returncode != 0
    assert "Cannot connect to http://127.0.0.1:1: " in simulated.stderr
    assert "\nPORT=... make simulate selects another port.\n" in simulated.stderr


def test_make_run__as_printed_in_the_readme__starts(data_dir: Path) -> None:
    uptodate = subprocess.run(["make", "-q", ".venv/installed"], cwd=ROOT, capture_output=True)
    if uptodate.returncode != 0:
        pytest.skip("the project's .venv is not there or not up to date")
    env = {"API_KEYS": "", "DATA_DIR": str(data_dir)}
    with running(env, ("make", "run")) as service:
        wait_until(lambda: "redis-cli " in service.output())
        port = service.url.rpartition(":")[2]
        simulated = subprocess.run(
            ["make", "simulate", "SIMULATE=--users 20"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir), "PORT": port},
            capture_output=True,
            text=True,
        )
        assert simulated.returncode == 0, simulated.stdout + simulated.stderr
        os.killpg(service.process.pid, signal.SIGINT)
        service.process.wait(DEADLINE)
        assert nothing_runs(data_dir)
