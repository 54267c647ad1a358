"""docs/security.md names tests that are there, docs/licences.md what runs; how an audit ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_security__every_test_that_it_names__is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert named <= there, named - there


def test_security__every_defence__names_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    defences = page.split("## Defences")[1].split("\n## ")[0].split("\n- ")[1:]
    assert len(defences) > 20
    assert not [defence for defence in defences if "`test_" not in defence.split("\n\n")[0]]


def test_licences__of_every_package_that_runs__are_listed() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = dict(re.findall(r"^\| (\S+) +\| \S+ +\| (.+?) +\|", page, re.M))
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in listed}
    # Some are for other systems than the one that the list was made on.
    missing = {name.lower() for name in pinned} - names - ELSEWHERE
    assert not missing, f"run `make licences`: {missing}"
    assert not [name for name, licence in listed.items() if "UNKNOWN" in licence]


ELSEWHERE = {"colorama", "async-timeout", "cffi", "pycparser"}


def audited(*found: dict[str, Any]) -> str:
    """What pip-audit tells of some packages."""
    packages = [{"name": "flask", "version": "1", **one} for one in found]
    return json.dumps({"dependencies": packages, "fixes": []})


AUDITS = {
    "nothing found": (0, audited({"vulns": []}), "", 0),
    "a hole": (1, audited({"vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}), "Found 1", 1),
    "a package that is not looked up": (0, audited({"vulns": []}, {"skip_reason": "?"}), "", 1),
    "none that is looked up": (0, audited({"skip_reason": "?"}), "", 0),
    "none at all": (0, audited(), "", 1),
    "no way there": (1, "", "ConnectionError: [Errno 111] Connection refused", 0),
    "no name": (1, "", "NameResolutionError: Failed to resolve 'pypi.org'", 0),
    "another's certificate": (1, "", "SSLError: certificate verify failed", 0),
    "a broken list": (1, "", "ERROR: requirements.txt can't be parsed", 1),
    "no such program": (127, "", "", 1),
}


@pytest.mark.parametrize(("code", "told", "said", "ends"), AUDITS.values(), ids=AUDITS)
def test_audit__of_packages__passes_without_an_answer_only_where_none_can_be_had(
    tmp_path: Path, code: int, told: str, said: str, ends: int
) -> None:
    (tmp_path / "told").write_text(told)
    (tmp_path / "said").write_text(said)
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}; cat told; cat said >&2; exit {code}\n")
    program.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "audit"],
        env={**os.environ, "PIP_AUDIT": str(program)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ends, done.stdout + done.stderr
    assert said in done.stderr
