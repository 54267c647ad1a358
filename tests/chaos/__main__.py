"""``python -m tests.chaos``: run, print the figures and write them to docs/reliability.md.

Exit code 0 if nothing was lost, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys

from tests.chaos import failovers, losses
from tests.chaos.report import as_markdown
from tests.chaos.run import run
from tests.support.service import ROOT

MARK = "<!-- figures: written by `make chaos` -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument(
        "--seconds", type=float, default=100, help="duration of the faults in each run"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--partitions", type=int, nargs="+", default=[1, 3], help="one run per number"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write docs/reliability.md")
    options = parser.parse_args()
    outcomes = []
    for partitions in options.partitions:
        print(f"{options.seconds:g} s of faults, {partitions} partition(s) …", flush=True)
        outcomes.append(run(options.seconds, options.seed, partitions=partitions))
    half = options.seconds / 2
    print(f"{half:g} s of losses of the store …", flush=True)
    outcomes.append(losses.run(half, options.seed, partitions=max(options.partitions)))
    for behind_sentinels in (False, True):
        print(f"{half:g} s of failovers …", flush=True)
        outcomes.append(failovers.run(half, options.seed, behind_sentinels=behind_sentinels))
    figures = as_markdown(outcomes)
    print(figures)
    if not options.no_report:
        page = ROOT / "docs" / "reliability.md"
        page.write_text(page.read_text().split(MARK)[0] + MARK + "\n" + figures)
    return any(outcome.wrong for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
