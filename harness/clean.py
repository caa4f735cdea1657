"""Scores on clean items: those that do not stand in any text that a candidate was made with."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness import stats
from harness.drive import Progress
from harness.overlap import clean_scores
from harness.plan import Plan
from harness.relate import estimate_entry, gain_entry
from harness.spec import Candidate, Suite, Trained
from harness.stats import Scores

GAINS = ("control", "target")


def add_clean(
    models: Mapping[str, dict[str, Any]], plan: Plan, progress: Progress, scores: Mapping[str, Scores]
) -> None:
    """Write into every row what of the tasks stands in the row's texts and, where any does, the clean items' scores.

    `overlap`: {task: {"items", "overlapping", "unjudged"}} of the test items. `clean_scores`: as `scores`, without
    tasks; a group whose every item overlaps in some task is left out, and `clean_score`, the overall one, with it.
    `clean_gain`: the gains over control and target, both on the same clean items: what is left may be easier for all.
    """
    ids = {g: {task: items.counted["test"] for task, items in tasks.items()} for g, tasks in plan.items.items()}
    read = {
        corpus: json.loads((progress.done[job].path / "overlap.json").read_text(encoding="utf-8"))
        for corpus, job in plan.overlaps.items()
        if job in progress.done
    }
    for name, row in models.items():
        corpora = sorted(set(texts_of(plan.suite, name)) & set(plan.overlaps))
        if not corpora or any(corpus not in read for corpus in corpora):
            continue
        together = _together([read[corpus] for corpus in corpora])
        counted = {task: frozenset(one) for tasks in ids.values() for task, one in tasks.items() if task in together}
        row["overlap"] = {
            task: {
                "items": len(items),
                "overlapping": len(items & together[task]["found"]),
                "unjudged": len(items & together[task]["unjudged"]),
            }
            for task, items in counted.items()
        }
        if name in scores and any(one["overlapping"] for one in row["overlap"].values()):
            dirty = {task: one["found"] for task, one in together.items()}
            row.update(_scored(clean_scores(scores[name], ids, dirty), scores[name]))
            gains = {key: row["gain"][key]["against"] for key in GAINS if key in row.get("gain", {})}
            clean = {one: clean_scores(scores[one], ids, dirty) for one in (name, *gains.values()) if one in scores}
            if "clean_score" in row:
                row["clean_gain"] = {
                    key: gain_entry(stats.difference(clean[name], clean[other]), other)
                    for key, other in gains.items()
                    if other in clean
                }


def texts_of(suite: Suite, name: str) -> Iterator[str]:
    """Every corpus that a model, or a model that it is made of, has read in this suite."""
    model = suite.models[name]
    if isinstance(model, Candidate):
        yield from model.corpora
        for parent in {*model.parents, *([model.base] if model.base else [])}:
            yield from texts_of(suite, parent)
    elif isinstance(model, Trained) and model.parent:
        yield from texts_of(suite, model.parent)


def _together(found: list[Mapping[str, Any]]) -> dict[str, dict[str, frozenset[str]]]:
    """What overlaps with any of several corpora; what none of them could judge."""
    tasks = found[0]
    return {
        task: {
            "found": frozenset().union(*(one[task]["found"] for one in found)),
            "unjudged": frozenset.intersection(*(frozenset(one[task]["unjudged"]) for one in found)),
        }
        for task in tasks
    }


def _scored(clean: Scores, whole: Scores) -> dict[str, Any]:
    groups = {group: tasks for group, tasks in clean.items() if set(tasks) == set(whole[group])}
    row: dict[str, Any] = {"clean_scores": {group: estimate_entry(stats.of_group(groups, group)) for group in groups}}
    if set(groups) == set(whole):
        row["clean_score"] = estimate_entry(stats.overall(groups))
    return row
