"""suite.yaml -> a frozen Suite. Every problem of the file is reported at once, each at its line and column.

What a method, builder or trainer takes is declared in the engine's tables (METHODS, BUILDERS, MEASURES, TRAINERS) and
only there; this file knows the keys of a suite itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.kinship import DEFAULT, MEASURES
from fusion.params import did_you_mean
from harness.candidates import Candidates
from harness.errors import UsageError
from harness.evaluated import read_groups, read_published
from harness.order import parents_first
from harness.pocket import CORPORA, TRAINERS
from harness.problems import NAME, Problems
from harness.sandbox import LEVELS
from harness.spec import CHAT, Model, Source, Suite, Trained
from harness.store import digest_of
from harness.yamlfile import Document, Key
from suites import shipped

KEYS = {
    "suite": "the suite's name: letters, digits, '-', '_' and '.'",
    "seed": "the seed of everything random (default 0)",
    "models": "the models to compare: given (`from:`) or trained by the suite (`train:`)",
    "candidates": "the models to build from them: {method: ..., models: [...]}",
    "evaluate": "groups of tasks: {group: {tasks: [...], limit: N, samples: N, ...}}; or {bits_per_byte: text}",
    "published": "what papers report, shown beside: {name: {source: paper, scores: {group: {value: share}}}}",
    "split": "{dev: share}: sweeps are chosen on dev items, the leaderboard reports the others",
    "kinship": "{base: model, measures: [...], texts: corpus}",
    "track": "{mlflow: sqlite | off | a tracking URI}",
    "keep": "whose merged weights are written to the store: none, best or all",
    "sandbox": f"the least isolation of generated programs: any | {' | '.join(LEVELS)} (default: any but the first)",
    "data": "local data of the tasks: a folder (bbh/NAME.jsonl, ...), {task: file} or {task: {split: file}}",
    "trust_task_code": "true allows task files that bring Python code (`!function`)",
    "chat": "auto: chat templates where every model has one and none is a base; on, off: always, never",
}
SOURCE_KEYS = ("from", "revision", "dtype", "adapter", "allow_pickle", "chat")
TRAINED_KEYS = ("train", "from", "seed", "chat")
DTYPES = ("float32", "bfloat16", "float16")


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


def load(path: Path, seed: int | None = None, planning: bool = False) -> Suite:
    """Read and check a suite; `seed` stands in for its own. Raises SuiteError with every problem of the file.

    planning: its corpora need not be there yet.
    """
    document = Document(path)
    if seed is not None and isinstance(document.data, dict):
        document.data["seed"] = seed
    reader = _Reader(document.data, path, planning)
    suite = reader.suite()
    if reader.problems.found:
        raise document.error(reader.problems.found)
    assert suite is not None
    return suite


class _Reader:
    """Walks the data once and notes every problem; the Suite is built only where there are none."""

    def __init__(self, data: Any, path: Path, planning: bool) -> None:
        self.data, self.path, self.planning = data, path, planning
        self.problems = Problems()

    def suite(self) -> Suite | None:
        if not isinstance(self.data, dict):
            self.problems.add((), "a suite is a mapping with the keys suite, models, candidates and evaluate")
            return None
        self.problems.known_keys((), self.data, KEYS)
        name = self.name()
        seed = self.problems.typed(("seed",), self.data.get("seed", 0), int, "a whole number")
        given = self.mapping("models", required=True)
        models: dict[str, Model] = {}
        for key, value in given.items():
            self.add_model(models, key, value, given)
        groups = read_groups(self.problems, self.path.parent, self.mapping("evaluate", required=True), self.planning)
        named = [group.name for group in groups]
        number = seed if isinstance(seed, int) else 0
        candidates = Candidates(self.problems, self.path.parent, number, named, self.planning)
        written = self.mapping("candidates", required=False)
        candidates.read(models, written)
        published = read_published(
            self.problems, self.mapping("published", required=False), list(dict.fromkeys((*models, *written)))
        )
        ordered, problems = parents_first(models)
        self.problems.found += problems
        kinship = self.kinship(models)
        settings = {
            "dev_share": self.dev_share(),
            "mlflow": self.mlflow(),
            "keep": self.choice(("keep",), self.data, ("none", "best", "all"), "best"),
            "sandbox": self.choice(("sandbox",), self.data, ("any", *LEVELS), None),
            "chat": self.choice(("chat",), self.data, CHAT, "auto"),
            "data": self.local_data(),
            "trust_task_code": self.problems.typed(
                ("trust_task_code",), self.data.get("trust_task_code", False), bool, "true or false"
            ),
        }
        if self.problems.found:
            return None
        return Suite(
            name=name,
            seed=seed,
            models=ordered,
            groups=groups,
            **kinship,
            published=published,
            path=self.path,
            text=self.path.read_text(encoding="utf-8"),
            digest=digest_of([self.data, [m.origin for m in ordered.values() if isinstance(m, Source)]]),
            **settings,
        )

    # -- models -----------------------------------------------------------------------------------------------------

    def add_model(self, models: dict[str, Model], name: Any, value: Any, given: Mapping[str, Any]) -> None:
        at: Key = ("models", name)
        if not self.problems.good_name(at, name):
            return
        if not isinstance(value, dict) or not ({"from", "train"} & value.keys()):
            self.problems.add(at, f"model '{name}' needs `from:` (a folder or a hub repository) or `train:`")
        elif "train" in value:
            self.add_trained(models, name, value, given)
        else:
            self.problems.known_keys(at, value, SOURCE_KEYS)
            origin = self.problems.typed((*at, "from"), value["from"], str, "a folder or a repository of the hub")
            dtype = value.get("dtype")
            if dtype is not None and dtype not in DTYPES:
                self.problems.add((*at, "dtype"), f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
            if isinstance(origin, str):
                origin = self.adapted(at, origin, value, given)
                revision = value.get("revision")
                if revision is not None:
                    self.problems.typed((*at, "revision"), revision, str, "text: put it in quotes")
                folder = self.resolve_folder((*at, "from"), origin)
                pickled = value.get("allow_pickle", False)
                self.problems.typed((*at, "allow_pickle"), pickled, bool, "true or false")
                chat = self.choice((*at, "chat"), value, CHAT, None)
                models[name] = Source(name, folder, revision, dtype, self.adapter(at, value), bool(pickled), chat)

    def adapted(self, at: Key, origin: str, value: dict[str, Any], given: Mapping[str, Any]) -> str:
        """The folder that an adapter belongs to, which may be that of another model of this suite."""
        other = given.get(origin)
        if other is None:
            return origin
        if "adapter" not in value or not isinstance(other, dict) or not isinstance(other.get("from"), str):
            hint = "use `train:` to continue it, or `adapter:` for a LoRA on a model that is given"
            self.problems.add((*at, "from"), f"'{origin}' is a model of this suite", hint)
            return origin
        return str(other["from"])

    def adapter(self, at: Key, value: dict[str, Any]) -> str | None:
        """The folder of a LoRA adapter, where the model has one."""
        if "adapter" not in value:
            return None
        path = (self.path.parent / Path(str(value["adapter"])).expanduser()).absolute()
        if not (path / "adapter_config.json").is_file():
            self.problems.add((*at, "adapter"), f"there is no LoRA adapter in {path}", "a folder as peft saves it")
        return str(path)

    def resolve_folder(self, at: Key, origin: str) -> str:
        """An absolute folder where the origin is one; a hub repository stays as it is written."""
        path = (self.path.parent / Path(origin).expanduser()).absolute()
        if path.is_dir():
            return str(path)
        if origin.startswith((".", "/", "~")) or origin.count("/") != 1:
            self.problems.add(at, f"there is no folder {path}", "a hub repository is written owner/name")
        return origin

    def add_trained(self, models: dict[str, Model], name: str, value: dict[str, Any], given: Mapping[str, Any]) -> None:
        at: Key = ("models", name)
        trainer = TRAINERS.get(value["train"]) if isinstance(value["train"], str) else None
        if trainer is None:
            self.problems.add(
                (*at, "train"), f"unknown trainer {value['train']!r}", did_you_mean(str(value["train"]), TRAINERS)
            )
            return
        parent = value.get("from")
        if trainer.parent and parent is None:
            self.problems.add(at, f"{trainer.name} continues a model: add `from:`")
        if not trainer.parent and parent is not None:
            self.problems.add(
                (*at, "from"), f"{trainer.name} starts from nothing: `from:` has no place here", None, True
            )
        if parent is not None:
            self.problems.reference((*at, "from"), parent, list(given))
            parent = str(parent)
        params = self.problems.params(at, trainer.Params, {k: v for k, v in value.items() if k not in TRAINED_KEYS})
        seed = self.problems.typed((*at, "seed"), value.get("seed", self.data.get("seed", 0)), int, "a whole number")
        chat = self.choice((*at, "chat"), value, CHAT, None)
        models[name] = Trained(name, trainer.name, params, parent, seed, chat)

    # -- the rest ---------------------------------------------------------------------------------------------------

    def name(self) -> str:
        name = self.data.get("suite")
        if not isinstance(name, str) or not NAME.match(name):
            self.problems.add(("suite",), "`suite:` names the suite: letters, digits, '-', '_' and '.'")
        return str(name)

    def dev_share(self) -> float:
        split = self.data.get("split", {"dev": 0.0})
        share = split.get("dev") if isinstance(split, dict) and set(split) == {"dev"} else None
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            self.problems.add(("split",), "split is {dev: share}, with a share from 0 to below 1")
            return 0.0
        return float(share)

    def kinship(self, models: Mapping[str, Model]) -> dict[str, Any]:
        value = self.mapping("kinship", required=False)
        self.problems.known_keys(("kinship",), value, ("base", "measures", "texts"))
        base, measures, texts = value.get("base"), value.get("measures", list(DEFAULT)), value.get("texts")
        if base is not None:
            self.problems.reference(("kinship", "base"), base, list(models))
        if texts is not None:
            texts = self.problems.corpus(("kinship", "texts"), texts, self.path.parent, self.planning)
        if not isinstance(measures, list):
            self.problems.add(("kinship", "measures"), "measures is a list")
            measures = []
        for index, measure in enumerate(measures):
            if not isinstance(measure, str) or measure not in MEASURES:
                hint = did_you_mean(str(measure), MEASURES)
                self.problems.add(("kinship", "measures", index), f"unknown measure '{measure}'", hint)
            elif MEASURES[measure].needs == "texts" and texts is None:
                hint = f"texts: a .jsonl file of documents, or {', '.join(CORPORA)}"
                self.problems.add(("kinship", "measures", index), f"{measure} is measured on texts: add `texts:`", hint)
        return {"kinship_base": base, "measures": tuple(map(str, measures)), "kinship_texts": texts}

    def local_data(self) -> str | dict[str, str | dict[str, str]] | None:
        """A folder, or files by task and split, as absolute paths."""
        value = self.data.get("data")
        if isinstance(value, str):
            folder = (self.path.parent / Path(value).expanduser()).absolute()
            if not folder.is_dir():
                self.problems.add(("data",), f"there is no folder {folder}", "files of single tasks are {task: file}")
            return str(folder)
        if value is None:
            return None
        found: dict[str, str | dict[str, str]] = {}
        for task, files in value.items() if isinstance(value, dict) else ():
            at: Key = ("data", task)
            if isinstance(files, dict):
                found[str(task)] = {str(split): self.data_file((*at, split), file) for split, file in files.items()}
            else:
                found[str(task)] = self.data_file(at, files)
        if not found:
            self.problems.add(("data",), f"`data:` is a folder or a mapping: {KEYS['data']}")
        return found

    def data_file(self, at: Key, file: Any) -> str:
        if not isinstance(file, str):
            self.problems.add(at, f"'{at[-1]}' is {file!r}; expected the path of a file")
            return ""
        path = (self.path.parent / Path(file).expanduser()).absolute()
        if not path.is_file():
            self.problems.add(at, f"there is no file {path}")
        return str(path)

    def mlflow(self) -> str | None:
        value = self.mapping("track", required=False)
        self.problems.known_keys(("track",), value, ("mlflow",))
        uri = self.problems.typed(("track", "mlflow"), value.get("mlflow", "off"), str, "sqlite, off or a tracking URI")
        if isinstance(uri, str) and uri not in ("sqlite", "off") and "://" not in uri:
            self.problems.add(("track", "mlflow"), f"mlflow is {uri!r}; expected sqlite, off or a tracking URI")
        return None if uri == "off" else str(uri)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def mapping(self, key: str, *, required: bool) -> dict[Any, Any]:
        value = self.data.get(key)
        if value is None and not required:
            return {}
        if not isinstance(value, dict) or (required and not value):
            self.problems.add((key,), f"`{key}:` is a mapping: {KEYS[key]}")
            return {}
        return value

    def choice(self, at: Key, given: Mapping[str, Any], choices: Sequence[str], default: str | None) -> str | None:
        value = given.get(str(at[-1]), default)
        if value is not None and value not in choices:
            self.problems.add(at, f"'{at[-1]}' is {value!r}; expected {' | '.join(choices)}")
        return None if value is None else str(value)
