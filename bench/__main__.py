"""``python -m bench``: measure the service, and fail if a limit is missed."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from bench import growth, reader, replace
from bench.plan import DEFAULT, GROUPS, SIZES
from bench.report import report, write
from bench.runner import Sample, measure, progress
from bench.servers import ROOT

# Measured step by step rather than as groups of loads.
SCENARIOS = {"reader": reader.run, "growth": growth.run, "replace": replace.run}


def main(arguments: list[str]) -> int:
    """Measure the groups that are named. Returns the exit code: 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"{', '.join([*GROUPS, *SCENARIOS])}; by default {', '.join(DEFAULT)}",
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="how long, and how much data")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    names = options.groups or DEFAULT
    if unknown := set(names) - {*GROUPS, *SCENARIOS}:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    against = options.against.resolve() if options.against else None
    if against and not (against / "wsgi.py").is_file():
        parser.error(f"{against} has no wsgi.py")
    # It warns while the store hangs.
    logging.getLogger("cohort_reader").setLevel(logging.ERROR)
    size, reports, samples = SIZES[options.size], [], {}
    for name in names:
        if name in SCENARIOS:
            found = SCENARIOS[name](size, ROOT)
            if against:
                print(f"\n## {name}, {against}\n\n{SCENARIOS[name](size, against)}")
        else:
            samples[name] = measure(GROUPS[name], size, against)
            found = report(GROUPS[name], samples[name])
        progress("")
        print(f"\n## {name}\n\n{found}", flush=True)
        reports.append(found)
        if options.write_docs:
            write(name, str(found))
    if options.json:
        options.json.write_text(json.dumps(_document(samples), indent=1) + "\n")
    return 0 if all(found.passed for found in reports) else 1


def _document(samples: dict[str, list[Sample]]) -> dict[str, list[dict[str, object]]]:
    return {name: [asdict(sample) for sample in found] for name, found in samples.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
