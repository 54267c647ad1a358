"""``python -m tests.mutants``: plant one mistake at a time, and report which ones no test notices.

It works on a copy of the checkout, with the tests of tests/mutants/areas.py, one after the other.
Exit code 1 if fewer were noticed than ``--at-least``, in any area.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.mutants.areas import AREAS, Area
from tests.mutants.lua_mutants import lua_mutants
from tests.mutants.mutant import Mutant
from tests.mutants.python_mutants import python_mutants

ROOT = Path(__file__).resolve().parents[2]
# Neither sources nor what tests need, or not to be touched.
_NOT_COPIED = (
    ".git",
    ".venv",
    ".cache",
    "__pycache__",
    "var",
    "dist",
    "node_modules",
    ".hypothesis",
)
# A mistake that makes tests take so much longer than they did without it counts as noticed.
_SLOWER, _MIN_SECONDS = 3, 30
_PYTEST = (
    *(sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"),
    # The same order and examples each time.
    *("-p", "no:randomly", "--hypothesis-seed=0"),
    # What is left open fails a run without failing a test. It may be another mistake's.
    *("-W", "default::pytest.PytestUnraisableExceptionWarning"),
)


class Run(NamedTuple):
    """A run of tests. ``outcome`` is "survived", "noticed", "too slow" or "broken"."""

    outcome: str
    seconds: float
    output: str


class Tally:
    """What became of the mistakes in an area."""

    def __init__(self) -> None:
        self.possible = 0
        self.tried = 0
        self.survivors: list[str] = []

    @property
    def share(self) -> float:
        """The share that was noticed, 0 to 1; 1 if none was tried."""
        return 1 - len(self.survivors) / self.tried if self.tried else 1.0


def main(arguments: list[str]) -> int:
    """Plant mistakes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--area", choices=AREAS, action="append", help="by default, all areas")
    parser.add_argument("--file", default="", help="only files whose path contains this")
    parser.add_argument("--line", type=int, help="only mistakes that begin on this line")
    parser.add_argument("--sample", type=int, default=20, help="mistakes in each area; 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="chooses the sample")
    parser.add_argument("--seconds", type=int, default=3600, help="when to stop, in seconds")
    parser.add_argument("--at-least", type=int, default=0, help="percentage that must be noticed")
    options = parser.parse_args(arguments)
    os.nice(10)
    end = time.monotonic() + options.seconds
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=True)
        for name in options.area or AREAS:
            mutants = [
                mutant
                for mutant in mutants_of(AREAS[name], copy)
                if options.file in mutant.path
                and options.line in (None, mutant.line((copy / mutant.path).read_text()))
            ]
            chosen = random.Random(options.seed).sample(
                mutants, min(options.sample or len(mutants), len(mutants))
            )
            print(f"{name}: {len(chosen)} of {len(mutants)} mistakes", flush=True)
            tally = tallies[name] = _try_all(copy, AREAS[name], chosen, end)
            tally.possible = len(mutants)
    _report(tallies, options.seed)
    return int(any(100 * tally.share < options.at_least for tally in tallies.values()))


def mutants_of(area: Area, root: Path) -> list[Mutant]:
    """All mistakes for the files of an area."""
    found = []
    for path in area.paths(root):
        kind = lua_mutants if path.endswith(".lua") else python_mutants
        found += kind(path, (root / path).read_text())
    return found


def _try_all(copy: Path, area: Area, mutants: list[Mutant], end: float) -> Tally:
    tally = Tally()
    if not mutants:
        return tally
    without = run_tests(copy, area.tests, max(end - time.monotonic(), 0))
    if without.outcome != "survived":
        sys.exit(f"The tests fail without a mistake:\n{without.output}")
    longest = max(_MIN_SECONDS, _SLOWER * without.seconds)
    for mutant in mutants:
        if time.monotonic() + longest > end:
            print("  out of time")
            break
        text = (copy / mutant.path).read_text()
        run = try_one(copy, area, mutant, longest)
        place = f"{mutant.path}:{mutant.line(text)} {mutant.kind}"
        print(f"  {run.outcome:<9}{run.seconds:5.1f} s  {place}", flush=True)
        if run.outcome == "broken":
            sys.exit(run.output)
        tally.tried += 1
        if run.outcome == "survived":
            tally.survivors.append(f"{place}\n{mutant.diff(text)}")
    return tally


def try_one(copy: Path, area: Area, mutant: Mutant, longest: float) -> Run:
    """Run an area's tests with a mistake in a copy of the checkout, and take it out again."""
    file = copy / mutant.path
    text = file.read_text()
    file.write_text(mutant.planted(text))
    try:
        return run_tests(copy, area.tests, longest)
    finally:
        file.write_text(text)


def run_tests(copy: Path, tests: tuple[str, ...], longest: float) -> Run:
    """Run tests of a copy of the checkout, for ``longest`` seconds at most."""
    began = time.monotonic()
    temporary = copy.parent / "tmp"
    temporary.mkdir()
    # A file that is changed twice in a second would be taken from the cache of compiled modules.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)}
    with (copy.parent / "output").open("w+") as output:
        process = subprocess.Popen(
            (*_PYTEST, *dict.fromkeys(tests)),
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(longest)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
            shutil.rmtree(temporary, ignore_errors=True)
        output.seek(0)
        text = output.read()
    return Run(_outcome(code, text), time.monotonic() - began, text[-3000:])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the tests and the stores that they started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def _outcome(code: int | None, output: str) -> str:
    if code is None or "+ Timeout +" in output:
        return "too slow"
    if code == 0:
        return "survived"
    # Errors are of fixtures, or of modules that can't be imported any more.
    if re.search(r"\b\d+ (?:failed|errors?)\b", output) or "ImportError" in output:
        return "noticed"
    return "broken"


def _report(tallies: dict[str, Tally], seed: int) -> None:
    print(f"\nSeed {seed}\n\n| area | possible | tried | noticed | survived |")
    print("|---|---:|---:|---:|---:|")
    for name, tally in tallies.items():
        share = f"{100 * tally.share:.0f}%" if tally.tried else "-"
        print(f"| {name} | {tally.possible} | {tally.tried} | {share} | {len(tally.survivors)} |")
    for name, tally in tallies.items():
        for survivor in tally.survivors:
            print(f"\n{name}: {survivor}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
