"""`make bench-evaluate`: what our evaluation costs beside lm-eval's, on few-shot and zero-shot multiple choice.

1. One model, task by task, in one process and one thread, in turns: bare `lm_eval.evaluate()` over all items; our
   blocks around lm-eval's own way to read; the live model as it is. Processor time, as the machine may be shared, and
   how far log-likelihoods are apart. See evaluate_runs.py.
2. Six candidates of one architecture (two sources, four linear merges) on three groups: one `fuse-bench run` from
   nothing, beside six lm-eval command lines on the same models, written out beforehand. Wall time, process start and
   all; the same scores; and what one more candidate takes where there is next to nothing to evaluate.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.bench_merge import ENVIRONMENT, machine, place, versions
from tests.bench.evaluate_world import WEIGHTS, write_suite
from tests.bench.measure import Measured, measure
from tests.conftest import ROOT

LIMITS = {"single": 1.03, "six": 1 / 3, "delta": 1e-4}
BIN = ROOT / ".venv" / "bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100, help="of each task")
    parser.add_argument("--runs", type=int, default=2, help="of each way to read one model; the quickest counts")
    parser.add_argument("--quick", action="store_true", help="16 items, one run: to see that the benchmark works")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a command is given up")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    args = parser.parse_args()
    items, runs = (16, 1) if args.quick else (args.items, args.runs)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions("ours"),
        "limits": LIMITS,
        "items": items,
        "runs": runs,
    }
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        report |= one_model(Path(folder), items, runs, args.timeout)
        report["six"] = six_models(Path(folder), args.timeout)
    path = place(args.out, "evaluate")
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(f"\n{markdown(report)}\n{path}")
    sys.exit(missed(report) and not args.quick)


def one_model(folder: Path, items: int, runs: int, timeout: float) -> dict[str, Any]:
    """The first part; it leaves the models and tasks of the second in the folder."""
    print("one model ...", flush=True)
    command = [sys.executable, "-m", "tests.bench.evaluate_runs", str(folder), str(items), str(runs)]
    _, said = _run(command, folder / "single.txt", timeout, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    ways = ("bare", "blocks", "live")
    found["cpu"] = {way: sum(task["cpu"][way] for task in found["tasks"].values()) for way in ways}
    found["ratio"] = found["cpu"]["live"] / found["cpu"]["bare"]
    return found


def six_models(folder: Path, timeout: float) -> dict[str, Any]:
    """The second part."""
    tasks = {path.stem: path for path in sorted((folder / "tasks").glob("*.yaml"))}
    few = {path.stem: path for path in sorted((folder / "few").glob("*.yaml"))}
    ours, scores = _ours(write_suite(folder / "six.yaml", tasks, len(WEIGHTS)), timeout)
    theirs: dict[str, Measured] = {}
    same = True
    for name in scores:
        print(f"lm-eval on {name} ...", flush=True)
        theirs[name], found = _lm_eval(folder, name, list(tasks.values()), timeout)
        same = same and found.keys() == scores[name].keys()
        same = same and all(math.isclose(value, scores[name][task]) for task, value in found.items())
    all_of_them = _ours(write_suite(folder / "many.yaml", few, len(WEIGHTS)), timeout)[0]
    one_of_them = _ours(write_suite(folder / "one.yaml", few, 1), timeout)[0]
    wall = sum(run.wall for run in theirs.values())
    return {
        "ours": asdict(ours),
        "theirs": {name: asdict(run) for name, run in theirs.items()},
        "ratio": ours.wall / wall,
        "same_scores": same,
        "scores": scores,
        "start": one_of_them.wall,
        "overhead": (all_of_them.wall - one_of_them.wall) / (len(WEIGHTS) - 1),
        "overhead_cpu": (all_of_them.cpu - one_of_them.cpu) / (len(WEIGHTS) - 1),
    }


def _ours(suite: Path, timeout: float) -> tuple[Measured, dict[str, dict[str, float]]]:
    """A run from nothing, and each model's scores by task."""
    print(f"fuse-bench run {suite.name} ...", flush=True)
    out, store = suite.parent / f"runs-{suite.stem}", suite.parent / f"store-{suite.stem}"
    command = [str(BIN / "fuse-bench"), "run", str(suite), "--out", str(out), "--store", str(store)]
    run, _ = _run(command, suite.with_suffix(".txt"), timeout, {})
    (path,) = out.glob("*/results.json")
    models = json.loads(path.read_text())["models"]
    return run, {
        name: {task: entry["value"] for group in model["scores"].values() for task, entry in group["tasks"].items()}
        for name, model in models.items()
    }


def _lm_eval(folder: Path, name: str, tasks: list[Path], timeout: float) -> tuple[Measured, dict[str, float]]:
    """One lm-eval command line, and its scores by task: acc_norm, which is what counts for these tasks."""
    out = folder / f"lm-eval-{name}"
    command = [str(BIN / "lm_eval"), "--model", "hf", "--model_args", f"pretrained={folder / name},dtype=float32"]
    command += ["--tasks", ",".join(map(str, tasks)), "--device", "cpu", "--batch_size", "16"]
    run, _ = _run([*command, "--output_path", str(out), "--log_samples"], out.with_suffix(".txt"), timeout, {})
    (path,) = out.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    return run, {task: found["acc_norm,none"] for task, found in results.items()}


def _run(command: list[str], log: Path, timeout: float, more: dict[str, str]) -> tuple[Measured, str]:
    run = measure(command, {**ENVIRONMENT, "HF_DATASETS_OFFLINE": "1", **more}, timeout, log)
    if run.error:
        raise SystemExit(f"{' '.join(command)}: {run.error}")
    return run, log.read_text()


def missed(report: dict[str, Any]) -> bool:
    """Whether a figure is beyond its limit."""
    return (
        report["ratio"] > LIMITS["single"]
        or report["six"]["ratio"] > LIMITS["six"]
        or not report["six"]["same_scores"]
        or any(task["delta"] > LIMITS["delta"] or not task["greedy"] for task in report["tasks"].values())
    )


def markdown(report: dict[str, Any]) -> str:
    """The report for people, each figure beside its limit."""
    machine, ours, six = report["machine"], report["versions"]["ours"], report["six"]
    lines = [
        f"# Evaluation beside lm-eval, {report['date'][:10]}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; torch {ours['torch']}, transformers "
        f"{ours['transformers']}; fuse-bench {ours['commit']}; load at the start {machine['load'][0]:.1f}. A random "
        f"llama of {report['parameters'] / 1e6:.0f} M parameters in float32, 32,000 tokens, batches of 16; "
        f"{report['items']} items of each task.",
        "",
        "## One model, one thread, processor seconds",
        "",
        "| task | requests | lm-eval | our blocks, lm-eval's reading | live model | live / lm-eval | limit | "
        "largest difference in log-likelihood | limit |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, task in report["tasks"].items():
        lines.append(
            _row(name, f"{task['requests']}", task["cpu"], ["", f"{task['delta']:.1e}", f"{LIMITS['delta']:g}"])
        )
    lines += [
        _row("all", "", report["cpu"], [f"{LIMITS['single']:g}", "", ""]),
        "",
        "## Six candidates of one architecture on three groups, from a cold start",
        "",
        "| how | wall s | cpu s | others' cpu s | peak GiB |",
        "| --- | --: | --: | --: | --: |",
        _measured("one `fuse-bench run`", [six["ours"]]),
        _measured("six lm-eval command lines", list(six["theirs"].values())),
        "",
        f"Ratio of wall times {six['ratio']:.2f} (limit {LIMITS['six']:.2f}); scores "
        f"{'are the same' if six['same_scores'] else 'DIFFER'}. With two items a task, a run of three candidates takes "
        f"{six['start']:.1f} s, and each further one {six['overhead']:.1f} s ({six['overhead_cpu']:.1f} of processor "
        "time): what a candidate costs besides reading.",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, requests: str, cpu: dict[str, float], more: list[str]) -> str:
    seconds = [f"{cpu[way]:.1f}" for way in ("bare", "blocks", "live")]
    cells = [name, requests, *seconds, f"{cpu['live'] / cpu['bare']:.2f}", *more]
    return f"| {' | '.join(cells)} |"


def _measured(name: str, runs: list[dict[str, Any]]) -> str:
    sums = [f"{sum(run[key] for run in runs):.1f}" for key in ("wall", "cpu", "others")]
    peak = max(run["peak"] for run in runs) / 2**30
    return f"| {' | '.join([name, *sums, f'{peak:.2f}'])} |"


if __name__ == "__main__":
    main()
