"""Parameters of methods, builders and measures: declared once as frozen dataclasses, checked everywhere from there.

    @dataclass(frozen=True)
    class Params:
        density: float = param(0.5, low=0.0, high=1.0, help="share of each task vector that is kept")

A field named with a trailing underscore (`lambda_`) is written without it in YAML (`lambda`).

What a library takes besides is a mapping: `trainer: Mapping[str, Any] = param({}, help=...)`.

A number of a merge method may vary over the tensors of a model, as mergekit's recipes have it: a list of numbers is a
gradient over the layers, a list of {filter, value} goes by the tensor's name (`Varied` below). One that is declared

    density: PerModel = param(0.5, ...)

may also differ by model; a method then gets a tuple in the models' order.
"""

import difflib
import math
import types
from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# A parameter that each model may have for itself.
PerModel = tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user wrote.

    `key` is the path inside the given mapping (empty: the mapping itself); `on_key` says that the key is at fault
    rather than its value.
    """

    key: tuple[str | int, ...]
    message: str
    hint: str | None = None
    on_key: bool = False


def param(
    default: Any = MISSING, *, low: float | None = None, high: float | None = None, open_low: bool = False, help: str
) -> Any:
    """A parameter with its range (inclusive; `open_low` leaves `low` itself out) and its meaning in one line."""
    metadata = {"low": low, "high": high, "open_low": open_low, "help": help}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(f: Field[Any]) -> Any:
    """A parameter's default, or MISSING."""
    return f.default if f.default_factory is MISSING else f.default_factory()


@dataclass(frozen=True)
class _Weight:
    weight: float = param(1.0, help="how much a model counts")


def yaml_name(f: Field[Any]) -> str:
    """The name a user writes for a field."""
    return f.name.rstrip("_")


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint for a misspelt name, or the list of the names there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else None


def fill(
    params: type, given: Mapping[str, Any], varied: bool = False, defaults: bool = True
) -> tuple[dict[str, Any], list[Problem]]:
    """Check what was given against a dataclass of parameters and fill in the defaults.

    `varied` lets numbers vary over tensors; without `defaults` what is not given is left out.
    Returns (values by the name a user writes, problems). The values are complete only when there are no problems.
    """
    known = {yaml_name(f): f for f in fields(params)}
    hints = get_type_hints(params)
    problems = [
        Problem((key,), f"unknown parameter '{key}'", did_you_mean(str(key), known), on_key=True)
        for key in given
        if key not in known
    ]
    values: dict[str, Any] = {}
    for name, f in known.items():
        if name in given:
            check = _check_varied if varied else _check
            values[name], problem = check(given[name], hints[f.name], f)
            if problem:
                problems.append(Problem((name,), f"'{name}' {problem}"))
        elif not defaults:
            continue
        elif default_of(f) is not MISSING:
            values[name] = default_of(f)
        else:
            problems.append(Problem((), f"parameter '{name}' is missing", f"{name}: {f.metadata.get('help', '')}"))
    return values, problems


def build(params: type, values: Mapping[str, Any]) -> Any:
    """The dataclass from values that `fill` has checked."""
    return params(**{f.name: values[yaml_name(f)] for f in fields(params)})


def build_at(
    params: type, values: Mapping[str, Any], own: Sequence[Mapping[str, Any]], tensor: str, depth: float
) -> Any:
    """The dataclass for one tensor, from values that `fill` has checked and what each model has for itself.

    depth: where the tensor's layer lies, from 0 (the first, and all that is in no layer) to 1 (the last).
    """
    hints = get_type_hints(params)
    found = {}
    for f in fields(params):
        name = yaml_name(f)
        shared = value_at(values[name], tensor, depth, default_of(f))
        if hints[f.name] == PerModel:
            shared = tuple(value_at(mine[name], tensor, depth, shared) if name in mine else shared for mine in own)
        found[f.name] = shared
    return params(**found)


def value_at(value: Any, tensor: str, depth: float, default: Any = None) -> Any:
    """A value that may vary, for one tensor: `default` where no filter of it matches the tensor's name."""
    if not isinstance(value, list):
        return value
    if isinstance(value[0], Mapping):
        for entry in value:
            pattern = entry.get("filter")
            if pattern in (None, "*") or pattern in tensor:
                return value_at(entry["value"], tensor, depth, default)
        return default
    place = depth * (len(value) - 1)
    left = min(int(place), len(value) - 2) if len(value) > 1 else 0
    right = min(left + 1, len(value) - 1)
    return value[left] * (1 - (place - left)) + value[right] * (place - left) if right > left else float(value[0])


def check_weight(weight: Any) -> tuple[Any, str | None]:
    """A model's weight as `fill` would give it, and what is wrong with it: any number, which may vary over tensors."""
    return _check_varied(weight, float, _Weight.__dataclass_fields__["weight"])


def is_varied(value: Any) -> bool:
    """Whether a checked value differs between tensors."""
    return isinstance(value, list)


def describe(params: type) -> list[dict[str, Any]]:
    """Name, type, default, range and help of every parameter, for `fuse-bench methods` and the JSON Schema."""
    hints = get_type_hints(params)
    return [
        {
            "name": yaml_name(f),
            "type": type_name(hints[f.name]),
            "per_model": hints[f.name] == PerModel,
            "required": default_of(f) is MISSING,
            "default": None if default_of(f) is MISSING else default_of(f),
            "low": f.metadata.get("low"),
            "high": f.metadata.get("high"),
            "choices": choices_of(hints[f.name]),
            "help": f.metadata.get("help", ""),
        }
        for f in fields(params)
    ]


def choices_of(hint: Any) -> list[Any] | None:
    """The values of a Literal type, or None."""
    return list(get_args(hint)) if get_origin(hint) is Literal else None


def type_name(hint: Any) -> str:
    """A type as a user would call it."""
    if get_origin(hint) is Literal:
        return " | ".join(str(value) for value in get_args(hint))
    if _is_union(hint):
        return " | ".join(type_name(arm) for arm in get_args(hint))
    if hint == PerModel:
        return "number"
    if get_origin(hint) is abc.Mapping:
        return "mapping"
    plain = {float: "number", int: "integer", str: "text", bool: "true or false", type(None): "null"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _check_varied(value: Any, hint: Any, f: Field[Any]) -> tuple[Any, str | None]:
    """As `_check`, for a number that may be a gradient (a list of numbers) or a list of {filter, value}."""
    number = hint in (float, int, PerModel)
    if not isinstance(value, list) or not number:
        return _check(value, hint, f)
    if not value:
        return value, "is an empty list; expected numbers, or {filter, value}"
    checked: list[Any] = []
    for entry in value:
        filtered = isinstance(entry, Mapping)
        if filtered and (not {"value"} <= set(entry) <= {"filter", "value"} or not _is_name(entry.get("filter"))):
            return value, f"has {dict(entry)!r}; expected {{filter: part of a tensor's name, value: number}}"
        if filtered != isinstance(value[0], Mapping):
            return value, "mixes numbers with {filter, value}; expected the one or the other"
        found, problem = (_check_varied if filtered else _check)(entry["value"] if filtered else entry, hint, f)
        if problem:
            return value, problem
        checked.append({"filter": entry.get("filter"), "value": found} if filtered else found)
    return checked, None


def _is_name(pattern: Any) -> bool:
    return pattern is None or isinstance(pattern, str)


def _check(value: Any, hint: Any, f: Field[Any]) -> tuple[Any, str | None]:
    """The value in its declared type, and what is wrong with it."""
    if hint == PerModel:
        hint = float
    if _is_union(hint):
        tried = [_check(value, arm, f) for arm in get_args(hint)]
        good = [arm for arm in tried if arm[1] is None]
        return good[0] if good else (value, f"is {value!r}; expected {type_name(hint)}")
    choices = choices_of(hint)
    if choices is not None:
        return (value, None) if value in choices else (value, f"is {value!r}; expected {type_name(hint)}")
    if get_origin(hint) is abc.Mapping:
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return (dict(value), None) if named else (value, f"is {value!r}; expected a mapping of names to values")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return value, f"is {value!r}; expected {type_name(hint)}"
    return value, _out_of_range(value, f)


def _out_of_range(value: Any, f: Field[Any]) -> str | None:
    low, high = f.metadata.get("low"), f.metadata.get("high")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"is {value}; expected a finite number"
    too_low = low is not None and (value <= low if f.metadata.get("open_low") else value < low)
    if too_low or (high is not None and value > high):
        left = "(" if f.metadata.get("open_low") or low is None else "["
        return f"is {value}; allowed: {left}{'-inf' if low is None else low}, {'inf' if high is None else high}]"
    return None
