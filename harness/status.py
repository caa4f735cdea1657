"""What a plan would do, given what the store holds: cached or pending, why, and what disk and memory it needs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.job import Job
from harness.plan import Plan
from harness.store import Entry, Store

WEIGHTS = ("train", "fuse", "write")


@dataclass(frozen=True)
class Status:
    """A job's state: cached (then under `key`), pending, or failed before; `reason` says why it is not cached."""

    job: Job
    state: str
    reason: str
    key: str | None = None


def status(plan: Plan, store: Store, previous: Mapping[str, Any], failed: Mapping[str, str]) -> list[Status]:
    """The state of every job. `previous` maps job ids to the specs of the last plan, `failed` to their errors."""
    done: dict[str, Entry] = {}
    found = []
    for job in plan.jobs.values():
        missing = next((need for need in job.needs if need not in done), None)
        entry = None
        if missing is None:
            entry = store.get(job.key({need: done[need].digest for need in job.needs}))
        if entry is not None:
            done[job.id] = entry
            found.append(Status(job, "cached", "", entry.key))
        elif job.id in failed:
            found.append(Status(job, "failed", f"failed before: {failed[job.id].splitlines()[0]}"))
        else:
            found.append(Status(job, "pending", _reason(job, previous.get(job.id), missing)))
    return found


def previous_plan(run_dirs: list[Path]) -> dict[str, Any]:
    """The specs, by job id, of the newest of some run folders; empty when there is none."""
    plans = [path / "plan.json" for path in run_dirs if (path / "plan.json").is_file()]
    if not plans:
        return {}
    newest = max(plans, key=lambda path: path.stat().st_mtime_ns)
    return {job["id"]: job["spec"] for job in json.loads(newest.read_text())["jobs"]}


def failures(run_dir: Path) -> dict[str, str]:
    """The errors of the jobs that failed when this run folder was last worked on."""
    last: dict[str, str] = {}
    try:
        lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed driver
        if record["event"] == "failed" and record["fault"] != "skipped":
            last[record["job"]] = record["error"]
        elif record["event"] in ("ran", "cached"):
            last.pop(record["job"], None)
    return last


def needs(plan: Plan, store: Store, states: Sequence[Status]) -> dict[str, int | None]:
    """Bytes of disk for the weights that are still to be made, and of memory for one worker's model, or ensemble.

    What is not made yet is taken to be as large as the largest model that is there; None while none is.
    """
    known = [facts.bytes for facts in plan.facts.folders.values()]
    known += [_weights(store.path(s.key)) for s in states if s.key and s.job.kind in WEIGHTS]
    pending = sum(1 for s in states if s.state != "cached" and s.job.kind in WEIGHTS)
    merges = [s for s in states if s.job.kind == "build" and "route" in s.job.spec]
    if plan.suite.keep == "best" and any(s.state != "cached" for s in merges):
        pending += 1  # which merge is best is known, and its writing planned, once all are scored
    largest = max(known, default=None)
    together = max((len(s.job.inputs) for s in states if s.job.spec.get("method") == "ensemble"), default=1)
    if largest is None:
        return {"disk": None, "memory": None}
    return {"disk": pending * largest, "memory": together * largest}


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model/*.safetensors"))


def _reason(job: Job, before: Mapping[str, Any] | None, missing: str | None) -> str:
    if before is None:
        return "new"
    changes = _changes(before, json.loads(json.dumps(job.spec)))
    if changes:
        return "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
    return f"needs {missing}" if missing else "its inputs changed, or it never finished"


def _changes(before: Any, now: Any, at: str = "") -> list[str]:
    """Readable differences of two specs: `density 0.3 -> 0.5`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [line for key in keys for line in _changes(before.get(key), now.get(key), key)]
    return [] if before == now else [f"{at} {_brief(before)} -> {_brief(now)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:21] + "..."
