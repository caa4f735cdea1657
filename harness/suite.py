"""suite.yaml -> a frozen Suite. Every problem of the file is reported at once, each at its line and column.

What a method, builder or trainer takes is declared in the engine's tables (METHODS, BUILDERS, MEASURES, TRAINERS) and
only there; this file knows the keys of a suite itself.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.builders import BUILDERS, Role
from fusion.kinship import MEASURES
from fusion.methods import METHODS
from fusion.params import Problem, did_you_mean, fill
from fusion.recipe import check_recipe
from harness.errors import UsageError
from harness.expand import expand, with_controls
from harness.order import parents_first
from harness.pocket import CORPORA, TRAINERS
from harness.sandbox import LEVELS
from harness.spec import Candidate, Group, Model, Source, Suite, Trained
from harness.store import digest_of
from harness.yamlfile import Document, Key, under
from suites import shipped

KEYS = {
    "suite": "the suite's name: letters, digits, '-', '_' and '.'",
    "seed": "the seed of everything random (default 0)",
    "models": "the models to compare: given (`from:`) or trained by the suite (`train:`)",
    "candidates": "the models to build from them: {method: ..., models: [...]}",
    "evaluate": "groups of tasks: {group: {tasks: [...], limit: N, batch_size: N}}",
    "split": "{dev: share}: sweeps are chosen on dev items, the leaderboard reports the others",
    "kinship": "{base: model, measures: [...]}",
    "track": "{mlflow: sqlite | off | a tracking URI}",
    "keep": "whose merged weights are written to the store: none, best or all",
    "sandbox": f"the least isolation that generated programs are run with: any | {' | '.join(LEVELS)}",
    "trust_task_code": "true allows task files that bring Python code (`!function`)",
}
SOURCE_KEYS, TRAINED_KEYS = ("from", "revision", "dtype"), ("train", "from", "seed")
MERGE_KEYS, GROUP_KEYS = ("method", "models", "base", "seeds"), ("tasks", "limit", "batch_size")
DTYPES = ("float32", "bfloat16", "float16")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


def find(name: str) -> Path:
    """A suite by its path, or by the name of one that is shipped."""
    path, known = Path(name), shipped()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise UsageError(f"there is no suite file {path}; shipped suites: {', '.join(known)}")
    if name not in known:
        raise UsageError(f"there is no suite '{name}'; {did_you_mean(name, known)} (or give the path of a file)")
    return known[name]


def load(path: Path) -> Suite:
    """Read and check a suite. Raises SuiteError with every problem of the file."""
    document = Document(path)
    reader = _Reader(document.data, path)
    suite = reader.suite()
    if reader.problems:
        raise document.error(reader.problems)
    assert suite is not None
    return suite


class _Reader:
    """Walks the data once and notes every problem; the Suite is built only where there are none."""

    def __init__(self, data: Any, path: Path) -> None:
        self.data, self.path = data, path
        self.problems: list[Problem] = []

    def suite(self) -> Suite | None:
        if not isinstance(self.data, dict):
            self.problem((), "a suite is a mapping with the keys suite, models, candidates and evaluate")
            return None
        self.known_keys((), self.data, KEYS)
        name = self.name()
        seed = self.typed(("seed",), self.data.get("seed", 0), int, "a whole number")
        given = self.mapping("models", required=True)
        models: dict[str, Model] = {}
        for key, value in given.items():
            self.add_model(models, key, value, given)
        self.add_candidates(models, seed if isinstance(seed, int) else 0)
        ordered, problems = parents_first(models)
        self.problems += problems
        groups = self.groups()
        kinship_base, measures = self.kinship(models)
        settings = {
            "dev_share": self.dev_share(),
            "mlflow": self.mlflow(),
            "keep": self.choice("keep", ("none", "best", "all"), "best"),
            "sandbox": self.choice("sandbox", ("any", *LEVELS), None),
            "trust_task_code": self.typed(
                ("trust_task_code",), self.data.get("trust_task_code", False), bool, "true or false"
            ),
        }
        if self.problems:
            return None
        return Suite(
            name=name,
            seed=seed,
            models=ordered,
            groups=groups,
            kinship_base=kinship_base,
            measures=measures,
            path=self.path,
            text=self.path.read_text(encoding="utf-8"),
            digest=digest_of([self.data, [m.origin for m in ordered.values() if isinstance(m, Source)]]),
            **settings,
        )

    # -- models -----------------------------------------------------------------------------------------------------

    def add_model(self, models: dict[str, Model], name: Any, value: Any, given: Mapping[str, Any]) -> None:
        at: Key = ("models", name)
        if not self.good_name(at, name):
            return
        if not isinstance(value, dict) or not ({"from", "train"} & value.keys()):
            self.problem(at, f"model '{name}' needs `from:` (a folder or a hub repository) or `train:`")
        elif "train" in value:
            self.add_trained(models, name, value, given)
        else:
            self.known_keys(at, value, SOURCE_KEYS)
            origin = self.typed((*at, "from"), value["from"], str, "a folder or a repository of the hub")
            dtype = value.get("dtype")
            if dtype is not None and dtype not in DTYPES:
                self.problem((*at, "dtype"), f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
            if isinstance(origin, str):
                if origin in given:
                    self.problem((*at, "from"), f"'{origin}' is a model of this suite", "use `train:` to continue it")
                revision = value.get("revision")
                if revision is not None:
                    self.typed((*at, "revision"), revision, str, "text: put it in quotes")
                models[name] = Source(name, self.resolve_folder((*at, "from"), origin), revision, dtype)

    def resolve_folder(self, at: Key, origin: str) -> str:
        """An absolute folder where the origin is one; a hub repository stays as it is written."""
        path = (self.path.parent / Path(origin).expanduser()).absolute()
        if path.is_dir():
            return str(path)
        if origin.startswith((".", "/", "~")) or origin.count("/") != 1:
            self.problem(at, f"there is no folder {path}", "a hub repository is written owner/name")
        return origin

    def add_trained(self, models: dict[str, Model], name: str, value: dict[str, Any], given: Mapping[str, Any]) -> None:
        at: Key = ("models", name)
        trainer = TRAINERS.get(value["train"]) if isinstance(value["train"], str) else None
        if trainer is None:
            self.problem(
                (*at, "train"), f"unknown trainer {value['train']!r}", did_you_mean(str(value["train"]), TRAINERS)
            )
            return
        parent = value.get("from")
        if trainer.parent and parent is None:
            self.problem(at, f"{trainer.name} continues a model: add `from:`")
        if not trainer.parent and parent is not None:
            self.problem((*at, "from"), f"{trainer.name} starts from nothing: `from:` has no place here", None, True)
        if parent is not None:
            self.reference((*at, "from"), parent, list(given))
            parent = str(parent)
        params = self.params(at, trainer.Params, {k: v for k, v in value.items() if k not in TRAINED_KEYS})
        seed = self.typed((*at, "seed"), value.get("seed", self.data.get("seed", 0)), int, "a whole number")
        models[name] = Trained(name, trainer.name, params, parent, seed)

    # -- candidates -------------------------------------------------------------------------------------------------

    def add_candidates(self, models: dict[str, Model], seed: int) -> None:
        given = self.mapping("candidates", required=False)
        expanded = []
        for row, value in given.items():
            at: Key = ("candidates", row)
            if not self.good_name(at, row):
                continue
            if row in models:
                self.problem(
                    at, f"'{row}' is already the name of a model", "every model and candidate has its own name", True
                )
                continue
            if not isinstance(value, dict) or not isinstance(value.get("method"), str):
                self.problem(at, f"candidate '{row}' needs `method:`", f"known: {', '.join([*METHODS, *BUILDERS])}")
                continue
            try:
                expanded += [(row, at, name, plain, sweep) for name, plain, sweep in expand(row, value)]
            except ValueError as error:
                self.problem(at, str(error))
        known = [*models, *given, *(name for _, _, name, _, _ in expanded)]
        for row, at, name, plain, sweep in expanded:
            candidate = self.candidate(at, name, plain, known, seed)
            if candidate is None:
                continue
            models[name] = Candidate(name=name, row=row, sweep=sweep, **candidate)
        try:
            models.update(with_controls(models, given))
        except ValueError as error:
            self.problem(("candidates",), str(error))

    def candidate(
        self, at: Key, name: str, value: dict[str, Any], known: Sequence[str], seed: int
    ) -> dict[str, Any] | None:
        method = value["method"]
        if method in METHODS:
            found = self.merge(at, method, value, known)
        elif method in BUILDERS:
            found = self.fusion(at, method, value, known)
        else:
            self.problem((*at, "method"), f"unknown method '{method}'", did_you_mean(method, [*METHODS, *BUILDERS]))
            return None
        found["seeds"] = self.seeds(at, value, seed)
        if method in METHODS and len(found["seeds"]) > 1:
            self.problem((*at, "seeds"), f"{method} draws nothing at random: every seed would give the same model")
        return found

    def merge(self, at: Key, method: str, value: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
        models, weights = self.model_list((*at, "models"), value.get("models"), known)
        base = value.get("base")
        if base is not None:
            self.reference((*at, "base"), base, known)
            base = str(base)
        own = {key: part for key, part in value.items() if key not in MERGE_KEYS}
        params, problems = check_recipe(method, models, weights, base, own)
        self.problems += under(at, problems)
        found = {"method": method, "kind": "merged", "params": params}
        return {**found, "models": models, "weights": weights, "base": base}

    def fusion(self, at: Key, method: str, value: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
        builder = BUILDERS[method]
        roles = {role.name: self.role((*at, role.name), role, value, known) for role in builder.roles}
        if value.get("control", "clm") not in ("none", "clm"):
            self.problem((*at, "control"), f"control is {value['control']!r}; expected none or clm")
        own = {key: part for key, part in value.items() if key not in (*roles, "method", "seeds", "control")}
        params = self.params(at, builder.Params, own)
        found = {"method": method, "kind": builder.kind, "params": params, "models": roles.get("teachers") or ()}
        return {**found, "target": roles.get("target"), "corpus": roles.get("corpus")}

    def role(self, at: Key, role: Role, value: dict[str, Any], known: Sequence[str]) -> Any:
        """Who plays a part of a fusion: a model's name, several, or a corpus."""
        given = value.get(role.name)
        if given is None:
            self.problem(at[:-1], f"{value['method']} needs `{role.name}:`")
        elif role.kind == "corpus":
            return self.corpus(at, given)
        elif role.many:
            return self.model_list(at, given, known)[0]
        else:
            self.reference(at, given, known)
            return str(given)
        return None

    def corpus(self, at: Key, corpus: Any) -> str:
        if isinstance(corpus, str) and corpus.startswith("pocket/"):
            if corpus not in CORPORA:
                self.problem(at, f"there is no corpus '{corpus}'", did_you_mean(corpus, CORPORA))
            return corpus
        path = (self.path.parent / str(corpus)).absolute()
        if not path.is_file():
            self.problem(at, f"there is no file {path}", "a corpus is a .jsonl file, or pocket/clean, pocket/noisy")
        return str(path)

    def model_list(self, at: Key, value: Any, known: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """Names, and their weights where they were given as a mapping."""
        if isinstance(value, dict):
            weights = [self.typed((*at, name), weight, (int, float), "a number") for name, weight in value.items()]
            names, good = list(value), tuple(float(w) for w in weights if isinstance(w, int | float))
        elif isinstance(value, list) and value:
            names, good = value, None
        else:
            self.problem(at, f"'{at[-1]}' is a list of models, or a mapping of models to weights")
            return (), None
        for index, name in enumerate(names):
            self.reference((*at, name if isinstance(value, dict) else index), name, known)
        return tuple(str(name) for name in names), good

    def reference(self, at: Key, name: Any, known: Sequence[str]) -> None:
        if not isinstance(name, str):
            self.problem(at, f"{name!r} is not the name of a model")
        elif name not in known:
            self.problem(at, f"there is no model or candidate '{name}'", did_you_mean(name, set(known)))

    def seeds(self, at: Key, value: dict[str, Any], seed: int) -> tuple[int, ...]:
        seeds = value.get("seeds", [seed])
        good = isinstance(seeds, list) and seeds and all(type(s) is int for s in seeds)
        if not good or len(set(seeds)) != len(seeds):
            self.problem((*at, "seeds"), "seeds is a list of different whole numbers")
            return (seed,)
        return tuple(seeds)

    # -- the rest ---------------------------------------------------------------------------------------------------

    def name(self) -> str:
        name = self.data.get("suite")
        if not isinstance(name, str) or not NAME.match(name):
            self.problem(("suite",), "`suite:` names the suite: letters, digits, '-', '_' and '.'")
        return str(name)

    def groups(self) -> tuple[Group, ...]:
        found = []
        for name, value in self.mapping("evaluate", required=True).items():
            at: Key = ("evaluate", name)
            if not self.good_name(at, name):
                continue
            if not isinstance(value, dict) or "tasks" not in value:
                self.problem(at, f"group '{name}' needs `tasks:`")
                continue
            self.known_keys(at, value, GROUP_KEYS)
            tasks = [value["tasks"]] if isinstance(value["tasks"], str) else value["tasks"]
            if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
                self.problem((*at, "tasks"), "tasks is a task's name or file, or a list of them")
                continue
            for repeated in sorted({t for t in tasks if tasks.count(t) > 1}):
                self.problem((*at, "tasks"), f"task '{repeated}' is there more than once")
            limit = self.positive((*at, "limit"), value.get("limit"))
            found.append(
                Group(name, tuple(tasks), limit, self.positive((*at, "batch_size"), value.get("batch_size")) or 32)
            )
        return tuple(found)

    def dev_share(self) -> float:
        split = self.data.get("split", {"dev": 0.0})
        share = split.get("dev") if isinstance(split, dict) and set(split) == {"dev"} else None
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            self.problem(("split",), "split is {dev: share}, with a share from 0 to below 1")
            return 0.0
        return float(share)

    def kinship(self, models: Mapping[str, Model]) -> tuple[str | None, tuple[str, ...]]:
        value = self.mapping("kinship", required=False)
        self.known_keys(("kinship",), value, ("base", "measures"))
        base = value.get("base")
        if base is not None:
            self.reference(("kinship", "base"), base, list(models))
        measures = value.get("measures", list(MEASURES))
        if not isinstance(measures, list):
            self.problem(("kinship", "measures"), "measures is a list")
            return base, ()
        for index, measure in enumerate(measures):
            if not isinstance(measure, str) or measure not in MEASURES:
                hint = did_you_mean(str(measure), MEASURES)
                self.problem(("kinship", "measures", index), f"unknown measure '{measure}'", hint)
        return base, tuple(map(str, measures))

    def mlflow(self) -> str | None:
        value = self.mapping("track", required=False)
        self.known_keys(("track",), value, ("mlflow",))
        uri = self.typed(("track", "mlflow"), value.get("mlflow", "off"), str, "sqlite, off or a tracking URI")
        if isinstance(uri, str) and uri not in ("sqlite", "off") and "://" not in uri:
            self.problem(("track", "mlflow"), f"mlflow is {uri!r}; expected sqlite, off or a tracking URI")
        return None if uri == "off" else str(uri)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def problem(self, at: Key, message: str, hint: str | None = None, on_key: bool = False) -> None:
        self.problems.append(Problem(at, message, hint, on_key))

    def known_keys(self, at: Key, value: Mapping[str, Any], known: Sequence[str] | Mapping[str, str]) -> None:
        for key in value:
            if key not in known:
                self.problem((*at, key), f"unknown key '{key}'", did_you_mean(str(key), known), True)

    def mapping(self, key: str, *, required: bool) -> dict[Any, Any]:
        value = self.data.get(key)
        if value is None and not required:
            return {}
        if not isinstance(value, dict) or (required and not value):
            self.problem((key,), f"`{key}:` is a mapping: {KEYS[key]}")
            return {}
        return value

    def good_name(self, at: Key, name: Any) -> bool:
        if isinstance(name, str) and NAME.match(name) and len(name) <= 80:
            return True
        self.problem(at, f"{name!r} is not a name: letters, digits, '-', '_' and '.', at most 80", None, True)
        return False

    def typed(self, at: Key, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.problem(at, f"'{at[-1]}' is {value!r}; expected {expected}")
        return value

    def positive(self, at: Key, value: Any) -> int | None:
        if value is not None and (type(value) is not int or value < 1):
            self.problem(at, f"'{at[-1]}' is {value!r}; expected a whole number from 1")
            return None
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None) -> str | None:
        value = self.data.get(key, default)
        if value is not None and value not in choices:
            self.problem((key,), f"'{key}' is {value!r}; expected {' | '.join(choices)}")
        return None if value is None else str(value)

    def params(self, at: Key, params: type, given: Mapping[str, Any]) -> dict[str, Any]:
        values, problems = fill(params, given)
        self.problems += under(at, problems)
        return values
