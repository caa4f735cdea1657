"""What one line of a suite stands for: the points of its sweeps, and the controls of its fusions."""

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fusion.builders import BUILDERS
from fusion.params import yaml_name
from harness.spec import Candidate, Model


def expand(row: str, value: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Candidates of one entry: (name, entry without sweeps, the swept values). `ties` becomes `ties[density=0.3]`, ...

    Raises ValueError for a sweep that is not a list of at least one value.
    """
    swept = {key: part["sweep"] for key, part in value.items() if isinstance(part, Mapping) and set(part) == {"sweep"}}
    for key, values in swept.items():
        if not isinstance(values, list) or not values or len({str(v) for v in values}) != len(values):
            raise ValueError(f"'{key}' is swept over {values!r}; a sweep is a list of different values")
    points = [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())]
    return [(named(row, point), {**value, **point}, point) for point in points]


def named(row: str, point: Mapping[str, Any]) -> str:
    """`row[key=value,...]`, or the row itself where nothing is swept."""
    inside = ",".join(f"{key}={value}".replace(" ", "") for key, value in point.items())
    return f"{row}[{inside}]" if inside else row


def with_controls(models: Mapping[str, Model], given: Mapping[str, Any]) -> dict[str, Candidate]:
    """Every fusion's control: the same target, corpus, steps and seeds, without a teacher.

    Points of a sweep that differ only in what a control does not have (lambda, say) share one. Returns the controls
    and the fusions that now name them. Raises ValueError when the control's name is taken.
    """
    found: dict[str, Candidate] = {}
    for name, model in models.items():
        builder = BUILDERS.get(model.method) if isinstance(model, Candidate) else None
        if (
            not isinstance(model, Candidate)
            or builder is None
            or builder.control is None
            or given[model.row].get("control") == "none"
        ):
            continue
        shared = {yaml_name(f) for f in fields(BUILDERS[builder.control].Params)}
        point = {key: value for key, value in model.sweep.items() if key in shared or key in ("target", "corpus")}
        control = named(f"{model.row}.control", point)
        if control in models:
            raise ValueError(
                f"'{control}' is the name of {model.row}'s control: name yours otherwise, or say control: none"
            )
        found[name] = replace(model, control=control)
        found[control] = replace(
            model,
            name=control,
            row=f"{model.row}.control",
            method=builder.control,
            kind=BUILDERS[builder.control].kind,
            params={key: value for key, value in model.params.items() if key in shared},
            models=(),
            sweep=point,
            is_control=True,
        )
    return found
