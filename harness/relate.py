"""What was gained over the models a candidate is made of, and whether their kinship told it.

Candidates share models: an average, a TIES merge and a SLERP of the same two parents are three candidates and one fact
about kinship. So intervals resample models, not candidates, p-values permute models' labels (association.py), and no
p-value is given under 8 independent models.

A gain contains minus the parents' score, and strong parents are often related: a correlation of kinship with gain may
be one of parents' scores with gain. So a partial correlation stands beside it, given the parents' mean score and their
gap on one half of the items, with the gain on the other half. Half of the items measure the parents with noise, so
they are held fixed less than fully; and a kinship that is itself made of the answers to these very items (CAPA or
flips without a dev split) shares their luck with the gain on either half.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness import association, relation, stats
from harness.halves import halve
from harness.merges import HEADLINE, Merges, Row, fold_of, known_pairs, merges_of
from harness.stats import Difference, Scores

Pairs = Mapping[str, Mapping[tuple[str, str], float]]

NO_DEV = "no dev split: ahead, it must beat every parent (largest p); behind, p pays for choosing the best on test"


def gains(
    candidate: str,
    parents: Sequence[str],
    base: str | None = None,
    control: str | None = None,
    target: str | None = None,
    *,
    test: Mapping[str, Scores],
    dev: Mapping[str, Scores] | None = None,
) -> dict[str, dict[str, Any]]:
    """The gains of a candidate, by name of model in `test` (and `dev`): the keys of contract 4 that can be known.

    Each is {"value", "low", "high", "p", "against"[, "note"]}, paired on test items. `best` is against the parent that
    is best on dev; without dev scores of every parent, the candidate must beat them all. `worst` is the lowest gain of
    a group over that same parent. `retention` is no difference but the share of each task's best parent that is kept.
    A gain over a model without test scores is left out, and all that need every parent are where any has none: the best
    of the rest is not the best.
    """
    found: dict[str, dict[str, Any]] = {}
    mine = test.get(candidate)
    if mine is None:
        return found
    if parents and all(name in test for name in parents):
        found["best"] = _gain_best(mine, parents, test, dev)
        share = -1.0 / len(parents)
        mean = stats.contrast([(1.0, mine), *((share, test[name]) for name in parents)])
        found["mean"] = gain_entry(mean, "mean of the parents")
        found |= _retention(mine, [test[name] for name in parents])
        against = found["best"]["against"]
        found["worst"] = {**_worst_group(mine, test[against]), "against": against}
    for key, name in (("base", base), ("control", control), ("target", target)):
        if name is not None and name in test:
            found[key] = gain_entry(stats.difference(mine, test[name]), name)
    return found


def _gain_best(
    mine: Scores, parents: Sequence[str], test: Mapping[str, Scores], dev: Mapping[str, Scores] | None
) -> dict[str, Any]:
    if dev is not None and all(name in dev for name in parents):
        best = max(parents, key=lambda name: stats.overall(dev[name]).value)
        return gain_entry(stats.difference(mine, test[best]), best)
    best, found = stats.against_best(mine, {name: test[name] for name in parents})
    return {**gain_entry(found, best), "note": NO_DEV}


def _retention(mine: Scores, parents: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """Mean over tasks of the candidate's score over that of the task's best parent, without tasks that no parent can.

    The interval is a paired bootstrap over items. The best of equals looks better than it is, so its upper end is
    Bonferroni-corrected over the parents. That is not all of it: with three equal parents and six tasks of 100 items
    the value reads .045 too low on average, and the interval holds the true one in 86 % of 400 worlds; with a parent
    that is really better it does in 95 to 98 %.
    """
    found = stats.resampled([mine, *parents])
    highest = found.values[:, 1:].max(axis=1)
    able = highest > 0
    if not able.any():
        return {}
    best = 1 + found.values[able, 1:].argmax(axis=1)
    entry: dict[str, Any] = {"value": float((found.values[able, 0] / highest[able]).mean())}
    if found.draws is not None:
        draws = found.draws[:, able]
        theirs = np.take_along_axis(draws, best[None, :, None], axis=2)[:, :, 0]
        kept = np.divide(draws[:, :, 0], theirs, out=np.full(theirs.shape, np.nan), where=theirs > 0)
        drawn = kept[np.isfinite(kept).any(axis=1)]
        low, high = np.quantile(np.nanmean(drawn, axis=1), [0.025, 1 - 0.025 / len(parents)])
        entry |= {"low": float(low), "high": float(high)}
    entry |= {"against": "best parent by task", "tasks": int(able.sum())}
    return {"retention": entry | ({"left_out": int((~able).sum())} if not able.all() else {})}


def _worst_group(mine: Scores, other: Scores) -> dict[str, Any]:
    """The group with the lowest gain. The interval is for the lowest gain, whichever group has it.

    The lowest true gain is at most every group's, so `high` is the lowest of the groups' upper ends, which pay for that
    choice (Bonferroni); `low` is the lowest of their lower ends, for one of them is that of the group that has it.
    """
    pairs = {
        group: stats.contrast([(1.0, {group: mine[group]}), (-1.0, {group: other[group]})], choices=len(mine))
        for group in mine
    }
    group = min(pairs, key=lambda name: pairs[name].value)
    entry: dict[str, Any] = {"value": pairs[group].value, "group": group}
    lows, highs = [pair.low for pair in pairs.values()], [pair.high for pair in pairs.values()]
    if None not in lows:
        entry |= {"low": min(one for one in lows if one is not None), "high": min(h for h in highs if h is not None)}
    return entry


def gain_entry(found: Difference, against: str) -> dict[str, Any]:
    """A paired difference as results.json has it."""
    values = {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "mde": found.mde}
    return {**{key: value for key, value in values.items() if value is not None}, "against": against}


def estimate_entry(found: stats.Estimate) -> dict[str, Any]:
    """A score with its uncertainty as results.json has it."""
    values = {"value": found.value, "stderr": found.stderr, "n": found.n}
    return {key: value for key, value in values.items() if value is not None}


# ------------------------------------------------------------------------------------------------- kinship and gain


def kinship_vs_gain(
    rows: Sequence[Row],
    *,
    pairs: Pairs | None = None,
    test: Mapping[str, Scores] | None = None,
    gain: str = "gain over the best parent",
) -> dict[str, Any]:
    """Correlation of kinship with gain over the candidates of a suite, or the rows of a table.

    rows: {"name", "parents": [names], "kinship": {measure: {"mean"}}, "gain": {"best": {"value"}, ...}[, "method"]
    [, "lineage"][, "given": {"parent_mean", "parent_gap"}]}. A parent that is itself a row counts as the models it is
    made of; rows without parents are independent, or as their lineages are. pairs: kinship of all pairs of models, by
    measure; the pairs that are rows are known anyway. test: scores of all models by item, for the halves. gain: what
    the headline is, in words.

    A row may have "kin": false, where a parent is no kin of the base. Strangers are as unlike by any measure as models
    can be, and their merges fail: both are known without kinship, so "kin" has the headline without them.

    Returns {"unit", "models", "measures": {measure: {gain: {"signed", "absolute"}}}, "methods": {method: {measure:
    {"signed", "absolute"}}} of the headline gain, "kin": {measure: {"signed", "absolute"}}, "atpd": {measure: leaf},
    "predictor": {measure: ...}, "draws", "permutations", "says"}, leaves as relation.leaves has them.

    Gains and kinship of several methods are deviations from their method's mean: a method that gains more on every
    pair, or was tried on other pairs, then makes no relation. A row that is alone in its method says nothing.
    """
    measures = list(dict.fromkeys(measure for row in rows for measure in row.get("kinship") or {}))
    known = known_pairs(rows, measures, pairs or {})
    merges = merges_of(rows, measures, known, halve(test) if test else None, test is not None)
    found = relation.leaves(merges, measures, list(merges.y))
    table: dict[str, dict[str, Any]] = {measure: {} for measure in measures}
    for (measure, (key, kind)), leaf in found.items():
        table[measure].setdefault(key, {})[kind] = leaf
    for measure in measures:
        if "pearson" in found[measure, HEADLINE]:
            found[measure, HEADLINE].update(relation.line(merges, measure, HEADLINE))
    _add_q([found[measure, HEADLINE] for measure in measures])
    kin = _part(merges, measures, [row.get("kin") is not False for row in rows])
    return {
        "unit": merges.unit,
        "models": len(merges.units),
        "measures": table,
        "methods": _by_method(merges, rows, measures),
        **({"kin": kin} if kin else {}),
        "atpd": _atpd(measures, known, test or {}),
        "predictor": {measure: _predictor(merges, measure, fold_of(rows)) for measure in measures},
        "draws": association.DRAWS,
        "permutations": association.PERMUTATIONS,
        "says": _says(measures, found, merges.unit, gain) + _says_of_kin(measures, kin),
    }


def _add_q(leaves: Sequence[dict[str, Any]]) -> None:
    """Benjamini and Hochberg's q over the measures that have a headline p."""
    tested = [leaf["pearson"] for leaf in leaves if "p" in leaf.get("pearson", {})]
    for entry, q in zip(tested, association.false_discovery([entry["p"] for entry in tested]), strict=True):
        entry["q"] = q


def _by_method(merges: Merges, rows: Sequence[Row], measures: Sequence[str]) -> dict[str, Any]:
    """The headline of every method by itself, where there are several."""
    methods = [row.get("method") for row in rows]
    parts = {str(method): _part(merges, measures, [m == method for m in methods]) for method in dict.fromkeys(methods)}
    return {method: part for method, part in parts.items() if part}


def _part(merges: Merges, measures: Sequence[str], mine: Sequence[bool]) -> dict[str, Any]:
    """The headline of some rows by themselves; empty where they are all rows, or too few."""
    if all(mine) or sum(mine) < relation.ROWS_FOR_R:
        return {}
    of = relation.leaves(merges, measures, [HEADLINE, ("best", "absolute")], np.array(mine, dtype=bool))
    return {measure: {kind: of[measure, ("best", kind)] for kind in ("signed", "absolute")} for measure in measures}


def _atpd(
    measures: Sequence[str], pairs: Mapping[str, Mapping[tuple[str, str], float]], test: Mapping[str, Scores]
) -> dict[str, Any]:
    """Kinship against the parents' difference by task (ATPD: mean over tasks of |score of a - score of b|).

    Over all pairs of models, merged or not, whose kinship and scores are known (Hu et al. 2024, appendix E).
    """
    known = {pair for of in pairs.values() for pair in of if pair[0] != pair[1] and test.keys() >= set(pair)}
    scores = {name: _by_task(test[name]) for name in {name for pair in known for name in pair}}
    rows = [
        {
            "name": " and ".join(pair),
            "parents": pair,
            "kinship": {measure: {"mean": of[pair]} for measure, of in pairs.items() if pair in of},
            "gain": {HEADLINE[0]: {"value": float(np.abs(scores[pair[0]] - scores[pair[1]]).mean())}},
        }
        for pair in sorted(known)
    ]
    if not rows:
        return {}
    merges = merges_of(rows, measures, pairs, None, False)
    merges = merges._replace(uncontrolled=None, words=("pairs of models", "difference by task"))
    return {measure: leaf for (measure, _), leaf in relation.leaves(merges, measures, [HEADLINE]).items()}


def _by_task(scores: Scores) -> stats.Array:
    tasks = [scores[group][task] for group in sorted(scores) for task in sorted(scores[group])]
    return np.array([stats.of_task(task).value for task in tasks])


# ------------------------------------------------------------------------------------------------------- what it says


def _predictor(merges: Merges, measure: str, left_out: str) -> dict[str, Any]:
    found = relation.predictor(merges, measure, HEADLINE, left_out)
    return {**found, "says": _predictor_says(measure, found)} if "fall" in found else found


def _predictor_says(measure: str, found: Row) -> str:
    fall = found["fall"]
    given = " and ".join(found["given"])
    what = f"the error of the gain predicted from {given} for {found['left_out']}s that were left out"
    if "value" not in fall:
        return f"{measure} has nothing to lower: {what} is 0."
    size = f"With {measure}, {what} is {_change(fall['value'])}"
    if "low" not in fall:
        return f"{size}; {found['folds']} {found['left_out']}s are too few for an interval."
    sure = "" if fall["low"] > 0 else ": it is not shown to help"
    return f"{size} (95 % interval {_change(fall['high'])} to {_change(fall['low'])}){sure}."


def _change(fall: float) -> str:
    return f"{abs(100 * fall):.0f} % {'lower' if fall >= 0 else 'higher'}"


def _says(measures: Sequence[str], found: relation.Leaves, unit: str, gain: str) -> str:
    """What may be concluded, in one sentence, from the first measure against the headline gain."""
    if not measures:
        return "Kinship was not measured, so nothing can be said of it and gain."
    measure = measures[0]
    leaf = found[measure, HEADLINE]
    what = f"{measure} of the parents and {gain}"
    if "pearson" not in leaf:
        return f"Nothing can be concluded of {what}: {leaf['reason']}."
    r = leaf["pearson"]
    plural = "" if leaf["models"] == 1 else "s"
    independent = "" if unit == "row" else f" made of {leaf['models']} independent {unit}{plural}"
    alone = f" ({leaf['left_out']} left out, alone in a method)" if leaf.get("left_out") else ""
    seen = f"{_r(r)} over {leaf['n']} candidates{alone}{independent}"
    partial = leaf.get("partial") or {}
    given = f"; given {' and '.join(partial['given'])} it is {_r(partial)}" if "value" in partial else ""
    if "p" not in r:
        return f"No conclusion on {what}: {seen} ({leaf['reason']}){given}."
    if r["p"] >= stats.ALPHA or not (r.get("low", -1) > 0 or r.get("high", 1) < 0):
        return f"No relation is shown between {what}: {seen}{given}."
    more = "more" if r["value"] > 0 else "less"
    beyond = "" if partial.get("p", 1) < stats.ALPHA else ", which shows none beyond the parents' scores"
    return (
        f"A higher {measure} of the parents goes with {more} {gain}: {seen}"
        f"{given}{beyond if given else ''}; a correlation, not a cause."
    )


def _says_of_kin(measures: Sequence[str], kin: Mapping[str, Row]) -> str:
    """What is left of the headline without merges of strangers."""
    leaf = kin[measures[0]]["signed"] if kin else {}
    if "pearson" not in leaf:
        return ""
    partial = leaf.get("partial") or {}
    given = f"; given {' and '.join(partial['given'])} {_r(partial)}" if "value" in partial else ""
    return f" Without merges of strangers it is {_r(leaf['pearson'])} over {leaf['n']} candidates{given}."


def _r(entry: Row) -> str:
    """A coefficient with what is known of its uncertainty."""
    span = f"95 % interval {entry['low']:+.2f} to {entry['high']:+.2f}" if "low" in entry else ""
    p = f"p = {entry['p']:.2g}" if "p" in entry else ""
    inner = ", ".join(part for part in (span, p) if part)
    return f"r = {entry['value']:+.2f}" + (f" ({inner})" if inner else "")
