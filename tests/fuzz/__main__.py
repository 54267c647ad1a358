"""``python -m tests.fuzz``: fuzz all targets in parallel for some time.

Exit code 1 if a target failed; the input is then in ``var/fuzz-failures/``. If the fuzzer is not
installed, it exits with 1 in CI only. ``--keep`` merges new inputs into the corpus; of inputs that
reach the same code, it keeps the smallest.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
CORPUS, DICTIONARY = FOLDER / "corpus", FOLDER / "dictionary.txt"
FAILURES = FOLDER.parents[1] / "var" / "fuzz-failures"
TARGETS = ("body", "trait")
_MOST_BYTES = 4096
_MERGE_SECONDS = 60
# Inputs are short: one that takes longer is a failure.
_INPUT_SECONDS = 5


def main(arguments: list[str]) -> int:
    """Run the fuzzer. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600, help="duration; by default an hour")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this target")
    parser.add_argument("--keep", action="store_true", help="add new inputs to the corpus")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("Not fuzzed: atheris, the fuzzer, is not available for this Python.")
        return int(os.environ.get("CI") == "true")
    with tempfile.TemporaryDirectory() as folder:
        return _run_all(Path(folder), options.target or TARGETS, options.seconds, options.keep)


def _run_all(folder: Path, targets: Sequence[str], seconds: int, keep: bool) -> int:
    FAILURES.mkdir(parents=True, exist_ok=True)
    running = {}
    for target in targets:
        found = folder / target
        found.mkdir()
        log = (folder / f"{target}.log").open("w+")
        limits = (f"-max_total_time={seconds}", f"-max_len={_MOST_BYTES}")
        limits += (f"-timeout={_INPUT_SECONDS}",)
        options = (f"-dict={DICTIONARY}", f"-artifact_prefix={FAILURES}/{target}-")
        command = _command(target, *limits, *options, str(found), str(CORPUS / target))
        running[target] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), log
    failed = 0
    for target, (process, log) in running.items():
        code = process.wait()
        log.seek(0)
        output = log.read()
        done = re.findall(r"Done (\d+) runs in (\d+) second", output)
        covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
        if code or not done:
            failed += 1
            print(f"{target}: FAILED\n{output[-3000:]}")
            continue
        edges, features, inputs = covered[-1] if covered else ("?", "?", "?")
        print(
            f"{target}: no failure in {int(done[-1][0]):,} runs of {done[-1][1]} s; "
            f"{edges} edges, {features} features, {inputs} inputs"
        )
        if keep:
            _merge(target, folder / target)
    return 1 if failed else 0


def _merge(target: str, found: Path) -> None:
    """Merge new inputs into the corpus, keeping the smallest of those that reach the same code."""
    with tempfile.TemporaryDirectory() as merged:
        command = _command(target, "-merge=1", merged, str(CORPUS / target), str(found))
        subprocess.run(command, check=True, capture_output=True, timeout=10 * _MERGE_SECONDS)
        for path in (CORPUS / target).iterdir():
            path.unlink()
        for path in Path(merged).iterdir():
            shutil.copy(path, CORPUS / target / path.name[:16])
    print(f"{target}: {len(list((CORPUS / target).iterdir()))} inputs in the corpus")


def _command(target: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.one", target, *options]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
