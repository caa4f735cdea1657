"""The parameters of mergekit's methods: which there are, what they are where a recipe leaves them out, and who wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any, get_type_hints

from fusion.methods.method import Method
from fusion.params import PerModel, Problem, check_weight, did_you_mean, fill, is_varied, yaml_name
from fusion.recipe_yaml import Entry, Key, catches_all, fallback

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
REQUIRED = object()
# A value that was refused already, so that it is not called missing too.
REFUSED = object()


@dataclass(frozen=True)
class Foreign:
    """A method of mergekit's: whether each model needs a weight, its parameters by model and for all, with defaults.

    `base` says what it is there: what task vectors are taken from, the first of the models, or one of them. `unused`
    are parameters that are read there and change nothing.
    """

    base: str
    weight: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ("int8_mask",)


def _vectors(own: Mapping[str, Any], normalize: bool, rescale: bool, unused: tuple[str, ...] = ()) -> Foreign:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return Foreign("vectors", True, own, shared, ("int8_mask", *unused))


DENSITY = {"density": 1.0}
GAMMA = {**DENSITY, "gamma": 0.01}
EPSILON = {**DENSITY, "epsilon": 0.15}
# As mergekit 0.1.5 has them.
FOREIGN = {
    "linear": Foreign("model", True, shared={"normalize": True}),
    "slerp": Foreign("first", shared={"t": REQUIRED}),
    "nuslerp": Foreign("vectors", True, shared={"nuslerp_flatten": True, "nuslerp_row_wise": False}),
    "multislerp": Foreign("vectors", True, shared={"normalize_weights": True, "eps": 1e-8}),
    "karcher": Foreign("model", shared={"max_iter": 10, "tol": 1e-5}),
    "task_arithmetic": _vectors({}, False, False, ("density",)),
    "ties": _vectors(DENSITY, True, False),
    "dare_linear": _vectors(DENSITY, False, True),
    "dare_ties": _vectors(DENSITY, False, True),
    "breadcrumbs": _vectors(GAMMA, False, False),
    "breadcrumbs_ties": _vectors(GAMMA, False, False),
    "della": _vectors(EPSILON, True, True),
    "della_linear": _vectors(EPSILON, False, True),
    "sce": Foreign("vectors", shared={"select_topk": 1.0}),
    "model_stock": Foreign("vectors", shared={"filter_wise": False}),
    "nearswap": Foreign("first", shared={"t": REQUIRED}),
    "arcee_fusion": Foreign("first"),
    "ram": Foreign("vectors", shared={"epsilon": 1e-5}),
    "ramplus_tl": Foreign("vectors", shared={"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}),
    "passthrough": Foreign("model", own={"scale": 1.0}),
}


class Values:
    """What a recipe says of one method's parameters; `problems` grows with what is wrong."""

    def __init__(self, row: Method, foreign: Foreign, problems: list[Problem]) -> None:
        self._row, self._foreign, self._problems = row, foreign, problems
        hints = get_type_hints(row.Params)
        self._hints = {yaml_name(f): hints[f.name] for f in fields(row.Params)}
        self._own = [*(["weight"] if foreign.weight else []), *foreign.own]
        self.known = (*self._own, *foreign.shared, *foreign.unused)

    def level(self, given: Any, key: Key, for_all: bool) -> dict[str, Any]:
        """The checked values of one `parameters:`; for_all: of the recipe or of a slice rather than of a model."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            self._problems.append(Problem(key, f"'parameters' is {given!r}; expected {{name: value}}"))
            return {}
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name in self._foreign.unused:
                continue
            if name in self._own or (for_all and name in self._foreign.shared):
                self._take(found, name, value, (*key, name))
            elif name in self._foreign.shared:
                hint = "write it under the 'parameters' of the recipe or of the slice"
                self._problems.append(Problem((*key, name), f"'{name}' is one for all models", hint, True))
            else:
                allowed = self.known if for_all else (*self._own, *self._foreign.unused)
                hint = did_you_mean(str(name), allowed) or ""
                self._problems.append(Problem((*key, name), f"unknown parameter '{name}'", hint, True))
        return found

    def resolve(
        self, entries: Sequence[Entry], levels: Sequence[Mapping[str, Any]], key: Key
    ) -> tuple[dict[str, Any], list[Entry]]:
        """The method's parameters, and the models with what each has for itself; only without problems all are there.

        A model's own level wins, then `levels` in their order, then mergekit's default; a list of filters that says
        nothing of a tensor leaves it to the next.
        """
        given = {}
        for name, default in self._foreign.shared.items():
            if name in self._hints:
                given[name] = self._one(name, levels, default, key)
        mine: list[dict[str, Any]] = [{} for _ in entries]
        for name, default in self._foreign.own.items():
            values = [self._one(name, [entry.own, *levels], default, entry.key) for entry in entries]
            if name in self._hints and all(value == values[0] for value in values):
                given[name] = values[0] if values else default
            elif name in self._hints and self._hints[name] == PerModel:
                mine = [{**known, name: value} for known, value in zip(mine, values, strict=True)]
            elif name in self._hints:
                hint = "write it once, under the recipe's 'parameters'"
                self._problems.append(Problem(key, f"{self._row.name} takes one '{name}' for all models", hint))
        sound = {name: value for name, value in given.items() if value is not None}
        densities = [given.get("density"), *(one.get("density") for one in mine)]
        if "trim" in self._hints and any(map(is_varied, densities)):
            # mergekit trims each tensor by itself; one cut through all of them has no density for each.
            sound["trim"] = "tensor"
        params, problems = fill(self._row.Params, sound, varied=True)
        if not self._problems:
            self._problems += [replace(problem, key=key) for problem in problems]
        return params, [
            replace(entry, weight=self._weight(entry, levels), own=own)
            for entry, own in zip(entries, mine, strict=True)
        ]

    def _weight(self, entry: Entry, levels: Sequence[Mapping[str, Any]]) -> Any:
        if not self._foreign.weight:
            return None
        return self._one("weight", [entry.own, *levels], REQUIRED, entry.key, f" of '{entry.name}'")

    def _one(self, name: str, levels: Sequence[Mapping[str, Any]], default: Any, key: Key, whose: str = "") -> Any:
        found = [level[name] for level in levels if name in level]
        if REFUSED in found:
            return None
        if default is not REQUIRED:
            return reduce(lambda rest, value: fallback(value, rest), reversed(found), default)
        if not found:
            self._problems.append(Problem(key, f"the parameter '{name}'{whose} is missing", "mergekit has no default"))
            return None
        value = reduce(lambda rest, value: fallback(value, rest), reversed(found))
        if not catches_all(value):
            hint = "end the list with {value: NUMBER}, for all other tensors"
            self._problems.append(Problem(key, f"no filter of '{name}'{whose} is for every tensor", hint))
        return value

    def _take(self, found: dict[str, Any], name: str, value: Any, key: Key) -> None:
        """Put one checked value into `found`."""
        default = {**self._foreign.own, **self._foreign.shared}.get(name)
        value = _typed(value, float if name == "weight" else self._hints.get(name, type(default)))
        hint = None
        if name == "weight":
            value, wrong = check_weight(value)
            faults = [f"'weight' {wrong}"] if wrong else []
        elif name in self._hints:
            values, problems = fill(self._row.Params, {name: value}, varied=True, defaults=False)
            value, faults = values.get(name), [problem.message for problem in problems]
        else:
            faults = [] if value == default else [f"'{name}: {value}' is not supported by {self._row.name}"]
            hint = f"it is computed as with '{name}: {default}'"
        self._problems += [Problem(key, fault, hint) for fault in faults]
        found[name] = REFUSED if faults else value


def _typed(value: Any, hint: Any) -> Any:
    """The value as mergekit's reader takes it: numbers and truths may be texts, also within gradients and filters."""
    if isinstance(value, list):
        return [_typed(part, hint) for part in value]
    if isinstance(value, dict) and "value" in value:
        return {**value, "value": _typed(value["value"], hint)}
    if hint is bool:
        return _truth(value)
    if hint not in (float, int, PerModel):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if hint is int and isinstance(value, float) and value.is_integer() else value


def _truth(value: Any) -> Any:
    if isinstance(value, str):
        return TRUTHS.get(value.lower(), value)
    return bool(value) if value in (0, 1) else value
