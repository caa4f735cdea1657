"""The candidates of a suite: what each is made of and by which method, checked against the engine's tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.builders import BUILDERS
from fusion.builders.builder import Role
from fusion.calibration import Collect
from fusion.ensemble import COMBINE, GIVEN
from fusion.methods import METHODS
from fusion.methods.method import Method
from fusion.params import did_you_mean
from fusion.recipe import check_recipe
from harness.expand import expand, start_of, with_controls, with_starts
from harness.problems import Problems
from harness.spec import Candidate, Model
from harness.yamlfile import Key, under

MERGE_KEYS = (
    *("method", "models", "base", "seeds", "control", "allow_unrelated", "tokenizer"),
    *("corpora", "calibration", "route"),
)
CALIBRATION = ("sequences", "context")
FUSION_KEYS = ("method", "seeds", "control")
ENSEMBLE, ENSEMBLE_KEYS = "ensemble", ("method", "models", "combine", "corpora", "control")
KNOWN = (*METHODS, *BUILDERS, ENSEMBLE)
WITHOUT_WEIGHTS = {"ensemble": "an ensemble", "routed": "one model a group"}


class Candidates:
    """Reads the `candidates:` of a suite; every problem goes to `problems`. planning: corpora may be absent yet."""

    def __init__(self, problems: Problems, folder: Path, seed: int, groups: Sequence[str], planning: bool) -> None:
        self.problems, self.folder, self.seed, self.groups = problems, folder, seed, groups
        self.planning = planning

    def read(self, models: dict[str, Model], given: Mapping[str, Any]) -> None:
        """Add the candidates, their sweeps' points and their controls to the models."""
        expanded = []
        for row, value in given.items():
            at: Key = ("candidates", row)
            if not self.problems.good_name(at, row):
                continue
            if row in models:
                hint = "every model and candidate has its own name"
                self.problems.add(at, f"'{row}' is already the name of a model", hint, True)
                continue
            if not isinstance(value, dict) or not isinstance(value.get("method"), str):
                hint = f"known: {', '.join(KNOWN)}"
                self.problems.add(at, f"candidate '{row}' needs `method:`", hint)
                continue
            try:
                expanded += [(at, *point) for point in expand(row, value)]
            except ValueError as error:
                self.problems.add(at, str(error))
        known = [*models, *given, *(name for _, _, name, _, _ in expanded)]
        broken = [row for row, value in given.items() if not self._good_pairs(("candidates", row), value, known)]
        for at, row, name, plain, sweep in expanded:
            if at[1] in broken:
                continue
            candidate = self._candidate(at, plain, known, sweep)
            if candidate is not None:
                models[name] = Candidate(name=name, row=row, sweep=sweep, **candidate)
        self._check_parents(models)
        try:
            models.update(with_starts(models))
            models.update(with_controls(models, given))
        except ValueError as error:
            self.problems.add(("candidates",), str(error))

    def _good_pairs(self, at: Key, value: Any, known: Sequence[str]) -> bool:
        """Whether `pairs:`, where an entry has it, names models that can be merged; said once, not for each pair."""
        names = value.get("pairs") if isinstance(value, dict) else None
        if not isinstance(names, list):
            return True
        if value.get("method") not in METHODS:
            self.problems.add((*at, "pairs"), "`pairs` is for methods that merge", "name the models one by one", True)
            return False
        for index, name in enumerate(names):
            self.problems.reference((*at, "pairs", index), name, known)
        return all(name in known for name in names)

    def _candidate(
        self, at: Key, value: dict[str, Any], known: Sequence[str], sweep: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        method = value["method"]
        if method in METHODS:
            found = self._merge(at, METHODS[method], value, known)
        elif method in BUILDERS:
            found = self._fusion(at, method, value, known, sweep)
        elif method == ENSEMBLE:
            found = self._ensemble(at, value, known)
        else:
            hint = did_you_mean(method, KNOWN)
            self.problems.add((*at, "method"), f"unknown method '{method}'", hint)
            return None
        found["seeds"] = self._seeds(at, value)
        found["control"] = self._control(at, value, known)
        if method in METHODS and not METHODS[method].random and len(found["seeds"]) > 1:
            self.problems.add((*at, "seeds"), f"{method} draws nothing at random: every seed would give the same model")
        return found

    def _merge(self, at: Key, row: Method, value: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
        models, weights, own = self._parents((*at, "models"), value.get("models"), known)
        base = value.get("base")
        if base is not None:
            self.problems.reference((*at, "base"), base, known)
            base = str(base)
        given = {key: part for key, part in value.items() if key not in MERGE_KEYS}
        if row.routed:
            self._not_a_parameter(at, given)
            given["task"] = models[0] if models else ""
        params, problems = check_recipe(row.name, models, weights, base, given, own)
        # Where a model's own parameters are wrong, its name tells more than its position.
        self.problems.found += under(at, problems)
        unrelated = self.problems.typed(
            (*at, "allow_unrelated"), value.get("allow_unrelated", False), bool, "true or false"
        )
        return {
            "method": row.name,
            "kind": "routed" if row.routed else "merged",
            "params": params,
            "models": models,
            "weights": weights,
            "own": own,
            "base": base,
            "merges_base": row.merges_base,
            "allow_unrelated": unrelated,
            "tokenizer": self._tokenizer((*at, "tokenizer"), value.get("tokenizer"), models, base),
            **self._data(at, row, value, models),
            "route": self._route(at, row, value, models),
        }

    def _ensemble(self, at: Key, value: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
        """Models that answer together."""
        self.problems.known_keys(at, value, ENSEMBLE_KEYS)
        models, weights, own = self._parents((*at, "models"), value.get("models"), known)
        combine = value.get("combine", COMBINE[0])
        if combine not in COMBINE:
            hint = did_you_mean(str(combine), COMBINE)
            self.problems.add((*at, "combine"), f"'combine' is {combine!r}; expected {' | '.join(COMBINE)}", hint)
        if models and len(set(models)) < max(2, len(models)):
            self.problems.add((*at, "models"), "an ensemble is of two different models or more")
        if own:
            self.problems.add((*at, "models"), "a model of an ensemble has a weight and nothing else", "{model: 0.7}")
        for name, weight in zip(models, weights or (), strict=False):
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                self.problems.add((*at, "models", name), f"its weight is {weight!r}; expected a number above 0")
        if weights and combine in COMBINE and combine not in GIVEN:
            hint = "give `models` as a list"
            self.problems.add((*at, "models"), f"{combine} finds each item's weights itself", hint)
        corpora: tuple[str, ...] = ()
        if combine == "routed":
            corpora = self._corpora(at, f"{ENSEMBLE} {combine}", value.get("corpora"), models)
        elif "corpora" in value:
            self.problems.add((*at, "corpora"), f"{combine} reads no data", "remove 'corpora'", True)
        return {
            "method": ENSEMBLE,
            "kind": ENSEMBLE,
            "params": {"combine": combine},
            "models": models,
            "weights": weights,
            "corpora": corpora,
        }

    def _check_parents(self, models: Mapping[str, Model]) -> None:
        """Nothing is merged, trained or combined of a model that has no weights of its own."""
        bare = {name: m.kind for name, m in models.items() if isinstance(m, Candidate) and m.kind in WITHOUT_WEIGHTS}
        for model in (m for m in models.values() if isinstance(m, Candidate)):
            for name in dict.fromkeys((*model.parents, model.base)):
                if name in bare:
                    text = f"'{name}' is {WITHOUT_WEIGHTS[bare[name]]}: it has no weights to make a candidate of"
                    self.problems.add(("candidates", model.row.partition("[")[0]), text, "name one of its models")

    def _tokenizer(self, at: Key, given: Any, models: Sequence[str], base: str | None) -> str | None:
        """Whose tokens the result has: all of them, the base's, or a parent's."""
        known = ["union", *models, *(["base", base] if base else [])]
        if given is not None and given not in known:
            self.problems.add(at, f"'tokenizer' is {given!r}; expected {', '.join(known)}")
            return None
        return None if given is None else str(given)

    def _not_a_parameter(self, at: Key, given: Mapping[str, Any]) -> None:
        if "task" in given:
            self.problems.add((*at, "task"), "`task` is set by the route", "route: {group: model}", True)

    def _data(self, at: Key, row: Method, value: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
        """The text of each parent's own domain, for a method that is guided by data."""
        corpora, calibration = value.get("corpora"), value.get("calibration", {})
        if row.statistics is None:
            for key in ("corpora", "calibration"):
                if key in value:
                    self.problems.add((*at, key), f"{row.name} reads no data", f"remove '{key}'", True)
            return {"corpora": (), "calibration": {}}
        found = self._corpora(at, row.name, corpora, models)
        if not isinstance(corpora, dict):
            return {"corpora": (), "calibration": {}}
        if not isinstance(calibration, dict):
            self.problems.add((*at, "calibration"), "calibration is a mapping", "{sequences: N, context: N}")
            calibration = {}
        self.problems.known_keys((*at, "calibration"), calibration, CALIBRATION)
        filled = self.problems.params((*at, "calibration"), Collect, calibration)
        return {"corpora": found, "calibration": {key: filled.get(key) for key in CALIBRATION}}

    def _corpora(self, at: Key, who: str, corpora: Any, models: Sequence[str]) -> tuple[str, ...]:
        """A text of each model's own domain, in the models' order."""
        if not isinstance(corpora, dict):
            self.problems.add(at, f"{who} needs `corpora:`", "{model: corpus} for each model, of its own domain")
            return ()
        for name in corpora:
            if name not in models:
                hint = did_you_mean(str(name), models)
                self.problems.add((*at, "corpora", name), f"'{name}' is not merged here", hint, True)
        lost = [name for name in models if name not in corpora]
        for name in lost:
            self.problems.add((*at, "corpora"), f"there is no corpus for '{name}'")
        return tuple(self._corpus((*at, "corpora", name), corpora[name]) for name in models if name not in lost)

    def _route(self, at: Key, row: Method, value: dict[str, Any], models: Sequence[str]) -> dict[str, str]:
        """Which parent each group of tasks is answered as, of a model that is told which group it answers."""
        route = value.get("route")
        if not row.routed:
            if route is not None:
                self.problems.add((*at, "route"), f"{row.name} makes one model for all groups", "remove 'route'", True)
            return {}
        if not isinstance(route, dict):
            self.problems.add(at, f"{row.name} needs `route:`", f"{{group: model}} for {', '.join(self.groups)}")
            return {}
        for group, name in route.items():
            if group not in self.groups:
                hint = did_you_mean(str(group), self.groups)
                self.problems.add((*at, "route", group), f"there is no group '{group}'", hint, True)
            if name not in models:
                hint = did_you_mean(str(name), models)
                self.problems.add((*at, "route", group), f"'{name}' is not merged here", hint)
        for group in self.groups:
            if group not in route:
                self.problems.add((*at, "route"), f"no model is named for group '{group}'")
        return {str(group): str(name) for group, name in route.items()}

    def _fusion(
        self, at: Key, method: str, value: dict[str, Any], known: Sequence[str], sweep: Mapping[str, Any]
    ) -> dict[str, Any]:
        builder = BUILDERS[method]
        roles = {role.name: self._role((*at, role.name), role, value, known) for role in builder.roles}
        own = {key: part for key, part in value.items() if key not in (*roles, *FUSION_KEYS)}
        teachers = roles.get("teachers") or ()
        return {
            "method": method,
            "kind": builder.kind,
            "params": self.problems.training(at, builder, own, len(teachers), self.folder),
            "models": teachers,
            "target": roles.get("target") or start_of(str(at[1]), sweep),
            "corpora": roles.get("corpora") or ((roles["corpus"],) if roles.get("corpus") else ()),
        }

    def _role(self, at: Key, role: Role, value: dict[str, Any], known: Sequence[str]) -> Any:
        """Who plays a part of a fusion: a model's name, several, a corpus, or several."""
        given = value.get(role.name)
        if given is None:
            if role.default is None:
                self.problems.add(at[:-1], f"{value['method']} needs `{role.name}:`")
            return None
        if role.many and not (isinstance(given, list) and given):
            self.problems.add(at, f"'{role.name}' is a list of {'models' if role.kind == 'model' else 'corpora'}")
            return None
        if role.kind == "corpus":
            texts = [self._corpus((*at, i), one) for i, one in enumerate(given)] if role.many else []
            return tuple(texts) if role.many else self._corpus(at, given)
        if role.many:
            return self._parents(at, given, known)[0]
        self.problems.reference(at, given, known)
        return str(given)

    def _control(self, at: Key, value: dict[str, Any], known: Sequence[str]) -> str | None:
        """The model to be beaten that the suite names; a fusion's own control is made later (`with_controls`)."""
        given = value.get("control")
        if given is None or (given == "none" and value["method"] in BUILDERS):
            return None
        self.problems.reference((*at, "control"), given, known)
        return str(given)

    def _corpus(self, at: Key, corpus: Any) -> str:
        return self.problems.corpus(at, corpus, self.folder, self.planning)

    def _parents(
        self, at: Key, value: Any, known: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[Any, ...] | None, tuple[Mapping[str, Any], ...]]:
        """Names, their weights and their own parameters: a list, {model: weight}, or {model: {weight, ...}}."""
        if not isinstance(value, list | dict) or not value:
            self.problems.add(at, f"'{at[-1]}' is a list of models, or a mapping of models to weights")
            return (), None, ()
        for index, name in enumerate(value):
            self.problems.reference((*at, name if isinstance(value, dict) else index), name, known)
        names = tuple(str(name) for name in value)
        if isinstance(value, list):
            return names, None, ()
        parts = [part if isinstance(part, dict) else {"weight": part} for part in value.values()]
        weights = tuple(part.get("weight", 1.0) for part in parts) if any("weight" in part for part in parts) else None
        own = tuple({key: part[key] for key in part if key != "weight"} for part in parts)
        return names, weights, own if any(own) else ()

    def _seeds(self, at: Key, value: dict[str, Any]) -> tuple[int, ...]:
        seeds = value.get("seeds", [self.seed])
        good = isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)
        if not good or len(set(seeds)) != len(seeds):
            self.problems.add((*at, "seeds"), "seeds is a list of different whole numbers from 0")
            return (self.seed,)
        return tuple(seeds)
