"""`make bench-sandbox`: programs a second at every level of the sandbox that the machine has.

Each program is right and quick, so what is timed is a process's start, its isolation, four calls and its end. Two run
at a time, as by default; the levels take turns, and the median counts.
"""

import argparse
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any
from unittest import mock

from harness import sandbox
from tests.bench.bench_merge import machine, versions
from tests.conftest import ROOT

GOALS = {"namespaces": 40.0, "bubblewrap": 18.0}
PROGRAM = sandbox.Program(
    "def f(x):\n    return [n * n for n in range(x)]\n",
    "assert f(0) == []\nassert f(2) == [0, 1]\nassert f(3) == [0, 1, 4]\nassert len(f(100)) == 100\n",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=100, help="a run")
    parser.add_argument("--runs", type=int, default=3, help="of each level, the median of which counts")
    options = parser.parse_args()
    missing = sandbox.probe()
    usable = [level for level, why in missing.items() if why is None]
    began = os.getloadavg()[0]
    rates: dict[str, list[float]] = {level: [] for level in usable}
    for _ in range(options.runs):
        for level in usable:
            rates[level].append(rate(level, options.programs))
            print(f"{level}: {rates[level][-1]:.1f} programs a second", flush=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions("ours"),
        "options": vars(options),
        "user": "root" if os.getuid() == 0 else "an ordinary user",
        "load": {"before": began, "after": os.getloadavg()[0]},
        "missing": {
            level: why.replace(sys.executable, "the interpreter") for level, why in missing.items() if why is not None
        },
        "levels": {
            level: {"runs": runs, "median": statistics.median(runs), "goal": GOALS.get(level)}
            for level, runs in rates.items()
        },
    }
    path = ROOT / "results" / "benchmarks" / f"sandbox-{report['date'][:10]}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(f"{path}.md")


def rate(level: str, count: int) -> float:
    """Programs a second. Raises SystemExit if one does not pass: then nothing was measured."""
    with mock.patch.object(sandbox, "LEVELS", {level: sandbox.LEVELS[level]}):
        started = time.perf_counter()
        verdicts = sandbox.run_many([PROGRAM] * count, sandbox.SandboxSettings(level, timeout=10.0))
        wall = time.perf_counter() - started
    failed = [verdict.reason for verdict in verdicts if not verdict.passed]
    if failed:
        raise SystemExit(f"{level}: {len(failed)} of {count} right programs did not pass, the first: {failed[0]}")
    return count / wall


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    found, options, load = report["machine"], report["options"], report["load"]
    lines = [
        f"# Programs in the sandbox, {report['date'][:10]}",
        "",
        f"{found['cpu']}, {found['cores']} cores, as {report['user']}. {options['programs']} right programs of four "
        f"calls, two at a time; the median of {options['runs']} runs, the levels in turns. Load of the machine "
        f"(processes that run or wait, averaged over a minute): {load['before']:.1f} before, {load['after']:.1f} "
        "after; the goals are those of two quiet cores.",
        "",
        "| level | programs a second | goal | runs |",
        "| --- | --- | --- | --- |",
    ]
    for level, part in report["levels"].items():
        runs = ", ".join(f"{run:.1f}" for run in part["runs"])
        goal = "" if part["goal"] is None else f"{part['goal']:.0f}"
        lines.append(f"| {level} | {part['median']:.1f} | {goal} | {runs} |")
    lines += [f"\n{level} is not measured: {why}." for level, why in report["missing"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
