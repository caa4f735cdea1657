"""Candidates as arrays: what they are made of, their kinship and gains, and what is held fixed to relate the two."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from harness.association import Array, Bools, Ints
from harness.halves import Halves

Row = Mapping[str, Any]
GAINS = ("best", "mean", "base", "retention", "worst")
HEADLINE = ("best", "signed")
GIVEN = {"parent_mean": "the parents' mean score", "parent_gap": "the gap of their scores"}
Outcome = tuple[str, str]
"""A gain, and whether it counts signed or absolute."""
PairValues = Mapping[tuple[str, str], Any]


class Control(NamedTuple):
    """What is held fixed, an entry for each half of the items; a single one where the gain is on the same items.

    given: the covariates in words. z: (covariates, rows); y: by outcome, (rows,); pairs: covariates of pairs of units.
    """

    given: list[str]
    z: list[Array]
    y: list[dict[Outcome, Array]]
    pairs: list[PairValues]


class Merges(NamedTuple):
    """Merges with their kinship x and gains y, (rows,) each, NaN where unknown.

    unit: what is independent: "model", "lineage" or "row". folds: (rows, groups) that a prediction leaves out together.
    pairs: kinship of pairs of units by measure, names sorted. rigid: why labels cannot be permuted. uncontrolled: why
    there is no control. words: what rows and y are called.
    """

    names: list[str]
    strata: Ints
    unit: str
    units: list[str]
    made_of: Bools
    folds: Bools
    x: dict[str, Array]
    y: dict[Outcome, Array]
    pairs: Mapping[str, PairValues]
    rigid: str | None = None
    control: Control | None = None
    uncontrolled: str | None = None
    words: tuple[str, str] = ("candidates", "gain")


def merges_of(
    rows: Sequence[Row], measures: Sequence[str], pairs: Mapping[str, PairValues], halves: Halves | None, tested: bool
) -> Merges:
    """The merges of relate.kinship_vs_gain's rows and pairs. tested: scores by item are known, in halves or not."""
    names = [str(row["name"]) for row in rows]
    lineage = {str(row["name"]): [str(parent) for parent in row.get("parents") or ()] for row in rows}
    unit = unit_of(rows)
    if unit == "model":
        made = [roots(name, lineage) for name in names]
    else:
        made = [[str(row["lineage"]) if unit == "lineage" else str(row["name"])] for row in rows]
    units = sorted({one for row in made for one in row})
    made_of = _incidence(made, units)
    methods = list(dict.fromkeys(row.get("method") for row in rows))
    y = {outcome: _column(rows, outcome) for outcome in _outcomes(rows)}
    control, uncontrolled = _control(rows, list(y), pairs, halves, tested)
    return Merges(
        names=names,
        strata=np.array([methods.index(row.get("method")) for row in rows], dtype=np.int64),
        unit=unit,
        units=units,
        made_of=made_of,
        folds=made_of if fold_of(rows) == unit else _incidence([[str(row["lineage"])] for row in rows]),
        x={measure: _kinship(rows, measure) for measure in measures},
        y=y,
        pairs=pairs,
        rigid=_rigid(lineage, unit, made),
        control=control,
        uncontrolled=uncontrolled,
    )


def unit_of(rows: Sequence[Row]) -> str:
    """What is independent: models where parents are known, else lineages, else rows."""
    if rows and all(row.get("parents") for row in rows):
        return "model"
    return "lineage" if rows and all(row.get("lineage") for row in rows) else "row"


def fold_of(rows: Sequence[Row]) -> str:
    """What a prediction leaves out: lineages where they are known, else what is independent."""
    return "lineage" if rows and all(row.get("lineage") for row in rows) else unit_of(rows)


def roots(name: str, lineage: Mapping[str, Sequence[str]], above: tuple[str, ...] = ()) -> list[str]:
    """The models that a name comes down to, in sorted order."""
    if name not in lineage or name in above:
        return [name]
    return sorted({root for parent in lineage[name] for root in roots(parent, lineage, (*above, name))})


def known_pairs(
    rows: Sequence[Row], measures: Sequence[str], pairs: Mapping[str, Mapping[tuple[str, str], float]]
) -> dict[str, dict[tuple[str, str], float]]:
    """Kinship of pairs of units, names sorted: the given pairs, and rows that are themselves a pair, or a unit."""
    unit, made = unit_of(rows), {str(row["name"]) for row in rows}
    found: dict[str, dict[tuple[str, str], float]] = {measure: {} for measure in measures}
    for measure in measures:
        for row, value in zip(rows, _kinship(rows, measure).tolist(), strict=True):
            ends = _ends(row, unit)
            if ends is not None and np.isfinite(value) and (unit != "model" or not made & set(ends)):
                found[measure][ends] = value
        found[measure] |= {(min(a, b), max(a, b)): value for (a, b), value in pairs.get(measure, {}).items()}
    return found


def _ends(row: Row, unit: str) -> tuple[str, str] | None:
    """The pair of units that a row is; a row without parents is the pair of its unit and itself."""
    if unit != "model":
        own = str(row["lineage"] if unit == "lineage" else row["name"])
        return own, own
    parents = sorted({str(parent) for parent in row["parents"]})
    return (parents[0], parents[1]) if len(parents) == 2 else None


def _rigid(lineage: Mapping[str, Sequence[str]], unit: str, made: Sequence[Sequence[str]]) -> str | None:
    """Why labels of units cannot be permuted, as far as the rows tell."""
    if unit == "model":
        deep = [name for name, parents in lineage.items() if any(parent in lineage for parent in parents)]
        return f"labels cannot be permuted, '{deep[0]}' is a merge of merges" if deep else None
    alone = len({one for row in made for one in row}) == len(made)
    return None if alone else "rows of one lineage cannot change places with those of another"


def _incidence(made: Sequence[Sequence[str]], units: Sequence[str] | None = None) -> Bools:
    columns = sorted({one for row in made for one in row}) if units is None else units
    return np.array([[unit in row for unit in columns] for row in made], dtype=bool).reshape(len(made), len(columns))


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _kinship(rows: Sequence[Row], measure: str) -> Array:
    return np.array([_number(((row.get("kinship") or {}).get(measure) or {}).get("mean")) for row in rows])


def _column(rows: Sequence[Row], outcome: Outcome) -> Array:
    values = np.array([_number(((row.get("gain") or {}).get(outcome[0]) or {}).get("value")) for row in rows])
    return np.abs(values) if outcome[1] == "absolute" else values


def _outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """The headline, and all that some row knows; what is kept of a score has no sign."""
    known = {gain for row in rows for gain in row.get("gain") or {}}
    kinds = {gain: ("signed",) if gain == "retention" else ("signed", "absolute") for gain in GAINS}
    return [(gain, kind) for gain in GAINS if gain in known or gain == HEADLINE[0] for kind in kinds[gain]]


# ------------------------------------------------------------------------------------------------- what is held fixed


def _control(
    rows: Sequence[Row], outcomes: list[Outcome], pairs: Mapping[str, PairValues], halves: Halves | None, tested: bool
) -> tuple[Control | None, str | None]:
    """What is held fixed, or why nothing can be."""
    if halves is not None:
        return _halved(rows, outcomes, halves), None
    if tested:
        return None, "no partial correlation: a task has a single item, which has no halves"
    given = [key for key in GIVEN if any((row.get("given") or {}).get(key) is not None for row in rows)]
    if not given:
        return None, "no partial correlation: the parents' scores are not known"
    z = np.array([[_number((row.get("given") or {}).get(key)) for row in rows] for key in given])
    unit = unit_of(rows)
    ends = [_ends(row, unit) for row in rows]
    known = {pair: z[:, i] for i, pair in enumerate(ends) if pair is not None and np.isfinite(z[:, i]).all()}
    y = {outcome: _column(rows, outcome) for outcome in outcomes}
    return Control([GIVEN[key] for key in given], [z], [y], [known]), None


def _halved(rows: Sequence[Row], outcomes: list[Outcome], halves: Halves) -> Control:
    """Covariates on one half of the items, gains on the other, and the other way round."""
    found = Control(list(GIVEN.values()), [], [], [])
    models = set(halves.means[0])
    made = {str(row["name"]) for row in rows}
    sources = sorted({str(parent) for row in rows for parent in row["parents"]} & models - made)
    for first in (0, 1):
        fixed, gained = [], []
        for row in rows:
            parents = [str(parent) for parent in row["parents"]]
            known = bool(parents) and {str(row["name"]), *parents} <= models
            base = ((row.get("gain") or {}).get("base") or {}).get("against")
            fixed.append(halves.parents(first, parents) if known else (np.nan, np.nan))
            gained.append(halves.gains(1 - first, str(row["name"]), parents, base) if known else {})
        found.z.append(np.array(fixed).reshape(len(rows), 2).T)
        entries = [{"gain": {gain: {"value": value} for gain, value in one.items()}} for one in gained]
        found.y.append({outcome: _column(entries, outcome) for outcome in outcomes})
        found.pairs.append({(a, b): halves.parents(first, (a, b)) for a, b in combinations(sources, 2)})
    return found
