"""docs/security.md names tests that exist, and docs/licences.md every package."""

from __future__ import annotations

import re
from pathlib import Path

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


ELSEWHERE = {"colorama", "async-timeout", "cffi", "pycparser", "tzdata"}
