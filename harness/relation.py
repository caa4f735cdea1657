"""One relation of kinship and gain as results.json has it: coefficients with interval and p, or why there are none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from harness.association import Array, Bools, Coefficients, Half, Ints, fitted, needed, of_rows, related, without
from harness.merges import Control, Merges, Outcome, PairValues
from harness.prediction import prediction

ROWS_FOR_R = 3
UNITS_FOR_P = 8
BAND_POINTS = 25
KINDS = ("pearson", "spearman")


class _Part(NamedTuple):
    """Those rows of a merges that are looked at together, and the units that they have."""

    merges: Merges
    rows: Bools
    names: list[str]
    units: list[str]
    made_of: Bools
    strata: Ints


class _Estimates(NamedTuple):
    """Coefficients by kind, (measures, outcomes); why a measure has no p."""

    kinds: dict[str, Coefficients]
    no_p: list[str | None]


Leaves = dict[tuple[str, Outcome], dict[str, Any]]


def leaves(merges: Merges, measures: Sequence[str], outcomes: Sequence[Outcome], rows: Bools | None = None) -> Leaves:
    """The relation of each measure with each outcome over those `rows` (all by default) where both are known.

    A leaf is {"n", "models", "pearson", "spearman", "partial", "partial_rank", "influential", "influential_model",
    "needed", "left_out", "reason"} as far as they are defined; a coefficient is {"value", "low", "high", "p"}, and that
    of "partial" has "given", "halves", "n", "influential" and "reason", too. "left_out": rows alone in their method.
    """
    rows = np.ones(len(merges.names), dtype=bool) if rows is None else rows
    partial = _partials(merges, measures, outcomes, rows)
    found: Leaves = {}
    for part, xs, ys, left_out in _alike(merges, measures, outcomes, merges.y, rows):
        for key, leaf in _together(part, xs, ys).items():
            found[key] = leaf | (partial.get(key, {}) if "pearson" in leaf else {})
            if left_out:
                found[key]["left_out"] = left_out
    return found


def _alike(
    merges: Merges, measures: Sequence[str], outcomes: Sequence[Outcome], y: Mapping[Outcome, Array], rows: Bools
) -> Iterator[tuple[_Part, list[str], list[Outcome], int]]:
    """Measures and outcomes that are known for the same rows, the rows, and how many are alone in their method."""
    for xs, known_x in _by_rows(measures, merges.x):
        for ys, known_y in _by_rows(outcomes, y):
            known = rows & known_x & known_y
            kept = known & _comparable(merges.strata, known)
            yield _part(merges, kept), xs, ys, int(known.sum() - kept.sum())


def _by_rows(keys: Sequence[Any], values: Mapping[Any, Array]) -> list[tuple[list[Any], Bools]]:
    found: dict[bytes, tuple[list[Any], Bools]] = {}
    for key in keys:
        known = np.isfinite(values[key])
        found.setdefault(known.tobytes(), ([], known))[0].append(key)
    return list(found.values())


def _comparable(strata: Ints, rows: Bools) -> Bools:
    """Rows that share their method with another of `rows`; all, where there is but one method."""
    counts = np.bincount(strata[rows], minlength=int(strata.max(initial=0)) + 1)
    alone: Bools = (counts[strata] == 1) & ((counts > 0).sum() > 1)
    return ~alone


def _part(merges: Merges, rows: Bools) -> _Part:
    used = np.any(merges.made_of[rows], axis=0)
    units = [name for name, here in zip(merges.units, used, strict=True) if here]
    names = [name for name, here in zip(merges.names, rows, strict=True) if here]
    return _Part(merges, rows, names, units, merges.made_of[rows][:, used], merges.strata[rows])


def _taken(part: _Part, values: Mapping[Any, Array], keys: Sequence[Any]) -> Array:
    return np.stack([values[key][part.rows] for key in keys])


# -------------------------------------------------------------------------------------------------------- coefficients


def _together(part: _Part, measures: list[str], outcomes: list[Outcome]) -> Leaves:
    n, units = len(part.names), len(part.units)
    start: dict[str, Any] = {"n": n, "models": units}
    if n < ROWS_FOR_R:
        rows, gain = part.merges.words
        reason = f"{n} {rows} with this kinship and {gain}; a correlation needs {ROWS_FOR_R}"
        return {(measure, outcome): {**start, "reason": reason} for measure in measures for outcome in outcomes}
    x, y = _taken(part, part.merges.x, measures), _taken(part, part.merges.y, outcomes)
    halves = [Half(y, np.empty((0, n)), np.empty((0, units, units)))]
    estimates = _estimated(part, measures, halves)
    rowwise = without(x, halves, part.strata, np.eye(n, dtype=bool))
    unitwise = without(x, halves, part.strata, part.made_of.T)
    found = {}
    for i, measure in enumerate(measures):
        for j, outcome in enumerate(outcomes):
            leaf = start | _entry(estimates, part, i, j, _constant(x[i], y[j], part))
            if "pearson" in leaf:
                r = leaf["pearson"]["value"]
                leaf |= {"needed": count} if (count := needed(r)) is not None else {}
                leaf |= _influential("influential", r, part.names, rowwise[:, i, j])
                if part.merges.unit != "row":
                    leaf |= _influential(f"influential_{part.merges.unit}", r, part.units, unitwise[:, i, j])
            found[measure, outcome] = leaf
    return found


def _constant(x: Array, y: Array, part: _Part) -> str:
    rows, gain = part.merges.words
    for name, values in (("kinship", x), (gain, y)):
        if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
            return f"the {name} is the same for all {len(x)} {rows}"
    return f"{len(x)} {rows} are too few, or too alike, within each method"


def _estimated(part: _Part, measures: list[str], halves: list[Half], rigid: str | None = None) -> _Estimates:
    x = _taken(part, part.merges.x, measures)
    labelled = [_labelled(part, measure, x[i]) if rigid is None else rigid for i, measure in enumerate(measures)]
    matrices = [None if isinstance(one, str) else one for one in labelled]
    return _Estimates(
        {kind: related(x, halves, part.made_of, part.strata, matrices, kind == "spearman") for kind in KINDS},
        [one if isinstance(one, str) else None for one in labelled],
    )


def _labelled(part: _Part, measure: str, x: Array) -> Array | str:
    """Kinship of all pairs of units, or why their labels cannot be permuted."""
    if len(part.units) < UNITS_FOR_P:
        return f"{_units(part)}, {UNITS_FOR_P} needed"
    if part.merges.rigid is not None:
        return part.merges.rigid
    found = _square(part, part.merges.pairs.get(measure, {}), f"the {measure}")
    if isinstance(found, str):
        return found
    apart = np.abs(of_rows(found[0], part.made_of) - x) > 1e-6 * max(1.0, float(np.abs(x).max()))
    if apart.any():
        return f"the {measure} of '{part.names[int(apart.argmax())]}' is not the mean over its pairs of models"
    return found[0]


def _square(part: _Part, values: PairValues, what: str) -> Array | str:
    """Values of all pairs of units as (values, units, units), NaN where two are no pair; or which are missing."""
    alone = part.merges.unit != "model"
    pairs = [(a, b) for i, a in enumerate(part.units) for b in part.units[i:] if (a == b) == alone]
    missing = [" and ".join(dict.fromkeys(pair)) for pair in pairs if pair not in values]
    if missing:
        return f"labels cannot be permuted, {what} of {len(missing)} of {len(pairs)} pairs is unknown ({missing[0]})"
    place = {name: i for i, name in enumerate(part.units)}
    found = np.full((np.size(values[pairs[0]]), len(place), len(place)), np.nan)
    for a, b in pairs:
        found[:, place[a], place[b]] = found[:, place[b], place[a]] = values[a, b]
    return found


def _partials(merges: Merges, measures: Sequence[str], outcomes: Sequence[Outcome], rows: Bools) -> Leaves:
    """{"partial", "partial_rank"} by measure and outcome: correlations given what the merges controls for."""
    control = merges.control
    if control is None:
        absent = {} if merges.uncontrolled is None else {"partial": {"reason": merges.uncontrolled}}
        return {(measure, outcome): absent for measure in measures for outcome in outcomes}
    unknown = np.sum([z.sum(axis=0) for z in control.z], axis=0) * 0.0  # NaN where a covariate is
    known = {outcome: np.sum([y[outcome] for y in control.y], axis=0) + unknown for outcome in outcomes}
    found: Leaves = {}
    for part, xs, ys, _ in _alike(merges, measures, outcomes, known, rows):
        start = {"given": control.given, "halves": len(control.z) > 1, "n": len(part.names)}
        if len(part.names) < ROWS_FOR_R:
            reason = f"{len(part.names)} candidates whose parents' scores are known"
            found |= {(x, y): {"partial": {**start, "reason": reason}} for x in xs for y in ys}
            continue
        halves, missing = _halves(part, control, ys)
        estimates = _estimated(part, xs, halves, missing)
        rowwise = without(_taken(part, merges.x, xs), halves, part.strata, np.eye(len(part.names), dtype=bool))
        reason = f"nothing is left to relate, given {' and '.join(control.given)}"
        for i, measure in enumerate(xs):
            for j, outcome in enumerate(ys):
                entry = _entry(estimates, part, i, j, reason)
                pearson, rank = entry.pop("pearson", {}), entry.pop("spearman", None)
                if pearson:
                    pearson |= _influential("influential", pearson["value"], part.names, rowwise[:, i, j])
                found[measure, outcome] = {"partial": start | pearson | entry}
                found[measure, outcome] |= {"partial_rank": rank} if rank is not None else {}
    return found


def _halves(part: _Part, control: Control, outcomes: list[Outcome]) -> tuple[list[Half], str | None]:
    """Outcomes and covariates by half; why labels cannot be permuted, if the score of some pair is unknown."""
    halves, missing = [], None
    for y, z, pairs in zip(control.y, control.z, control.pairs, strict=True):
        square = _square(part, pairs, "the score") if len(part.units) >= UNITS_FOR_P else None
        if isinstance(square, str):
            square, missing = None, square
        empty = np.empty((len(z), len(part.units), len(part.units)))
        halves.append(Half(_taken(part, y, outcomes), z[:, part.rows], empty if square is None else square))
    return halves, missing


def _entry(found: _Estimates, part: _Part, i: int, j: int, undefined: str) -> dict[str, Any]:
    """The coefficients of measure i with outcome j, with the reasons for what is absent."""
    entry: dict[str, Any] = {}
    for kind, estimates in found.kinds.items():
        values = _known({key: float(getattr(estimates, key)[i, j]) for key in Coefficients._fields})
        entry |= {kind: values} if "value" in values else {}
    if "pearson" not in entry:
        return {"reason": undefined}
    reasons = [] if found.no_p[i] is None else [f"no p-value: {found.no_p[i]}"]
    if any("low" not in entry[kind] for kind in KINDS if kind in entry):
        reasons.append(f"no interval: {_units(part)}, too few to resample")
    return {**entry, "reason": "; ".join(reasons)} if reasons else entry


def _units(part: _Part) -> str:
    return f"{len(part.units)} independent {part.merges.unit}{'' if len(part.units) == 1 else 's'}"


def _influential(key: str, r: float, names: list[str], without_one: Array) -> dict[str, dict[str, Any]]:
    """The range of Pearson's r without one of `names`, the one that moves it most, and r without that one."""
    if not np.isfinite(without_one).any():
        return {}
    most = int(np.nanargmax(np.abs(without_one - r)))
    ends = {"low": float(np.nanmin(without_one)), "high": float(np.nanmax(without_one))}
    return {key: {"name": names[most], "without": float(without_one[most]), **ends}}


# -------------------------------------------------------------------------------------------------- line and prediction


def line(merges: Merges, measure: str, outcome: Outcome) -> dict[str, Any]:
    """{"line": {"slope", "intercept"}, "band": [[x, low, high]]} of gain on kinship; no band without an interval."""
    known = np.isfinite(merges.x[measure]) & np.isfinite(merges.y[outcome])
    part = _part(merges, known & _comparable(merges.strata, known))
    x, y = merges.x[measure][part.rows], merges.y[outcome][part.rows]
    at = np.linspace(x.min(), x.max(), BAND_POINTS)
    slope, intercept, low, high = fitted(x, y, part.made_of, part.strata, at)
    found: dict[str, Any] = {"line": {"slope": slope, "intercept": intercept}}
    if np.isfinite(low).all():
        found["band"] = np.stack([at, low, high], axis=1).tolist()
    return found


def predictor(merges: Merges, measure: str, outcome: Outcome, left_out: str) -> dict[str, Any]:
    """Whether kinship lowers the error of a predicted gain: {"without", "with", "fall", ...}, or why not known."""
    control = merges.control
    if control is None:
        return {"reason": merges.uncontrolled or "the parents' scores are not known"}
    known = np.isfinite(merges.x[measure])
    for z, y in zip(control.z, control.y, strict=True):
        known = known & np.isfinite(z).all(axis=0) & np.isfinite(y[outcome])
    halves = [
        Half(y[outcome][None, known], z[:, known], np.empty((0, 0, 0)))
        for z, y in zip(control.z, control.y, strict=True)
    ]
    folds = merges.folds[known]
    found = prediction(merges.x[measure][known], halves, folds[:, folds.any(axis=0)], merges.strata[known])
    if found is None:
        return {"reason": f"{int(known.sum())} candidates are too few to leave out one {left_out} and predict it"}
    entry: dict[str, Any] = {"left_out": left_out, "given": control.given, "halves": len(halves) > 1}
    entry |= {"n": found.predicted, "folds": found.folds}
    for i, name in enumerate(("without", "with")):
        entry[name] = _known({"rmse": found.rmse[i], "r2": found.r2[i]})
    return {**entry, "fall": _known({"value": found.fall, "low": found.low, "high": found.high})}


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if np.isfinite(value)}
