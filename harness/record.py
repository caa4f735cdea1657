"""Jobs' results -> results.json and scores/<model>.json: the record that leaderboard, compare and MLflow read.

Absent is absent: a model whose samples are not all there has no score, and says why.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import relate, stats
from harness.drive import Progress
from harness.facts import environment
from harness.plan import Plan, instance_name, instances, kinship_base, made_by
from harness.runs import SCHEMA, file_name
from harness.spec import Candidate, Model, Source, Trained
from harness.stats import Scores
from harness.store import Entry, write_whole

SPLITS = ("dev", "test")


def assemble(plan: Plan, progress: Progress) -> tuple[dict[str, Any], dict[str, dict[str, Scores]]]:
    """(results as contract 4 has them, scores by split and model) of everything that is done."""
    suite = plan.suite
    samples = {name: _samples(plan, progress, name) for name in instances(suite)}
    scores = {split: _by_model(plan, suite.models, samples, split) for split in SPLITS}
    # A routed model is told which group it answers, so it does not compete with models that answer all alike.
    alike = {name: found for name, found in scores["test"].items() if _kind(suite.models[name]) != "routed"}
    ranks = stats.ranks(alike) if alike else {}
    models = {}
    for name, model in suite.models.items():
        row = _describe(plan, progress, name, model)
        row.update(_scored(plan, samples, name, model, scores))
        _add_truncated(row, plan, progress, _replicates(name, model))
        if name in ranks:
            row["rank"] = ranks[name]
        models[name] = row
    _choose(models)
    _add_kinship(models, plan, progress)
    rows = [{"name": n, **row} for n, row in models.items() if row["kind"] == "merged"]
    return {
        "schema": SCHEMA,
        "suite": _suite(plan),
        "environment": {**environment(), "device": plan.facts.device},
        "models": models,
        "kinship_vs_gain": relate.kinship_vs_gain(rows) if plan.kinship else {},
    }, scores


def write(run_dir: Path, results: Mapping[str, Any], plan: Plan, scores: Mapping[str, Mapping[str, Scores]]) -> Path:
    """Write results.json and the per-sample scores into a run folder; returns the path of results.json."""
    folder = run_dir / "scores"
    folder.mkdir(exist_ok=True)
    ids = {
        split: {
            group: {task: items.counted[split] for task, items in tasks.items()} for group, tasks in plan.items.items()
        }
        for split in SPLITS
    }
    write_whole(folder / "items.json", json.dumps(ids))
    for name in plan.suite.models:
        packed = {split: _pack(scores[split][name]) for split in SPLITS if name in scores[split]}
        (folder / f"{file_name(name)}.json").unlink(missing_ok=True)
        if packed:
            write_whole(folder / f"{file_name(name)}.json", json.dumps({"model": name, "scores": packed}))
    path = run_dir / "results.json"
    write_whole(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return path


# ---------------------------------------------------------------------------------------------------------- the parts


def _suite(plan: Plan) -> dict[str, Any]:
    suite = plan.suite
    groups: dict[str, Any] = {}
    for group in suite.groups:
        tasks = {}
        for name in plan.facts.groups[group.name]:
            task, items = plan.facts.tasks[name], plan.items[group.name][name]
            tasks[name] = {
                "version": task.version, "digest": task.digest, "metric": task.metric, "shots": task.shots,
                "chance": task.chance, "n": {split: len(items.counted[split]) for split in SPLITS},
                **({"sandbox": plan.facts.sandbox} if task.kind == "code" else {}),
            }  # fmt: skip
        groups[group.name] = {"tasks": tasks, "limit": group.limit, "batch_size": group.batch_size}
    return {
        "name": suite.name, "digest": suite.digest, "path": str(suite.path), "seed": suite.seed, "dev": suite.dev_share,
        "groups": groups,
    }  # fmt: skip


def _samples(plan: Plan, progress: Progress, instance: str) -> dict[str, Any]:
    """Per-sample values of one model, by split, group, task and metric ("" is the one that counts).

    Values are in the suite's order of items; tasks that are not complete are left out.
    """
    found: dict[str, Any] = {split: {} for split in SPLITS}
    for group, tasks in plan.items.items():
        for task, items in tasks.items():
            by_id: dict[str, Mapping[str, Any]] = {}
            for block in items.blocks:
                entry = progress.done.get(f"judge {instance} {group}/{block.name}")
                if entry is not None:
                    by_id.update(zip(block.ids, _scores_of(entry), strict=True))
            for split in SPLITS:
                ids = items.counted[split]
                if ids and all(i in by_id for i in ids):
                    found[split].setdefault(group, {})[task] = _columns([by_id[i] for i in ids])
    return found


def _scores_of(entry: Entry) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((entry.path / "scores.json").read_text(encoding="utf-8"))
    return found


def _columns(samples: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    also = sorted(samples[0]["also"])
    return {"": [s["score"] for s in samples], **{name: [s["also"][name] for s in samples] for name in also}}


def _replicates(name: str, model: Model) -> list[str]:
    return [instance_name(model, seed) for seed in model.seeds] if isinstance(model, Candidate) else [name]


def _by_model(plan: Plan, models: Mapping[str, Model], samples: Mapping[str, Any], split: str) -> dict[str, Scores]:
    """Scores of those models whose every task is complete."""
    wanted = plan.facts.groups
    found: dict[str, Scores] = {}
    for name, model in models.items():
        parts = [samples[instance][split] for instance in _replicates(name, model)]
        if all(set(part.get(group, {})) == set(tasks) for part in parts for group, tasks in wanted.items()):
            found[name] = {
                group: {task: np.array([part[group][task][""] for part in parts], dtype=np.float64) for task in tasks}
                for group, tasks in wanted.items()
            }
    return found


def _describe(plan: Plan, progress: Progress, name: str, model: Model) -> dict[str, Any]:
    """What a model is, whether it is there, and what it cost."""
    row: dict[str, Any] = {"kind": _kind(model), "control": isinstance(model, Candidate) and model.is_control}
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
            row |= {"corpora": list(model.corpora), "calibration": dict(model.calibration)}
        if model.sweep:
            row["sweep"] = {"row": model.row, "point": dict(model.sweep)}
    elif isinstance(model, Trained):
        row |= {"method": model.trainer, "params": dict(model.params), "seeds": [model.seed]}
        row |= {"parents": [model.parent] if model.parent else [], "base": model.parent}
    else:
        row |= {"origin": model.origin, "revision": model.revision, "parents": []}
    row["digest"] = _digests(plan, progress, name, model)
    row["status"], row["error"] = _state(plan, progress, name, model)
    row["cost"] = _cost(plan, progress, _replicates(name, model))
    row["notes"] = _notes(plan, progress, name, model) or None
    return {key: value for key, value in row.items() if value is not None}


def _kind(model: Model) -> str:
    return "source" if isinstance(model, Source) else "trained" if isinstance(model, Trained) else model.kind


def _digests(plan: Plan, progress: Progress, name: str, model: Model) -> str | list[str] | None:
    if isinstance(model, Source):
        return plan.facts.folders[name].digest
    made = [progress.done.get(made_by(instance, model)) for instance in _replicates(name, model)]
    digests = [entry.digest for entry in made if entry is not None]
    return None if not digests else digests[0] if len(digests) == 1 else digests


def _state(plan: Plan, progress: Progress, name: str, model: Model) -> tuple[str, str | None]:
    """ok, or what failed: failed and skipped are of the model itself, incomplete of its evaluation."""
    if not isinstance(model, Source):
        for instance in _replicates(name, model):
            failure = progress.failed.get(made_by(instance, model))
            if failure is not None:
                return ("skipped" if failure.fault == "skipped" else "failed"), failure.error
    mine = frozenset(_replicates(name, model))
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
    for instance in _replicates(name, model):
        entry = progress.done.get(made_by(instance, model))
        for notes in (entry.result.get("notes") or {}).values() if entry is not None else ():
            for key, value in notes.items():
                if key != "action":
                    found.setdefault(key, []).append(float(value))
    return {key: {"min": min(all_), "max": max(all_), "tensors": len(all_)} for key, all_ in found.items()}


def _cost(plan: Plan, progress: Progress, replicates: Iterable[str]) -> dict[str, float]:
    """What a model's making and scoring took; what was read of corpora for it belongs to its making."""
    mine = frozenset(replicates)
    made: list[Mapping[str, float]] = []
    scored: list[Mapping[str, float]] = []
    built = [plan.jobs[f"build {name}"] for name in mine if f"build {name}" in plan.jobs]
    read = frozenset(need for job in built for need in job.needs if need.startswith("statistics "))
    for job_id, entry in progress.done.items():
        kind, owner = job_id.split(" ")[:2]
        if job_id in read:
            made.append(entry.cost)
        elif owner in mine and kind not in ("relate", "statistics"):
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


def _scored(
    plan: Plan, samples: Mapping[str, Any], name: str, model: Model, scores: Mapping[str, Mapping[str, Scores]]
) -> dict[str, Any]:
    """Scores, gains and kinship of a model, as far as they are known."""
    row: dict[str, Any] = {}
    for key, split in (("scores", "test"), ("dev_scores", "dev")):
        groups = _group_scores(plan, [samples[instance][split] for instance in _replicates(name, model)])
        if groups:
            row[key] = groups
    if name in scores["test"]:
        row["score"] = _estimate(stats.overall(scores["test"][name]))
        low, high = stats.interval(scores["test"][name]) or (None, None)
        if low is not None:
            row["interval"] = {"low": low, "high": high}
    if name in scores["dev"]:
        row["dev_score"] = _estimate(stats.overall(scores["dev"][name]))
    if isinstance(model, Candidate):
        row["gain"] = relate.gains(
            name,
            model.parents,
            base=kinship_base(plan.suite, model),
            control=model.control,
            target=model.target,
            test=scores["test"],
            dev=scores["dev"] or None,
        )
    return row


def _group_scores(plan: Plan, parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Groups and tasks of one row; a group has a value only when all its tasks and replicates are there."""
    found: dict[str, Any] = {}
    for group in plan.suite.groups:
        tasks, arrays = {}, {}
        for task in plan.facts.groups[group.name]:
            columns = [part.get(group.name, {}).get(task) for part in parts]
            if not all(columns):
                continue
            arrays[task] = np.array([column[""] for column in columns if column], dtype=np.float64)
            also = {m: float(np.mean([c[m] for c in columns if c])) for m in (columns[0] or {}) if m}
            facts = plan.facts.tasks[task]
            tasks[task] = {"metric": facts.metric, **_estimate(stats.of_task(arrays[task])), "also": also}
            if facts.chance is not None:
                tasks[task]["chance"] = facts.chance
        if tasks:
            found[group.name] = {"tasks": tasks}
            if len(tasks) == len(plan.facts.groups[group.name]):
                found[group.name] = {**_estimate(stats.of_group({group.name: arrays}, group.name)), "tasks": tasks}
    return found


def _add_truncated(row: Mapping[str, Any], plan: Plan, progress: Progress, replicates: list[str]) -> None:
    """Say of each task how many of its prompts did not fit the model's context, where any did not."""
    for group, scored in row.get("scores", {}).items():
        for task, entry in scored["tasks"].items():
            blocks = plan.items[group][task].blocks
            jobs = [f"generate {one} {group}/{block.name}" for one in replicates for block in blocks]
            cut = sum(progress.done[job].result["truncated"] for job in jobs if job in progress.done)
            if cut:
                entry["truncated"] = cut


def _estimate(estimate: stats.Estimate) -> dict[str, Any]:
    values = {"value": estimate.value, "stderr": estimate.stderr, "n": estimate.n}
    return {key: value for key, value in values.items() if value is not None}


def _add_kinship(models: Mapping[str, dict[str, Any]], plan: Plan, progress: Progress) -> None:
    """Write each merge's kinship, over the pairs of its parents, into its row."""
    for name, job_id in plan.kinship.items():
        entry = progress.done.get(job_id)
        if entry is None:
            continue
        pairs = entry.result["pairs"]
        found = {}
        for measure in plan.suite.measures:
            values = [pair[measure] for pair in pairs if pair.get(measure) is not None]
            if len(values) == len(pairs):
                found[measure] = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
        models[name]["kinship"] = found


def _choose(models: Mapping[str, dict[str, Any]]) -> None:
    """Mark the point of each sweep that is best on dev; without dev scores of all points, none is chosen."""
    rows: dict[str, list[str]] = {}
    for name, row in models.items():
        if "sweep" in row:
            rows.setdefault(row["sweep"]["row"], []).append(name)
    for names in rows.values():
        if all("dev_score" in models[name] for name in names):
            best = max(names, key=lambda name: models[name]["dev_score"]["value"])
            for name in names:
                models[name]["sweep"]["chosen"] = name == best


def best_merge(plan: Plan, progress: Progress) -> list[str]:
    """The merge (each of its replicates) that `keep: best` writes: best on dev, or on test where there is no dev split.

    Empty where no merge has all its scores.
    """
    merged = {n: m for n, m in plan.suite.models.items() if isinstance(m, Candidate) and m.kind == "merged"}
    samples = {one: _samples(plan, progress, one) for n, m in merged.items() for one in _replicates(n, m)}
    scores = _by_model(plan, merged, samples, "dev") or _by_model(plan, merged, samples, "test")
    if not scores:
        return []
    best = max(scores, key=lambda name: stats.overall(scores[name]).value)
    return _replicates(best, merged[best])


def _pack(scores: Scores) -> dict[str, Any]:
    """0/1 scores as bits, others as numbers; replicates one after another."""

    def one(array: np.ndarray[Any, Any]) -> dict[str, Any]:
        if np.isin(array, (0.0, 1.0)).all():
            bits = base64.b64encode(np.packbits(array.astype(np.uint8)).tobytes()).decode()
            return {"shape": array.shape, "bits": bits}
        return {"shape": array.shape, "values": array.ravel().tolist()}

    return {group: {task: one(array) for task, array in tasks.items()} for group, tasks in scores.items()}
