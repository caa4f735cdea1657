"""How models answered the items of a run, side by side: what kinship by behaviour is computed from.

Where the suite has a dev split its items are taken, so that kinship and the gains reported on test share no item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fusion.kinship import MEASURES
from fusion.kinship.behaviour import Answers
from harness.described import replicates
from harness.drive import Progress
from harness.errors import UsageError
from harness.judged import judged
from harness.plan import Plan

FILE = "answers.npz"


@dataclass(frozen=True)
class Answered:
    """Models, their answers in that order, and how many items were left out: their score is no share from 0 to 1."""

    models: tuple[str, ...]
    answers: Answers
    left_out: int


def collect(plan: Plan, progress: Progress) -> Answered | None:
    """Of every model of the suite that answered all items; None where fewer than two did, or no item is right or wrong.

    Replicates of a model are averaged.
    """
    split = "dev" if plan.suite.dev_share else "test"
    found = {
        name: _records(plan, progress, replicates(name, model), split) for name, model in plan.suite.models.items()
    }
    complete = {name: records for name, records in found.items() if records}
    if len(complete) < 2:
        return None
    models = list(complete.values())
    judged = [all(0 <= one["score"] <= 1 for model in models for one in model[item]) for item in range(len(models[0]))]
    if not any(judged):
        return None
    kept = [[records for records, good in zip(model, judged, strict=True) if good] for model in models]
    return Answered(tuple(complete), _side_by_side(kept), len(judged) - sum(judged))


def _records(plan: Plan, progress: Progress, names: Sequence[str], split: str) -> list[list[Mapping[str, Any]]] | None:
    """Of every item of the suite the judged records, one a replicate; None where one is missing."""
    records: list[list[Mapping[str, Any]]] = []
    for group in (group for group in plan.suite.groups if group.text is None):
        for task in plan.facts.groups[group.name]:
            items = plan.items[group.name][task]
            by_replicate = [judged(plan, progress, name, group.name, task) for name in names]
            wanted = items.counted[split]
            if any(item not in by_id for by_id in by_replicate for item in wanted):
                return None
            records += [[by_id[item] for by_id in by_replicate] for item in wanted]
    return records


def _side_by_side(models: Sequence[list[list[Mapping[str, Any]]]]) -> Answers:
    first = [records[0].get("choices") for records in models[0]]
    options = np.array([len(choices["p"]) if choices else 0 for choices in first])
    correct = np.array([choices["correct"] if choices else -1 for choices in first])
    right = np.array([[np.mean([one["score"] for one in records]) for records in model] for model in models])
    probs = np.zeros((len(models), len(options), max(options, default=0)), np.float32)
    for i, model in enumerate(models):
        for j in np.flatnonzero(options):
            probs[i, j, : options[j]] = np.mean([one["choices"]["p"] for one in model[j]], axis=0)
    return Answers(right=right, probs=probs if probs.size else None, options=options, correct=correct)


def write(run_dir: Path, names: Sequence[str], found: Answers) -> None:
    """Keep the answers in a run folder."""
    probs = found.probs if found.probs is not None else np.zeros((len(names), len(found.options), 0), np.float32)
    with (run_dir / FILE).open("wb") as file:
        np.savez_compressed(
            file, names=np.array(names), right=found.right, probs=probs, options=found.options, correct=found.correct
        )


def answers(run_dir: Path, names: Sequence[str]) -> Answers:
    """The answers of some models of a run. Raises UsageError where the run has none of one."""
    path = run_dir / FILE
    if not path.is_file():
        raise UsageError(
            f"{run_dir} keeps no answers of its models: give its `run` command again, it scores what is not scored yet"
        )
    with np.load(path) as kept:
        known = kept["names"].tolist()
        missing = [name for name in names if name not in known]
        if missing:
            raise UsageError(
                f"{run_dir.name} has no answers of {', '.join(missing)}: they are no models of it, or it did not score "
                f"all their items; it has {', '.join(known)}"
            )
        every = Answers(kept["right"], kept["probs"] if kept["probs"].size else None, kept["options"], kept["correct"])
        return every.of([known.index(name) for name in names])


def pairs(names: Sequence[str], found: Answers, measures: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each two models: {"a", "b", measure: value or None}."""
    return [
        {"a": names[i], "b": names[j], **{measure: MEASURES[measure].value(found, i, j) for measure in measures}}
        for i, j in combinations(range(len(names)), 2)
    ]
