"""Is A better than B? A paired answer from the records of one run or two."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.params import did_you_mean
from harness import bits_per_byte, runs, stats
from harness.errors import UsageError
from harness.stats import Scores

BITS = "bits per byte"


def compare(a: str, b: str, group: str | None, out: Path, over: Sequence[str] = ()) -> dict[str, Any]:
    """A minus B: overall, by group and by task, with flips, verdict and minimum detectable effect.

    A model is [RUN:]NAME. over: runs of one suite with different seeds that have both models; each run's difference is
    then one replicate, so that the intervals cover the seeds too. Where a name is a swept row, each run's point that
    was best on dev stands for it. A group that is a text is compared in bits per byte ("unit"), of which fewer are
    better. Raises UsageError when a model has no scores, or when the two were not scored on the same samples.
    """
    _check_different([runs.find_run(run, out) for run in over])
    pairs = [(f"{run}:{a}", f"{run}:{b}") for run in over] or [(a, b)]
    found = [(_model(one, out, group), _model(other, out, group)) for one, other in pairs]
    _check_alike([one for pair in found for one in pair], [name for pair in pairs for name in pair])
    left, right = (_stacked([pair[side] for pair in found]) for side in (0, 1))
    how = {"a": a, "b": b, **({"over": list(over)} if over else {})}
    paired = len(pairs) > 1
    if found[0][0]["text"]:
        own = [_stacked([{"scores": pair[side]["own"]} for pair in found]) for side in (0, 1)]
        return {**how, "unit": BITS, "rows": [_row(str(group), left, right, paired, fewer=(own[0], own[1]))]}
    rows = [_row("overall", left, right, paired)]
    for name in left:
        rows.append(_row(name, {name: left[name]}, {name: right[name]}, paired))
        for task in left[name]:
            rows.append(_row(f"{name}/{task}", _part(left, name, task), _part(right, name, task), paired))
    return {**how, "rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """The comparison for a terminal, in points of a hundred, or in bits per byte."""
    text = found.get("unit") == BITS
    width = max(len(row["name"]) for row in found["rows"])
    over = f" over {len(found['over'])} runs" if "over" in found else ""
    unit = "bits per byte, fewer are better," if text else "points"
    lines = [f"{found['a']} minus {found['b']}{over}, paired; {unit} with 95 % interval", ""]
    lines.append(
        f"{'':<{width}}  {'diff':>6}  {'interval':>16}  {'p':>7}  {'won':>5} {'lost':>5} {'n':>6}  {'MDE':>5}  verdict"
    )
    scale, digits = (1, 3) if text else (100, 1)
    for row in found["rows"]:
        low, high = (f"{scale * row[key]:+.{digits}f}" if key in row else "" for key in ("low", "high"))
        span = f"{low} to {high}" if low else ""
        mde = f"{scale * row['mde']:.{digits}f}" if "mde" in row else "–"
        flips = f"{row['won']:>5} {row['lost']:>5} {row['n']:>6}"
        lines.append(
            f"{row['name']:<{width}}  {scale * row['value']:>+6.{digits}f}  {span:>16}  {row['p']:>7.2g}  "
            f"{flips}  {mde:>5}  {row['verdict']}"
        )
    lines += [
        "",
        "MDE: the difference that 4 of 5 such comparisons would detect. p-values are not corrected for their number.",
    ]
    if text:
        lines.append("Total bits over total bytes; intervals resample documents (jackknife pseudo-values).")
    return "\n".join(lines)


def _row(name: str, a: Scores, b: Scores, paired: bool, fewer: tuple[Scores, Scores] | None = None) -> dict[str, Any]:
    """One line; `paired` says that the replicates belong together, too, and not only the items.

    fewer: of a text, each document's own bits per byte; the lower are the better ones.
    """
    found = stats.contrast([(1.0, _minus(a, b))]) if paired else stats.difference(a, b)
    values = {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "mde": found.mde, "n": found.n}
    row = {key: value for key, value in values.items() if value is not None}
    better = "A is better" if (found.value > 0) != (fewer is not None) else "B is better"
    won, lost = _flips(a, b) if fewer is None else _flips(fewer[1], fewer[0])
    verdict = better if found.p < stats.ALPHA else "no difference shown"
    return {"name": name, **row, "won": won, "lost": lost, "verdict": verdict}


def _flips(a: Scores, b: Scores) -> tuple[int, int]:
    """The items on which `a` scores higher, and those on which it scores lower."""
    gaps = [x.mean(axis=0) - y.mean(axis=0) for g in a for x, y in ((a[g][t], b[g][t]) for t in a[g])]
    gap = np.concatenate(gaps)
    return int((gap > 0).sum()), int((gap < 0).sum())


def _part(scores: Scores, group: str, task: str) -> Scores:
    return {group: {task: scores[group][task]}}


def _minus(a: Scores, b: Scores) -> Scores:
    return {group: {task: a[group][task] - b[group][task] for task in a[group]} for group in a}


def _stacked(runs: Sequence[Mapping[str, Any]]) -> Scores:
    """One replicate a run (its own replicates averaged); with a single run, its replicates as they are."""
    first: Scores = runs[0]["scores"]
    if len(runs) == 1:
        return first
    return {
        group: {task: np.stack([run["scores"][group][task].mean(axis=0) for run in runs]) for task in first[group]}
        for group in first
    }


def _check_different(found: Sequence[Path]) -> None:
    """Runs that are pooled must be replicates: the same seed twice would pass for two."""
    seeds = [runs.read(run_dir)["suite"]["seed"] for run_dir in found]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--over takes runs with different seeds; found the seeds {', '.join(map(str, seeds))}")


def _check_alike(models: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for model, name in zip(models, names, strict=True):
        if model["items"] != models[0]["items"]:
            why = "other tasks, limit, split, or a limit with another seed"
            raise UsageError(f"{names[0]} and {name} were not scored on the same samples ({why})")
        if model["how"] != models[0]["how"]:
            why = "other task version, data, shots, metric or batch size"
            raise UsageError(f"{names[0]} and {name} were not scored alike ({why})")


def _model(name: str, out: Path, group: str | None) -> dict[str, Any]:
    """The test scores of a model of a run, its items in the order of their ids, and how they were scored.

    All scored groups, or the one that is asked for, which may be a text.
    """
    run, colon, model = name.rpartition(":")
    run_dir = runs.find_run(run if colon else "latest", out)
    results = runs.read(run_dir)
    model = _chosen(model, results["models"])
    if model not in results["models"]:
        raise UsageError(f"{run_dir.name} has no model '{model}'; {did_you_mean(model, results['models'])}")
    known = results["suite"]["groups"]
    if group is not None and group not in known:
        raise UsageError(f"there is no group '{group}'; {did_you_mean(group, known)}")
    text = group is not None and "text" in known[group]
    read = _text(run_dir, model, str(group)) if text else _scores(run_dir, model, group)
    if read is None:
        reason = results["models"][model].get("error", "its evaluation is not complete")
        raise UsageError(f"model '{model}' has no scores: {reason}")
    scores, own = read
    ids = json.loads((run_dir / "scores" / "items.json").read_text(encoding="utf-8"))["test"]
    order = {g: {t: np.argsort(ids[g][t]) for t in tasks} for g, tasks in scores.items()}
    return {
        "scores": {g: {t: found[:, order[g][t]] for t, found in tasks.items()} for g, tasks in scores.items()},
        "own": {g: {t: own[g][t][:, order[g][t]] for t in tasks} for g, tasks in scores.items()},
        "items": {g: {t: sorted(ids[g][t]) for t in tasks} for g, tasks in scores.items()},
        "how": {g: known[g] for g in scores},
        "text": text,
    }


def _scores(run_dir: Path, model: str, group: str | None) -> tuple[Scores, Scores] | None:
    """Scores of all groups or of one, twice: they are the items' own."""
    found = runs.read_scores(run_dir, model)
    if found is not None and group is not None:
        found = {group: found[group]}
    return None if found is None else (found, found)


def _text(run_dir: Path, model: str, group: str) -> tuple[Scores, Scores] | None:
    """A text's pseudo-values, and its documents' own bits per byte."""
    texts = runs.read_scores(run_dir, model, "text")
    if texts is None or group not in texts:
        return None
    own = texts[group]["bits"] / texts[group]["bytes"]
    return bits_per_byte.as_scores(texts, group), {group: {group: own}}


def _chosen(name: str, models: Mapping[str, Any]) -> str:
    """The point of a swept row that was best on dev; any other name as it is."""
    points = {n: row["sweep"] for n, row in models.items() if row.get("sweep", {}).get("row") == name}
    return next((n for n, sweep in points.items() if sweep.get("chosen")), name)
