"""What CI passes and fails: flaky, failing and skipped tests, and vulnerable packages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.effort import thorough

ROOT = Path(__file__).resolve().parents[2]
# Plugins that take a second to import.
QUICK = ("-p", "no:schemathesis", "-p", "no:hypothesispytest", "-p", "no:randomly")


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def some_tests(tmp_path: Path) -> Path:
    """A file with a test of each outcome."""
    path = tmp_path / "test_some.py"
    path.write_text(
        f"""
import pathlib, pytest
HERE = pathlib.Path({str(tmp_path)!r})
def test_good(): pass
def test_flaky():
    seen = (HERE / "seen").exists()
    (HERE / "seen").touch()
    assert seen
def test_bad(): assert False
def test_skipped(): pytest.skip("its program is missing")
@pytest.mark.xfail
def test_xfail(): assert False
"""
    )
    return path


def ci_test(path: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    options = ("--rootdir", path.parent, "-c", ROOT / "setup.cfg", "-p", "tests.conftest", *QUICK)
    tests = [f"{path}::test_{name}" for name in names]
    return run(ROOT / ".ci" / "test", *options, *tests, **env)


@thorough
def test_ci__flaky_test__is_run_again_reported_and_passes(some_tests: Path) -> None:
    done = ci_test(some_tests, "good", "flaky", PYTEST_ADDOPTS="-n 1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "1 passed" in done.stdout.partition("once more")[2]
    assert done.stdout.endswith("\nFLAKY test_some.py::test_flaky\n")


@thorough
def test_ci__test_that_fails_twice__fails_and_flaky_ones_are_still_reported(
    some_tests: Path,
) -> None:
    done = ci_test(some_tests, "good", "flaky", "bad")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("FLAKY ") == 1
    assert done.stdout.endswith("\nFLAKY test_some.py::test_flaky\n")


@thorough
def test_ci__pytest_itself_fails__fails_without_a_second_run(some_tests: Path) -> None:
    done = ci_test(some_tests, "missing")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "once more" not in done.stdout


@thorough
def test_ci__skipped_test__fails(some_tests: Path) -> None:
    done = ci_test(some_tests, "skipped", "xfail", CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "CI skips no test: its program is missing" in done.stdout
    assert "1 failed, 1 xfailed" in done.stdout


def audited(*packages: dict[str, Any]) -> str:
    """A report of pip-audit."""
    dependencies = [{"name": "flask", "version": "1", **package} for package in packages]
    return json.dumps({"dependencies": dependencies, "fixes": []})


VULNERABLE = audited({"vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]})
# Exit code, standard output and standard error of pip-audit, and the exit code that follows.
AUDITS = {
    "nothing found": (0, audited({"vulns": []}), "", 0),
    "a vulnerability": (1, VULNERABLE, "Found 1", 1),
    "a package skipped": (0, audited({"vulns": []}, {"skip_reason": "?"}), "", 1),
    "all packages skipped": (0, audited({"skip_reason": "?"}), "", 0),
    "no packages": (0, audited(), "", 1),
    "connection refused": (1, "", "ConnectionError: [Errno 111] Connection refused", 0),
    "no name resolution": (1, "", "NameResolutionError: Failed to resolve 'pypi.org'", 0),
    "another certificate": (1, "", "SSLError: certificate verify failed", 0),
    "invalid requirements": (1, "", "ERROR: requirements.txt can't be parsed", 1),
    "no such program": (127, "", "", 1),
}


@pytest.mark.parametrize(("code", "stdout", "stderr", "expected"), AUDITS.values(), ids=AUDITS)
def test_vulnerabilities__undetermined__pass_only_without_a_database(
    tmp_path: Path, code: int, stdout: str, stderr: str, expected: int
) -> None:
    (tmp_path / "stdout").write_text(stdout)
    (tmp_path / "stderr").write_text(stderr)
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}; cat stdout; cat stderr >&2; exit {code}\n")
    program.chmod(0o755)
    done = run(ROOT / ".ci" / "vulnerabilities", PIP_AUDIT=str(program))
    assert done.returncode == expected, done.stdout + done.stderr
    assert stderr in done.stderr
