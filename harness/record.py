"""Jobs' results -> results.json and scores/<model>.json: the record that leaderboard, compare and MLflow read.

Absent is absent: a model whose samples are not all there has no score, and says why.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import answers, bits_per_byte, kinship_rows, relate, stats
from harness.answers import Answered
from harness.bits_per_byte import Texts
from harness.blocks import COUNTED
from harness.clean import add_clean
from harness.described import describe, kind_of, replicates
from harness.drive import Progress
from harness.facts import Facts, environment
from harness.judged import judged
from harness.making import instances
from harness.plan import Plan
from harness.relating import kinship_base
from harness.runs import SCHEMA, file_name
from harness.spec import Candidate, Model
from harness.stats import Scores
from harness.store import write_whole
from harness.tasks import Task

SPLITS = ("dev", "test")
TEXTS = {"text": "test", "dev_text": "dev"}
"""What bits per byte are called in a row and in the scores' files, by split."""


@dataclass(frozen=True)
class Record:
    """What a run found out: `results` as contract 4 has them, and what is kept beside them.

    scores: by split and model, with the bits and bytes of texts under the keys of TEXTS. answers: of all models that
    answered every item. kinship: every pair of models that was compared.
    """

    results: dict[str, Any]
    scores: dict[str, dict[str, Scores]]
    answers: Answered | None
    kinship: dict[str, Any]


def assemble(plan: Plan, progress: Progress) -> Record:
    """The record of everything that is done."""
    suite = plan.suite
    samples = {name: _samples(plan, progress, name) for name in instances(suite)}
    scores = {split: _by_model(plan, suite.models, samples, split) for split in SPLITS}
    scores |= {key: _texts(plan, samples, split) for key, split in TEXTS.items()}
    # A routed model is told which group it answers, and an ensemble runs several models for every answer: neither
    # competes with single models that answer all alike.
    alike = {n: found for n, found in scores["test"].items() if kind_of(suite.models[n]) not in ("routed", "ensemble")}
    ranks = stats.ranks(alike) if alike else {}
    answered = answers.collect(plan, progress)
    kinship = kinship_rows.collect(plan, progress, answered)
    models = {}
    for name, model in suite.models.items():
        row = describe(plan, progress, name, model)
        row.update(_scored(plan, samples, name, model, scores))
        row.update(_bits(plan, name, model, scores))
        row.update(kinship_rows.of_candidate(plan, progress, name, kinship))
        _add_counts(row, samples, replicates(name, model))
        row |= {"chat": True} if name in plan.chat else {}
        if name in ranks:
            row["rank"] = ranks[name]
        models[name] = row
    _choose(models)
    add_clean(models, plan, progress, scores["test"])
    rows = [
        {"name": name, "kin": kinship_rows.are_kin(plan, name, kinship), **row}
        for name, row in models.items()
        if row["kind"] == "merged"
    ]
    pairs = kinship_rows.by_measure(plan, kinship)
    results = {
        "schema": SCHEMA,
        "suite": _suite(plan),
        "environment": {**environment(), "device": plan.facts.device},
        "models": models,
        "kinship_vs_gain": relate.kinship_vs_gain(rows, pairs=pairs, test=scores["test"]) if plan.kinship else {},
        **({"published": suite.published} if suite.published else {}),
    }
    return Record(results, scores, answered, kinship)


def write(run_dir: Path, record: Record, plan: Plan) -> Path:
    """Write results.json and what stands beside it into a run folder; returns the path of results.json."""
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
        packed = {split: _pack(found[name]) for split, found in record.scores.items() if name in found}
        (folder / f"{file_name(name)}.json").unlink(missing_ok=True)
        if packed:
            write_whole(folder / f"{file_name(name)}.json", json.dumps({"model": name, "scores": packed}))
    if record.answers is not None:
        answers.write(run_dir, record.answers.models, record.answers.answers)
    if record.kinship:
        write_whole(run_dir / kinship_rows.FILE, json.dumps(record.kinship, allow_nan=False))
    path = run_dir / "results.json"
    write_whole(path, json.dumps(record.results, indent=1, allow_nan=False) + "\n")
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
                **{key: value for key, value in _from(task, plan.facts).items() if value},
            }  # fmt: skip
        text = {} if group.text is None else {"text": True}
        drawn = {"samples": group.samples, "temperature": group.temperature, "top_p": group.top_p}
        groups[group.name] = {
            "tasks": tasks, "limit": group.limit, "batch_size": group.batch_size, **text,
            **(drawn if group.temperature else {}),
        }  # fmt: skip
    return {
        "name": suite.name, "digest": suite.digest, "path": str(suite.path), "seed": suite.seed, "dev": suite.dev_share,
        "groups": groups, **({"smoke": True} if suite.smoke else {}),
    }  # fmt: skip


def _from(task: Task, facts: Facts) -> dict[str, Any]:
    """Digests of a task's items and prompts, its data's revision, how many items nobody can get right, what ran it."""
    return {
        "toolchain": facts.toolchains.get(str(task.language)),
        "data": task.data,
        "prompts": task.prompts,
        "revision": task.revision,
        "unanswerable": task.unanswerable,
    }


def _samples(plan: Plan, progress: Progress, instance: str) -> dict[str, Any]:
    """Per-sample values of one model, by split, group, task and metric ("" is the one that counts).

    Values are in the suite's order of items; tasks that are not complete are left out. "counts" has by group and task
    how many prompts of test items were cut, and how many of their texts came to no end.
    """
    found: dict[str, Any] = {**{split: {} for split in SPLITS}, "counts": {}}
    for group, tasks in plan.items.items():
        for task, items in tasks.items():
            by_id = judged(plan, progress, instance, group, task)
            for split in SPLITS:
                ids = items.counted[split]
                if ids and all(i in by_id for i in ids):
                    found[split].setdefault(group, {})[task] = _columns([by_id[i] for i in ids])
            mine = [by_id[i] for i in items.counted["test"] if i in by_id]
            found["counts"][group, task] = Counter({key: sum(one.get(key, 0) for one in mine) for key in COUNTED})
    return found


def _columns(samples: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    also = sorted(samples[0]["also"])
    return {"": [s["score"] for s in samples], **{name: [s["also"][name] for s in samples] for name in also}}


def _by_model(plan: Plan, models: Mapping[str, Model], samples: Mapping[str, Any], split: str) -> dict[str, Scores]:
    """Scores of those models whose every task is complete; texts have none."""
    wanted = {group.name: plan.facts.groups[group.name] for group in plan.suite.groups if group.text is None}
    found: dict[str, Scores] = {}
    for name, model in models.items():
        parts = [samples[instance][split] for instance in replicates(name, model)]
        if all(set(part.get(group, {})) == set(tasks) for part in parts for group, tasks in wanted.items()):
            found[name] = {
                group: {task: np.array([part[group][task][""] for part in parts], dtype=np.float64) for task in tasks}
                for group, tasks in wanted.items()
            }
    return found


def _texts(plan: Plan, samples: Mapping[str, Any], split: str) -> dict[str, Texts]:
    """Bits and bytes of every document, of those models whose replicates have all read a text."""
    groups = [group.name for group in plan.suite.groups if group.text is not None]
    found: dict[str, Texts] = {}
    for name, model in plan.suite.models.items():
        parts = {g: [samples[one][split].get(g, {}).get(g) for one in replicates(name, model)] for g in groups}
        read = {g: [part for part in found if part] for g, found in parts.items() if all(found)}
        if read:
            found[name] = {
                g: {key: np.array([part[key] for part in columns]) for key in ("bits", "bytes")}
                for g, columns in read.items()
            }
    return found


def _bits(plan: Plan, name: str, model: Model, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Bits per byte of a model, and what it saves of its control's and its target's."""
    row: dict[str, Any] = {}
    for key in TEXTS:
        if name in scores[key]:
            row[key] = {
                group: relate.estimate_entry(bits_per_byte.estimate(scores[key][name], group))
                for group in scores[key][name]
            }
    if isinstance(model, Candidate):
        against = {"control": tuned_control(plan.suite.models, model, scores["dev"]), "target": model.target}
        saved = bits_per_byte.gains(name, against, scores["text"])
        if saved:
            row["text_gain"] = saved
    return row


def tuned_control(models: Mapping[str, Model], model: Candidate, dev: Mapping[str, Scores]) -> str | None:
    """The control to be beaten: of those that the points of a candidate's row have, the one that is best on dev.

    Only the learning rate may tell them from the candidate's own, so that the control was tuned as hard as the row.
    Without dev scores of all of them it is the candidate's own.
    """
    own = models.get(model.control) if model.control is not None else None
    if not isinstance(own, Candidate):
        return model.control
    row = [m for m in models.values() if isinstance(m, Candidate) and m.row == model.row]
    rivals = dict.fromkeys(m.control for m in row if m.control is not None and _alike(models[m.control], own))
    if not all(name in dev for name in rivals):
        return model.control
    best = {name: stats.overall(dev[name]).value for name in (own.name, *rivals)}
    return max(best, key=lambda name: best[name])


def _alike(a: Model, b: Candidate) -> bool:
    """Whether two controls differ in nothing but their learning rate."""
    return isinstance(a, Candidate) and _plain(a) == _plain(b)


def _plain(control: Candidate) -> Candidate:
    params = {key: value for key, value in control.params.items() if key != "learning_rate"}
    return replace(control, name="", row="", sweep={}, params=params)


def _scored(
    plan: Plan, samples: Mapping[str, Any], name: str, model: Model, scores: Mapping[str, Mapping[str, Scores]]
) -> dict[str, Any]:
    """Scores, gains and kinship of a model, as far as they are known."""
    row: dict[str, Any] = {}
    for key, split in (("scores", "test"), ("dev_scores", "dev")):
        groups = _group_scores(plan, [samples[instance][split] for instance in replicates(name, model)])
        if groups:
            row[key] = groups
    if name in scores["test"]:
        row["score"] = relate.estimate_entry(stats.overall(scores["test"][name]))
        low, high = stats.interval(scores["test"][name]) or (None, None)
        if low is not None:
            row["interval"] = {"low": low, "high": high}
    if name in scores["dev"]:
        row["dev_score"] = relate.estimate_entry(stats.overall(scores["dev"][name]))
    if isinstance(model, Candidate):
        row["gain"] = relate.gains(
            name,
            model.parents,
            base=kinship_base(plan.suite, model),
            control=tuned_control(plan.suite.models, model, scores["dev"]),
            target=model.target,
            test=scores["test"],
            dev=scores["dev"] or None,
        )
    return row


def _group_scores(plan: Plan, parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Groups and tasks of one row; a group has a value only when all its tasks and replicates are there."""
    found: dict[str, Any] = {}
    for group in (group for group in plan.suite.groups if group.text is None):
        tasks, arrays = {}, {}
        for task in plan.facts.groups[group.name]:
            columns = [part.get(group.name, {}).get(task) for part in parts]
            if not all(columns):
                continue
            arrays[task] = np.array([column[""] for column in columns if column], dtype=np.float64)
            also = {m: float(np.mean([c[m] for c in columns if c])) for m in (columns[0] or {}) if m}
            facts = plan.facts.tasks[task]
            tasks[task] = {"metric": facts.metric, **relate.estimate_entry(stats.of_task(arrays[task])), "also": also}
            if facts.chance is not None:
                tasks[task]["chance"] = facts.chance
        if tasks:
            found[group.name] = {"tasks": tasks}
            if len(tasks) == len(plan.facts.groups[group.name]):
                found[group.name] = {
                    **relate.estimate_entry(stats.of_group({group.name: arrays}, group.name)),
                    "tasks": tasks,
                }
    return found


def _add_counts(row: Mapping[str, Any], samples: Mapping[str, Any], names: list[str]) -> None:
    """Say of each task or text how many prompts did not fit the context, and how many texts came to no end."""
    scored = [(group, task, e) for group, found in row.get("scores", {}).items() for task, e in found["tasks"].items()]
    for group, task, entry in (*scored, *((group, group, e) for group, e in row.get("text", {}).items())):
        total: Counter[str] = sum((samples[one]["counts"][group, task] for one in names), Counter())
        entry |= {key: total[key] for key in COUNTED if total[key]}


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
    samples = {one: _samples(plan, progress, one) for n, m in merged.items() for one in replicates(n, m)}
    scores = _by_model(plan, merged, samples, "dev") or _by_model(plan, merged, samples, "test")
    if not scores:
        return []
    best = max(scores, key=lambda name: stats.overall(scores[name]).value)
    return replicates(best, merged[best])


def _pack(scores: Scores) -> dict[str, Any]:
    """0/1 scores as bits, others as numbers; replicates one after another."""

    def one(array: np.ndarray[Any, Any]) -> dict[str, Any]:
        if np.isin(array, (0.0, 1.0)).all():
            bits = base64.b64encode(np.packbits(array.astype(np.uint8)).tobytes()).decode()
            return {"shape": array.shape, "bits": bits}
        return {"shape": array.shape, "values": array.ravel().tolist()}

    return {group: {task: one(array) for task, array in tasks.items()} for group, tasks in scores.items()}
