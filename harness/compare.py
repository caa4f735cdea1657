"""Is A better than B? A paired answer from the records of one run or two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion.params import did_you_mean
from harness import runs, stats
from harness.errors import UsageError
from harness.stats import Scores


def compare(a: str, b: str, group: str | None, out: Path) -> dict[str, Any]:
    """A minus B: overall, by group and by task, with flips, verdict and minimum detectable effect.

    A model is [RUN:]NAME. Raises UsageError when a model has no scores, or the two were not scored on the same samples.
    """
    left, right = _model(a, out), _model(b, out)
    if left["items"] != right["items"]:
        raise UsageError(f"{a} and {b} were not scored on the same samples (other tasks, limit, seed or split)")
    if left["how"] != right["how"]:
        raise UsageError(f"{a} and {b} were not scored alike (other task version, data, shots, metric or batch size)")
    scores_a, scores_b = left["scores"], right["scores"]
    if group is not None:
        if group not in scores_a:
            raise UsageError(f"there is no group '{group}'; {did_you_mean(group, scores_a)}")
        scores_a, scores_b = {group: scores_a[group]}, {group: scores_b[group]}
    rows = [_row("overall", scores_a, scores_b)]
    for name in scores_a:
        rows.append(_row(name, {name: scores_a[name]}, {name: scores_b[name]}))
        for task in scores_a[name]:
            rows.append(_row(f"{name}/{task}", _part(scores_a, name, task), _part(scores_b, name, task)))
    return {"a": a, "b": b, "rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """The comparison for a terminal, in points of a hundred."""
    width = max(len(row["name"]) for row in found["rows"])
    lines = [f"{found['a']} minus {found['b']}, paired; points with 95 % interval", ""]
    lines.append(
        f"{'':<{width}}  {'diff':>6}  {'interval':>15}  {'p':>7}  {'won':>5} {'lost':>5} {'n':>6}  {'MDE':>5}  verdict"
    )
    for row in found["rows"]:
        span = f"{100 * row['low']:+6.1f} to {100 * row['high']:+5.1f}" if "low" in row else ""
        mde = f"{100 * row['mde']:.1f}" if "mde" in row else "–"
        flips = f"{row['won']:>5} {row['lost']:>5} {row['n']:>6}"
        lines.append(
            f"{row['name']:<{width}}  {100 * row['value']:+6.1f}  {span:>15}  {row['p']:>7.2g}  "
            f"{flips}  {mde:>5}  {row['verdict']}"
        )
    lines += [
        "",
        "MDE: the difference that 4 of 5 such comparisons would detect. p-values are not corrected for their number.",
    ]
    return "\n".join(lines)


def _row(name: str, a: Scores, b: Scores) -> dict[str, Any]:
    found = stats.difference(a, b)
    gaps = [x.mean(axis=0) - y.mean(axis=0) for g in a for x, y in ((a[g][t], b[g][t]) for t in a[g])]
    gap = np.concatenate(gaps)
    values = {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "mde": found.mde, "n": found.n}
    row = {key: value for key, value in values.items() if value is not None}
    better = "A is better" if found.value > 0 else "B is better"
    verdict = better if found.p < stats.ALPHA else "no difference shown"
    return {"name": name, **row, "won": int((gap > 0).sum()), "lost": int((gap < 0).sum()), "verdict": verdict}


def _part(scores: Scores, group: str, task: str) -> Scores:
    return {group: {task: scores[group][task]}}


def _model(name: str, out: Path) -> dict[str, Any]:
    run, colon, model = name.rpartition(":")
    run_dir = runs.find_run(run if colon else "latest", out)
    results = runs.read(run_dir)
    if model not in results["models"]:
        raise UsageError(f"{run_dir.name} has no model '{model}'; {did_you_mean(model, results['models'])}")
    scores = runs.read_scores(run_dir, model)
    if scores is None:
        reason = results["models"][model].get("error", "its evaluation is not complete")
        raise UsageError(f"model '{model}' has no scores: {reason}")
    how = results["suite"]["groups"]
    return {"scores": scores, "how": how, "items": (run_dir / "scores" / "items.json").read_text(encoding="utf-8")}
