"""``python -m cohort_reader check``: declared cohorts against the store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from cohort_reader.__main__ import main
from tests.integration.conftest import APP, caller
from tests.integration.reader.conftest import COHORT, Service
from tests.support.polling import DEADLINE

READER = Path(__file__).resolve().parents[3] / "reader"
DECLARED = f"""
from enum import StrEnum

class Cohorts(StrEnum):
    POWER_USERS = "{COHORT}"
    TRIAL = "trial1"

class Wrong(StrEnum):
    POWER_USERS = "{COHORT}"
    TRIAL = "trail1"

BY_NAME = {{"power users": "{COHORT}"}}
IDS = ["trial1", "{COHORT}"]
NOTHING = []
NUMBERS = [1]

class Holder:
    IDS = ("trial1",)
"""

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(
    tmp_path: Path,
    store_url: str,
    make_app: Callable[..., Flask],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder of an application, whose store has two cohorts."""
    service = Service(caller(make_app(store_partitions=2)), 2)
    service.push("a")
    service.push("a", trait="[Amplitude] Trial: trial1")
    (tmp_path / "shop_cohorts.py").write_text(DECLARED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "shop_cohorts", raising=False)
    monkeypatch.setenv("REDIS_URL", store_url)
    return tmp_path


@pytest.fixture
def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the command; returns its exit code and what it printed to stdout and stderr."""

    def check(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(["check", *arguments])
        except SystemExit as error:
            code = int(str(error.code))
        return code, *capsys.readouterr()

    return check


def test_check__as_people_start_it__finds_the_module_in_this_folder(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cohort_reader", "check", "shop_cohorts:Cohorts", "--app", APP],
        env={**os.environ, "PYTHONPATH": str(READER)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("all 2 cohorts exist\n", 0)


def test_check__of_declared_cohorts__reports_those_never_received(check: Check) -> None:
    for name, count in (("Cohorts", 2), ("BY_NAME", 1), ("IDS", 2), ("Holder.IDS", 1)):
        done = check(f"shop_cohorts:{name}", "--app", APP)
        assert done == (0, f"all {count} cohorts exist\n", "")
    done = check("shop_cohorts:Wrong", "--app", APP)
    assert done == (1, "TRIAL = 'trail1' is not in the store; similar: trial1\n", "")


def test_check__that_cannot_be_made__says_why_in_one_line(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (["shop_cohorts:Cohorts"], "nothing was ever received for the app 'default'"),
        (["shop_cohorts:Cohorts", "--prefix", "x"], "the store has no x:layout"),
        (["shop_cohorts:Cohorts", "--url", f"unix://{tmp_path}/none"], "No such file"),
        (["shop_cohorts"], "is not of the form module:name"),
        (["shop_cohort:Cohorts"], "No module named 'shop_cohort'"),
        (["shop_cohorts:Cohort"], "has no attribute 'Cohort'"),
        (["shop_cohorts:NOTHING"], "at least one"),
        (["shop_cohorts:NUMBERS"], "only strings"),
    ):
        code, _, printed = check(*arguments)
        assert code == 2
        assert message in printed
        assert printed.count("\n") == 1, printed
    monkeypatch.delenv("REDIS_URL")
    code, _, printed = check("shop_cohorts:Cohorts")
    assert code == 2
    assert "--url or $REDIS_URL is needed" in printed
