"""What a model is, whether it is there, what it cost, and what its training said: a row of the record, scores apart."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.drive import Progress
from harness.making import instance_name, made_by
from harness.plan import Plan
from harness.runs import file_name
from harness.spec import Candidate, Model, Source, Trained
from harness.store import write_whole

# Of a training's report: what depends on the machine, or stands elsewhere in the row.
NOT_OF_TRAINING = ("wall", "alignment", "digests", "machine")


def replicates(name: str, model: Model) -> list[str]:
    """The single models of a row."""
    return [instance_name(model, seed) for seed in model.seeds] if isinstance(model, Candidate) else [name]


def describe(plan: Plan, progress: Progress, name: str, model: Model) -> dict[str, Any]:
    """What a model is, whether it is there, and what it cost."""
    row: dict[str, Any] = {"kind": kind_of(model), "control": isinstance(model, Candidate) and model.is_control}
    if isinstance(model, Candidate):
        row |= {"method": model.method, "params": dict(model.params), "seeds": list(model.seeds)}
        row |= {"parents": list(model.parents), "base": model.base or model.target}
        if model.weights:
            row["weights"] = dict(zip(model.models, model.weights, strict=True))
        if model.route:
            row["route"] = dict(model.route)
        if model.own:
            row["own"] = dict(zip(model.models, map(dict, model.own), strict=True))
        if model.corpora:
            row["corpora"] = list(model.corpora)
        if model.calibration:
            row["calibration"] = dict(model.calibration)
        if model.sweep:
            row["sweep"] = {"row": model.row, "point": dict(model.sweep)}
    elif isinstance(model, Trained):
        row |= {"method": model.trainer, "params": dict(model.params), "seeds": [model.seed]}
        row |= {"parents": [model.parent] if model.parent else [], "base": model.parent}
    else:
        row |= {"origin": model.origin, "revision": model.revision, "parents": []}
    row["digest"] = _digests(plan, progress, name, model)
    row["status"], row["error"] = _state(plan, progress, name, model)
    row["cost"] = _cost(plan, progress, replicates(name, model))
    row["notes"] = _notes(plan, progress, name, model) or None
    row |= _training(progress, name, model)
    return {key: value for key, value in row.items() if value is not None}


def kind_of(model: Model) -> str:
    """source, trained, or what a candidate's method makes."""
    return "source" if isinstance(model, Source) else "trained" if isinstance(model, Trained) else model.kind


def _digests(plan: Plan, progress: Progress, name: str, model: Model) -> str | list[str] | None:
    if isinstance(model, Source):
        return plan.facts.folders[name].digest
    made = [progress.done.get(made_by(instance, model)) for instance in replicates(name, model)]
    digests = [entry.digest for entry in made if entry is not None]
    return None if not digests else digests[0] if len(digests) == 1 else digests


def _state(plan: Plan, progress: Progress, name: str, model: Model) -> tuple[str, str | None]:
    """ok, or what failed: failed and skipped are of the model itself, incomplete of its evaluation."""
    if not isinstance(model, Source):
        for instance in replicates(name, model):
            failure = progress.failed.get(made_by(instance, model))
            if failure is not None:
                return ("skipped" if failure.fault == "skipped" else "failed"), failure.error
    mine = frozenset(replicates(name, model))
    for job_id, failure in progress.failed.items():
        kind, owner = job_id.split(" ")[:2]
        if kind in ("generate", "judge") and owner in mine and failure.fault != "skipped":
            return "incomplete", f"{job_id}: {failure.error}"
    return "ok", None


def _notes(plan: Plan, progress: Progress, name: str, model: Model) -> dict[str, Any]:
    """The least and greatest of every number that a merge noted of its tensors, such as condition numbers."""
    found: dict[str, list[float]] = {}
    if not isinstance(model, Candidate):
        return {}
    for instance in replicates(name, model):
        entry = progress.done.get(made_by(instance, model))
        for notes in (entry.result.get("notes") or {}).values() if entry is not None else ():
            for key, value in notes.items():
                if key != "action":
                    found.setdefault(key, []).append(float(value))
    return {key: {"min": min(all_), "max": max(all_), "tensors": len(all_)} for key, all_ in found.items()}


def _cost(plan: Plan, progress: Progress, names: Iterable[str]) -> dict[str, float]:
    """What a model's making and scoring took; what was read of corpora for it belongs to its making."""
    mine = frozenset(names)
    made: list[Mapping[str, float]] = []
    scored: list[Mapping[str, float]] = []
    makers = [plan.jobs.get(f"{kind} {name}") for name in mine for kind in ("build", "fuse")]
    needs = (need for job in makers if job is not None for need in job.needs)
    read = frozenset(need for need in needs if need.startswith(("statistics ", "read ")))
    for job_id, entry in progress.done.items():
        kind, owner = job_id.split(" ")[:2]
        if job_id in read:
            made.append(entry.cost)
        elif owner in mine and kind not in ("relate", "probe", "statistics", "read", "overlap"):
            (scored if kind in ("generate", "judge") else made).append(entry.cost)
    cost = {}
    for name, entries in (("build_s", made), ("evaluate_s", scored)):
        if entries:
            cost[name] = round(sum(c["seconds"] for c in entries), 3)
    for name in ("peak_rss_mb", "peak_vram_mb"):
        peaks = [c[name] for c in (*made, *scored) if name in c]
        if peaks:
            cost[name] = max(peaks)
    return cost


# ------------------------------------------------------------------------------------------------ what trainings said


def _training(progress: Progress, name: str, model: Model) -> dict[str, Any]:
    """ "training": the report of a training, each number the mean over its replicates; "fusion": who taught what.

    What the sources say of a text does not depend on a candidate's seed, so replicates share one account of it.
    """
    if not isinstance(model, Candidate):
        return {}
    made = [progress.done.get(f"fuse {instance}") for instance in replicates(name, model)]
    reports = [entry.result for entry in made if entry is not None]
    if not reports:
        return {}
    keys = [key for key in reports[0] if key not in NOT_OF_TRAINING]
    row: dict[str, Any] = {"training": {key: _together([report.get(key) for report in reports]) for key in keys}}
    if "alignment" in reports[0]:
        row["fusion"] = _named(reports[0]["alignment"], model)
    return row


def _together(found: list[Any]) -> Any:
    """One value for several replicates: their own where they agree, else the mean."""
    if all(value == found[0] for value in found):
        return found[0]
    return float(np.mean(found)) if all(isinstance(value, int | float) for value in found) else found


def _named(report: Mapping[str, Any], model: Candidate) -> dict[str, Any]:
    """The same account, with the suite's names of models where the engine knows roles."""
    names = {"target": model.target or "", **{f"teacher.{i}": name for i, name in enumerate(model.models)}}
    found = dict(report)
    for key in ("sources", "unreadable"):
        if isinstance(found.get(key), Mapping):
            found[key] = {names.get(role, role): value for role, value in found[key].items()}
    said = found.get("warnings") or []
    found["warnings"] = [
        re.sub(r"teacher\.\d+", lambda role: names.get(role[0], role[0]), str(warning)) for warning in said
    ]
    return found


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What the fusions of a run warned of, each with its model."""
    rows = results["models"].items()
    return [f"{name}: {said}" for name, row in rows for said in (row.get("fusion") or {}).get("warnings") or ()]


def write_curves(run_dir: Path, plan: Plan, progress: Progress) -> None:
    """curves/<model>.jsonl of every single model that was trained or fused, as its training wrote it."""
    folder = run_dir / "curves"
    for name, model in plan.suite.models.items():
        for instance in replicates(name, model):
            entry = None if isinstance(model, Source) else progress.done.get(made_by(instance, model))
            curve = entry.path / "model" / "curves.jsonl" if entry is not None else None
            if curve is not None and curve.is_file():
                folder.mkdir(exist_ok=True)
                write_whole(folder / f"{file_name(instance)}.jsonl", curve.read_text(encoding="utf-8"))
