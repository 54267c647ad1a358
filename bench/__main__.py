"""``python -m bench``: compare the service with the afternoon version and the store alone, then
its reads with a bare Flask, then itself with and without history and metrics.

By themselves: ``python -m bench reads``, ``watching``, ``pages``, ``rename``, ``stalled``,
``apps``, ``cluster`` and ``growth``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import apps, cluster, docs, growth, pages, reads, rename, stalled, watching
from bench.measure import Plan, measure, tell_stderr
from bench.report import Results

OTHERS = {
    "apps": apps.main,
    "cluster": cluster.main,
    "growth": growth.main,
    "pages": pages.main,
    "reads": reads.main,
    "rename": rename.main,
    "stalled": stalled.main,
    "watching": watching.main,
}


def main(arguments: list[str]) -> int:
    """Run what is asked for. Returns the exit code: 1 when a bar is missed."""
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    options = _parse(arguments)
    plan = Plan(
        clients=options.clients,
        batches=options.batches,
        seconds=options.seconds,
        repeat=options.repeat,
        rate_limit=options.rate_limit,
        appendonly=options.appendonly,
        appendfsync=options.appendfsync,
        heavy=not options.quick,
        memory_users=options.memory_users,
    )
    results = Results(plan, *measure(plan, tell_stderr))
    tell_stderr("")
    print(results.text())
    if options.json:
        options.json.write_text(json.dumps(results.document(), indent=1) + "\n")
    if options.write_docs:
        docs.write("speed", results.text())
    missed = not all(bar.passed for bar in results.bars())
    same = [f"--{name}" for name in ("quick", "write-docs") if f"--{name}" in arguments]
    for wanted, part in ((options.reads, reads), (options.watching, watching)):
        if wanted:
            print()
            missed |= bool(part.main(same))
    return int(missed)


def _parse(arguments: list[str]) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--clients", type=_numbers, default=plan.clients, metavar="N,N")
    parser.add_argument(
        "--batches", type=_numbers, default=plan.batches, metavar="N,N", help="users a request"
    )
    parser.add_argument("--seconds", type=float, help="of each load; default 1.5, quick 0.5")
    parser.add_argument("--repeat", type=int, help="rounds; default 7, quick 1")
    parser.add_argument("--quick", action="store_true", help="a rough picture, in under 40 s")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--memory-users", type=int, default=plan.memory_users)
    parser.add_argument("--no-reads", dest="reads", action="store_false", help="no reads")
    parser.add_argument(
        "--no-watching", dest="watching", action="store_false", help="not what watching costs"
    )
    parser.add_argument("--rate-limit", default=plan.rate_limit, help="the service's RATE_LIMIT")
    parser.add_argument("--appendonly", choices=["yes", "no"], default=plan.appendonly)
    parser.add_argument(
        "--appendfsync", choices=["always", "everysec", "no"], default=plan.appendfsync
    )
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (0.5 if options.quick else plan.seconds)
    options.repeat = options.repeat or (1 if options.quick else plan.repeat)
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
