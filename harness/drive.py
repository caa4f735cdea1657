"""The driver: which job next, on which worker; what is cached, what is tried again, what must be skipped.

State is what the store holds. A driver that dies leaves nothing to repair: the next one finds the same jobs, minus
those that were committed.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.errors import StoreError
from harness.events import event
from harness.execute.local import Report, Slot, log_tail
from harness.job import Job
from harness.store import Entry, Store, digest_of, disk_errors

TRIES = 2


class Executor(Protocol):
    """Places workers; `execute/local.py` is one."""

    def idle(self) -> list[Slot]: ...
    def start(self, slot: Slot, order: Mapping[str, Any]) -> None: ...
    def wait(self, timeout: float) -> list[Report]: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Failure:
    """Why a job has no result. `fault` is user, bug, death or skipped (then `cause` names the job that failed)."""

    error: str
    fault: str
    log: str | None = None
    cause: str | None = None


@dataclass
class Progress:
    """What is known of a run at one moment; displays read it."""

    total: int = 0
    done: dict[str, Entry] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    failed: dict[str, Failure] = field(default_factory=dict)
    running: dict[str, tuple[int, int, float]] = field(default_factory=dict)


class Driver:
    """Does jobs in order, keeps `progress`, and tells `notice` of every change."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        run_dir: Path,
        functions: Mapping[str, str],
        models: Callable[[Job, Mapping[str, Entry]], Mapping[str, Any]],
        notice: Callable[[str, Job, Progress], None] = lambda what, job, progress: None,
    ) -> None:
        self.store, self.executor, self.run_dir = store, executor, run_dir
        self.functions, self.models, self.notice = functions, models, notice
        self.progress = Progress()
        self.tries: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)

    def drive(self, jobs: Mapping[str, Job]) -> Progress:
        """Do all jobs that can be done. A job's failure is in the result, not raised; a disk that refuses is raised."""
        self.jobs = dict(jobs)
        self.waiting = {job.id: {n for n in job.needs if n not in self.progress.done} for job in jobs.values()}
        self.children: dict[str, list[str]] = {}
        for job in jobs.values():
            for need in job.needs:
                self.children.setdefault(need, []).append(job.id)
        self.progress.total += len(jobs)
        self.ready: list[str] = []
        for job in jobs.values():
            self._enter(job.id)
        event("driver.planned")
        while self.ready or self.progress.running:
            self._dispatch()
            for report in self.executor.wait(timeout=1.0):
                self._take(report)
        return self.progress

    def _enter(self, job_id: str) -> None:
        """A job whose inputs are there is cached or ready; one whose input failed is skipped."""
        if job_id in self.keys or job_id in self.progress.failed or self.waiting[job_id]:
            return
        job = self.jobs[job_id]
        key = job.key({need: self.progress.done[need].digest for need in job.needs})
        self.keys[job_id] = key
        entry = self.store.get(key)
        if entry is None:
            self.ready.append(job_id)
        else:
            self.progress.cached.add(job_id)
            self._finish(job, entry, "cached")

    def _finish(self, job: Job, entry: Entry, how: str) -> None:
        self.progress.done[job.id] = entry
        self._log(job, how, key=entry.key)
        self.notice(how, job, self.progress)
        event("driver.finished")
        for child in self.children.get(job.id, ()):
            self.waiting[child].discard(job.id)
            self._enter(child)

    def _dispatch(self) -> None:
        for slot in self.executor.idle():
            if not self.ready:
                return
            job = self.jobs[self._choose(slot)]
            self.ready.remove(job.id)
            slot.model = job.model or slot.model
            self.progress.running[job.id] = (0, 0, time.monotonic())
            self._log(job, "start", key=self.keys[job.id])
            self.notice("start", job, self.progress)
            self.executor.start(slot, self._order(job))
            event("driver.dispatched")

    def _choose(self, slot: Slot) -> str:
        """The next job for a worker: of the model that it has in memory, else of one that no other worker has.

        What makes models comes before what scores them, since other models wait for it; what needs no weights, such as
        judging, before what would swap them.
        """
        elsewhere = {s.model for s in self.executor.idle() if s is not slot} | self._busy_models()

        def rank(job_id: str) -> tuple[bool, bool, bool]:
            job = self.jobs[job_id]
            scores = job.kind in ("generate", "judge", "relate", "probe")
            swaps = job.model is not None and job.model != slot.model
            return (scores, swaps, swaps and job.model in elsewhere)

        return min(self.ready, key=rank)

    def _busy_models(self) -> set[str | None]:
        return {self.jobs[job_id].model for job_id in self.progress.running}

    def _order(self, job: Job) -> dict[str, Any]:
        done = self.progress.done
        inputs = [
            {
                "role": i.role,
                "model": i.model,
                "digest": done[i.job].digest if i.job else i.digest,
                "path": str(done[i.job].path) if i.job else None,
                "result": dict(done[i.job].result) if i.job else {},
            }
            for i in job.inputs
        ]
        return {
            "id": job.id,
            "kind": job.kind,
            "key": self.keys[job.id],
            "function": self.functions[job.kind],
            "spec": job.spec,
            "where": job.where,
            "inputs": inputs,
            **self.models(job, done),
            "store": str(self.store.root),
            "log": str(self.log_path(job)),
        }

    def _take(self, report: Report) -> None:
        job = self.jobs[report.job]
        if report.type == "progress":
            started = self.progress.running[job.id][2]
            self.progress.running[job.id] = (report.body["done"], report.body["total"], started)
            self.notice("progress", job, self.progress)
            return
        del self.progress.running[job.id]
        entry = self.store.get(self.keys[job.id])
        if entry is not None:
            self._finish(job, entry, "ran")
        elif report.body.get("fault") == "disk":
            raise StoreError(report.body["error"])
        elif report.type == "failed":
            self._fail(job, Failure(report.body["error"], report.body["fault"], str(self.log_path(job))))
        else:
            self._retry(job, f"its worker was {report.body.get('how', 'lost')}")

    def _retry(self, job: Job, why: str) -> None:
        """A worker's death is no verdict on the job: once more, on a fresh worker."""
        self.tries[job.id] = self.tries.get(job.id, 0) + 1
        if self.tries[job.id] < TRIES:
            self._log(job, "retry", why=why)
            self.notice("retry", job, self.progress)
            self.ready.insert(0, job.id)
            return
        tail = log_tail(self.log_path(job))
        text = f"{why}, {TRIES} times" + (f"; the last lines of its log:\n{tail}" if tail else "; its log is empty")
        self._fail(job, Failure(text, "death", str(self.log_path(job))))

    def _fail(self, job: Job, failure: Failure) -> None:
        self.progress.failed[job.id] = failure
        self._log(job, "failed", fault=failure.fault, error=failure.error, cause=failure.cause)
        self.notice("failed" if failure.fault != "skipped" else "skipped", job, self.progress)
        for child in self.children.get(job.id, ()):
            if child not in self.progress.failed:
                cause = failure.cause or job.id
                self._fail(self.jobs[child], Failure(f"skipped: {cause} failed", "skipped", cause=cause))

    def log_path(self, job: Job) -> Path:
        """Where a job's output goes."""
        name = re.sub(r"[^A-Za-z0-9_.=,@-]+", "-", job.id)
        name = name if len(name) <= 150 else f"{name[:140]}-{digest_of(job.id)[:8]}"
        return self.run_dir / "logs" / f"{name}.log"

    def _log(self, job: Job, what: str, **more: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": what, "job": job.id, **more})
        path = self.run_dir / "events.jsonl"
        with disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        event("driver.recorded")


@contextlib.contextmanager
def stopping(executor: Executor) -> Iterator[None]:
    """Workers never outlive their driver's work."""
    try:
        yield
    finally:
        executor.stop()
