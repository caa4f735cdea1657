"""What one line of a suite stands for: the points of its sweeps, and the controls of its fusions."""

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fusion.builders import BUILDERS
from fusion.methods import METHODS
from fusion.params import fill, yaml_name
from harness.spec import Candidate, Model


def expand(row: str, value: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Candidates of one entry: (row, name, entry without sweeps, the swept values).

    `ties` becomes `ties[density=0.3]`, ...; with `pairs: [a, b, c]` in the place of `models` it is the rows
    `ties[a+b]`, `ties[a+c]` and `ties[b+c]`. Raises ValueError for a sweep that is not a list of at least one value,
    and for pairs of fewer than two models.
    """
    if "pairs" not in value:
        return _points(row, value)
    names = value["pairs"]
    if "models" in value:
        raise ValueError("`pairs` stands in the place of `models`: give one of them")
    named_well = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named_well or len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"'pairs' is {names!r}; expected a list of at least two different models")
    rest = {key: part for key, part in value.items() if key != "pairs"}
    return [
        point
        for a, b in itertools.combinations(names, 2)
        for point in _points(f"{row}[{a}+{b}]", {**rest, "models": [a, b]})
    ]


def _points(row: str, value: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    swept = {key: part["sweep"] for key, part in value.items() if isinstance(part, Mapping) and set(part) == {"sweep"}}
    for key, values in swept.items():
        if not isinstance(values, list) or not values or len({str(v) for v in values}) != len(values):
            raise ValueError(f"'{key}' is swept over {values!r}; a sweep is a list of different values")
    points = [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())]
    return [(row, named(row, point), {**value, **point}, point) for point in points]


def named(row: str, point: Mapping[str, Any]) -> str:
    """`row[key=value,...]`, or the row itself where nothing is swept."""
    inside = ",".join(f"{key}={value}".replace(" ", "") for key, value in point.items())
    if not inside:
        return row
    return f"{row[:-1]},{inside}]" if row.endswith("]") else f"{row}[{inside}]"


def start_of(row: str, point: Mapping[str, Any]) -> str:
    """The name of the parameter mean that a training starts from where the suite names no target."""
    return named(f"{row}.start", {key: value for key, value in point.items() if key == "teachers"})


def with_starts(models: Mapping[str, Model]) -> dict[str, Candidate]:
    """The parameter means of the teachers that trainings start from, as candidates: they are scored, too.

    Raises ValueError when such a mean's name is taken.
    """
    found: dict[str, Candidate] = {}
    for model in models.values():
        if not isinstance(model, Candidate) or model.target is None or model.target != start_of(model.row, model.sweep):
            continue
        start = model.target
        if start in models:
            raise ValueError(f"'{start}' is the name of the mean that {model.row} starts from: name yours otherwise")
        params, _ = fill(METHODS["linear"].Params, {})
        found[start] = Candidate(
            name=start, method="linear", kind="merged", params=params, models=model.models, row=start
        )
    return found


def with_controls(models: Mapping[str, Model], given: Mapping[str, Any]) -> dict[str, Candidate]:
    """Every fusion's control: the same target, corpus, steps and seeds, without a teacher.

    Points of a sweep that differ only in what a control does not have (lambda, say) share one, and so do rows that
    would have the same. Returns the controls and the fusions that now name them. Raises ValueError when the control's
    name is taken.
    """
    found: dict[str, Candidate] = {}
    made: dict[str, str] = {}
    for name, model in models.items():
        builder = BUILDERS.get(model.method) if isinstance(model, Candidate) else None
        if not isinstance(model, Candidate) or builder is None or builder.control is None or model.control is not None:
            continue
        if given[model.row].get("control") == "none":
            continue
        control = _control(model, builder.control)
        same = made.setdefault(repr(replace(control, name="", row="", sweep={})), control.name)
        found[name] = replace(model, control=same)
        if same != control.name:
            continue
        if same in models:
            raise ValueError(
                f"'{same}' is the name of {model.row}'s control: name yours otherwise, or say control: none"
            )
        found[same] = control
    return found


def _control(model: Candidate, method: str) -> Candidate:
    """A fusion's control, with those of its swept parameters that a control has."""
    shared = {yaml_name(f) for f in fields(BUILDERS[method].Params)}
    kept = {*shared, "target", "corpus"} | ({"teachers"} if model.target == start_of(model.row, model.sweep) else set())
    point = {key: value for key, value in model.sweep.items() if key in kept}
    return replace(
        model,
        name=named(f"{model.row}.control", point),
        row=f"{model.row}.control",
        method=method,
        kind=BUILDERS[method].kind,
        params={key: value for key, value in model.params.items() if key in shared},
        models=(),
        sweep=point,
        is_control=True,
    )
