"""What the jobs and records say of models' kinship, as results.json and kinship.json have it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusion.kinship import MEASURES
from fusion.kinship.weights import summary
from harness import answers
from harness.answers import Answered
from harness.drive import Progress
from harness.plan import Plan
from harness.relating import Related, known, measures, pairs_of

Row = Mapping[str, Any]
FILE = "kinship.json"


def collect(plan: Plan, progress: Progress, found: Answered | None) -> dict[str, Any]:
    """Every pair of models that was compared.

    {"weights": {base: {"pairs": [row], "lineage": {model: ...}}}, "texts": [row], "records": [row]}; a row is {"a",
    "b", measure: value, ...}, a before b in sorted order; "items_left_out" counts the items that records' kinship is
    not of, because their score is no share. Empty where no kinship is asked for.
    """
    if not plan.kinship:
        return {}
    weights: dict[str, dict[str, Any]] = {}
    texts: dict[tuple[str, str], Row] = {}
    for related in plan.kinship.values():
        by_weights, by_texts = (_job(progress, job) for job in (related.by_weights, related.by_texts))
        if by_weights is not None:
            kept = weights.setdefault(str(related.base), {"pairs": {}, "lineage": {}})
            kept["pairs"] |= {(row["a"], row["b"]): row for row in by_weights["pairs"]}
            kept["lineage"] |= by_weights["lineage"]
        if by_texts is not None:
            texts |= {(row["a"], row["b"]): row for row in by_texts["pairs"]}
    return {
        "weights": {base: {**kept, "pairs": _listed(kept["pairs"])} for base, kept in weights.items()},
        "texts": _listed(texts),
        "records": _records(plan, found),
        **({"items_left_out": found.left_out} if found is not None and found.left_out else {}),
    }


def _job(progress: Progress, job: str | None) -> dict[str, Any] | None:
    entry = progress.done.get(job) if job is not None else None
    if entry is None:
        return None
    found: dict[str, Any] = json.loads((entry.path / "kinship.json").read_text(encoding="utf-8"))
    return found


def _listed(rows: Mapping[tuple[str, str], Row]) -> list[Row]:
    return [rows[pair] for pair in sorted(rows)]


def _records(plan: Plan, found: Answered | None) -> list[dict[str, Any]]:
    wanted = measures(plan.suite, "records")
    if found is None or not wanted:
        return []
    mine = sorted(set(found.models) & set(known(plan.kinship)))
    return answers.pairs(mine, found.answers.of([found.models.index(name) for name in mine]), wanted)


def of_candidate(plan: Plan, progress: Progress, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """ "kinship": {measure: {"mean", "min", "max"}} over the pairs of a candidate's parents; "kinship_status": why not.

    A measure that is undefined for one of the pairs is left out.
    """
    related = plan.kinship.get(name)
    if related is None:
        return {}
    kinship: dict[str, Any] = {}
    why: dict[str, None] = {}
    for needs, job in (("weights", related.by_weights), ("texts", related.by_texts), ("records", None)):
        by_pair = {(row["a"], row["b"]): row for row in _rows(found, needs, related)}
        rows = [by_pair[pair] for pair in pairs_of(related) if pair in by_pair]
        failure = progress.failed.get(job) if job is not None else None
        if failure is not None:
            why[f"{job}: {failure.error}"] = None
        if len(rows) == len(pairs_of(related)):
            kinship |= summary(rows)
        why |= {str(row["status"]): None for row in rows if "status" in row}
    ordered = {measure: kinship[measure] for measure in plan.suite.measures if measure in kinship}
    row: dict[str, Any] = {"kinship": ordered} if ordered else {}
    return {**row, **({"kinship_status": "; ".join(why)} if why else {})}


def are_kin(plan: Plan, name: str, found: Mapping[str, Any]) -> bool:
    """Whether no parent of a candidate is known to be a stranger to its base."""
    related = plan.kinship.get(name)
    lineage = found.get("weights", {}).get(related.base, {}).get("lineage", {}) if related is not None else {}
    return related is None or all(lineage[parent]["kin"] for parent in related.models if parent in lineage)


def _rows(found: Mapping[str, Any], needs: str, related: Related) -> Sequence[Row]:
    if needs != "weights":
        rows: Sequence[Row] = found.get(needs, ())
        return rows
    of_base: Sequence[Row] = found.get("weights", {}).get(related.base, {}).get("pairs", ())
    return of_base if related.by_weights is not None else ()


def by_measure(plan: Plan, found: Mapping[str, Any]) -> dict[str, dict[tuple[str, str], float]]:
    """{measure: {(a, b): value}} of all pairs; by weights, from the base that most candidates have."""
    bases = [related.base for related in plan.kinship.values() if related.by_weights is not None]
    first = max(dict.fromkeys(bases), key=bases.count) if bases else None
    rows = [
        *found.get("weights", {}).get(first, {}).get("pairs", ()),
        *found.get("texts", ()),
        *found.get("records", ()),
    ]
    values: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        for measure in MEASURES:
            if row.get(measure) is not None:
                values.setdefault(measure, {})[row["a"], row["b"]] = float(row[measure])
    return values
