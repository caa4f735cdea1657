"""The story of a run: suite -> facts -> plan -> jobs -> record -> leaderboard and MLflow."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import described, leaderboard, record
from harness.display import display
from harness.drive import Driver, Progress, stopping
from harness.errors import Interrupted, UsageError
from harness.events import event
from harness.execute.local import LocalExecutor, default_slots
from harness.facts import gather
from harness.making import write_job
from harness.plan import Plan, plan
from harness.smoke import rehearsal
from harness.spec import Suite
from harness.store import Store, disk_errors, write_whole
from harness.suite import load
from harness.work import FUNCTIONS


@dataclass(frozen=True)
class Options:
    """How to run. `again` is the command that goes on with an interrupted run; `seed` stands in for the suite's.

    `smoke` rehearses the suite with tiny models, in `out`/smoke; `weak_sandbox` lets the programs of a suite that does
    not say its least level run at the weakest. None but these three changes a result.
    """

    out: Path
    store: Path
    slots: int | None = None
    progress: str = "auto"
    again: str = ""
    seed: int | None = None
    smoke: bool = False
    weak_sandbox: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `warnings` are for the user; `ui` opens MLflow; `kept` are the weights that `keep:` wrote."""

    run_dir: Path
    results: Mapping[str, Any]
    jobs: Mapping[str, int]
    failed: Mapping[str, str]
    seconds: float
    warnings: tuple[str, ...]
    ui: str | None
    kept: Mapping[str, Path]


def run(suite_path: Path, options: Options) -> Outcome:
    """Do what a suite file says."""
    suite = load(suite_path, options.seed)
    if options.weak_sandbox and suite.sandbox is None:
        suite = replace(suite, sandbox="any")
    if options.smoke:
        # Of its own folder, where neither `latest` nor a suite's name finds it.
        suite, options = rehearsal(suite, options.store / "smoke"), replace(options, out=options.out / "smoke")
    return carry_out(suite, options)


def carry_out(suite: Suite, options: Options) -> Outcome:
    """Do what a suite says. Jobs that fail are in the outcome; Ctrl-C raises Interrupted, and what was done is kept."""
    started = time.monotonic()
    store = Store(options.store)
    facts = gather(suite, store)
    planned = plan(suite, facts)
    with run_folder(suite, options.out) as run_dir, store.in_use():
        store.keep(run_dir)
        write_plan(run_dir, planned)
        progress = work_off(planned, store, run_dir, options)
        found = record.assemble(planned, progress)
        record.write(run_dir, found, planned)
        results = found.results
        write_refs(run_dir, planned, progress)
        described.write_curves(run_dir, planned, progress)
        with disk_errors(run_dir):
            leaderboard.write(results, run_dir)
        event("driver.results-written")
        tracked, warnings = send(results, run_dir, mlflow_uri(suite, options.out)) if suite.mlflow else (None, ())
    return Outcome(
        run_dir=run_dir,
        results=results,
        jobs=_count(progress),
        failed={j: f.error for j, f in progress.failed.items() if f.fault != "skipped"},
        seconds=round(time.monotonic() - started, 1),
        warnings=(*described.warnings(results), *warnings),
        ui=tracked,
        kept={j.partition(" ")[2]: e.path / "model" for j, e in progress.done.items() if j.startswith("write ")},
    )


def work_off(planned: Plan, store: Store, run_dir: Path, options: Options) -> Progress:
    """Do the plan's jobs, then write the weights that the suite wants kept."""
    executor = LocalExecutor(options.slots or default_slots(planned.facts.gpus), planned.facts.gpus)
    with stopping(executor), display(options.progress, planned.jobs) as notice:
        driver = Driver(store, executor, run_dir, FUNCTIONS, planned.models_of, notice)
        try:
            progress = driver.drive(planned.jobs)
            if planned.suite.keep == "best":
                for name in record.best_merge(planned, progress):
                    driver.drive({f"write {name}": write_job(name, f"build {name}")})
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {len(driver.progress.done)} of {driver.progress.total} jobs are done and kept. "
                f"Go on with: {options.again or f'fuse-bench run {planned.suite.path}'}"
            ) from None
    write_keys(run_dir, driver)
    return progress


def send(results: Mapping[str, Any], run_dir: Path, uri: str) -> tuple[str | None, tuple[str, ...]]:
    """(the command that opens MLflow's UI, warnings); whatever MLflow says, the run stands."""
    from harness.track import TrackError, track, ui_command

    try:
        tracked = track(results, run_dir, uri)
    except TrackError as error:
        return None, (str(error),)
    return (None, (tracked.hint,)) if tracked.hint else (ui_command(uri), ())


@contextlib.contextmanager
def run_folder(suite: Suite, out: Path) -> Iterator[Path]:
    """`<out>/<suite>-<digest8>`, with the suite's text in it, held by this process alone."""
    run_dir = out.absolute() / f"{suite.name}-{suite.digest[:8]}"
    with disk_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UsageError(
                f"this suite is being run already, by process {lock.read().strip()}, in {run_dir}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        with disk_errors(run_dir):
            write_whole(run_dir / "suite.yaml", suite.text)
        yield run_dir


def write_plan(run_dir: Path, planned: Plan) -> None:
    """plan.json: every job with its spec, so that the next plan can say what changed."""
    jobs = [{"id": j.id, "kind": j.kind, "spec": j.spec, "needs": j.needs} for j in planned.jobs.values()]
    write_whole(run_dir / "plan.json", json.dumps({"suite": planned.suite.name, "jobs": jobs}))


def write_keys(run_dir: Path, driver: Driver) -> None:
    """objects.json: the store's keys that this run stands on; `gc` keeps them."""
    write_whole(run_dir / "objects.json", json.dumps({job: e.key for job, e in driver.progress.done.items()}, indent=1))


def write_refs(run_dir: Path, planned: Plan, progress: Progress) -> None:
    """Where each model's weights are, or what they are merged from: for `fuse-bench export`."""
    write_whole(run_dir / "refs.json", json.dumps(planned.made(progress.done)))


def mlflow_uri(suite: Suite, out: Path) -> str:
    """Where MLflow's records go: `sqlite` is one file beside the run folders."""
    return f"sqlite:///{out.absolute() / 'mlflow.db'}" if suite.mlflow == "sqlite" else str(suite.mlflow)


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder lies, or will."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _count(progress: Progress) -> dict[str, int]:
    skipped = sum(1 for f in progress.failed.values() if f.fault == "skipped")
    return {
        "total": progress.total,
        "ran": len(progress.done) - len(progress.cached),
        "cached": len(progress.cached),
        "failed": len(progress.failed) - skipped,
        "skipped": skipped,
    }
