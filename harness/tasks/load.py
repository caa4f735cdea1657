"""Tasks as lm-eval's own objects. Importing this imports torch, datasets and lm-eval when a task is loaded."""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import TaskError
from harness.tasks import filters, rows
from harness.tasks.files import Definition, builtin_folder, read

KINDS = ("likelihood", "generate", "code")
CODE_METRICS = ("code_eval", "pass_at_k", "pass@1")
FEWSHOT_SEED = 1234
"""lm-eval's default."""


class RemoteError(TaskError):
    """Data that are not on this machine and could not be fetched."""


@dataclass(frozen=True)
class Score:
    """One of lm-eval's numbers that is a mean over items: `label` is what the bench calls it."""

    label: str
    metric: str
    filter: str


@dataclass(frozen=True)
class Loaded:
    """A task with its scored items: `docs` in doc_id order, `ids` their hashes; `scores` headline first.

    unanswerable: items whose answer is none of their choices, which every model has wrong.
    """

    definition: Definition
    task: Any
    kind: str
    docs: list[dict[str, Any]]
    ids: tuple[str, ...]
    scores: tuple[Score, ...]
    unanswerable: int

    def begin(self, doc_ids: Sequence[int]) -> None:
        """Before lm-eval builds the prompts of these items, in this order: deal each its own few-shot examples."""
        if isinstance(self.task.__dict__.get("sampler"), _Dealer):
            self.task.sampler.begin(doc_ids)


class _Dealer:
    """Stands in for a task's few-shot sampler: item by item the shots that a run over the whole task would draw.

    lm-eval draws them in sequence, so that a block of items would get other shots than the same items in a full run.
    """

    def __init__(self, task: Any, docs: Sequence[Mapping[str, Any]]) -> None:
        count, own = task.config.num_fewshot, task.fewshot_cfg.split == task.config.test_split
        self.shots = [list(task.sampler.sample(n=count, eval_doc=doc if own else None)) for doc in docs]
        self.waiting: Iterator[int] = iter(())

    def begin(self, doc_ids: Sequence[int]) -> None:
        self.waiting = iter(doc_ids)

    def sample(self, n: int, eval_doc: Any = None) -> list[Any]:
        """lm-eval's call, once an item."""
        return self.shots[next(self.waiting)]


def _deal(definition: Definition, task: Any, docs: Sequence[dict[str, Any]]) -> None:
    """Draw every item's few-shot examples, and see that a prompt can be made of them."""
    count = task.config.num_fewshot
    try:
        task.sampler = _Dealer(task, docs)
        task.sampler.begin([0])
        task.fewshot_context(docs[0], num_fewshot=count)
    except Exception as error:
        raise TaskError(
            f"{definition.place}: no prompt with {count} shots can be made: {type(error).__name__}: {error}"
        ) from None


def load(path: Path, trust: bool = False) -> Loaded:
    """A task from its file, kept in this process until one of its files changes. TaskError for all that is wrong."""
    definition = read(Path(path), trust)
    return _load(definition.path, definition.signature(), trust)


@functools.lru_cache(maxsize=256)
def _load(path: Path, signature: tuple[tuple[str, int, int], ...], trust: bool) -> Loaded:
    definition = read(path, trust)
    kind = _kind(definition)
    _refuse_leaks(definition)
    rows.check(definition, rows.CODE_FIELDS[rows_of(definition)] if kind == "code" else ())
    config = _config(definition, kind)
    with quiet(), contextlib.nullcontext() if definition.remote else _in_memory(config):
        task = _build(definition, config)
        docs = [dict(doc) for doc in task.eval_docs]
    # lm-eval asks for the documents several times a call, and would decode the whole split each time.
    setattr(task, "test_docs" if task.has_test_docs() else "validation_docs", lambda: docs)
    unanswerable = _check_docs(definition, task, docs)
    if task.config.num_fewshot:
        _deal(definition, task, docs)
    ids = tuple(map(doc_hash, docs))
    return Loaded(definition, task, kind, docs, ids, _scores(definition, task, kind), unanswerable)


def doc_hash(doc: Mapping[str, Any]) -> str:
    """The `doc_hash` of lm-eval's sample records."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return str(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)))


def chance(loaded: Loaded) -> float | None:
    """The task's stated chance level, else that of guessing among the choices, else None."""
    stated = (loaded.definition.config.get("metadata") or {}).get("chance")
    if stated is not None:
        return float(stated)
    task = loaded.task
    own_score = task.config.process_results is not None
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_target or task.multiple_input or own_score:
        return None
    return sum(1 / len(loaded.task.doc_to_choice(doc)) for doc in loaded.docs) / len(loaded.docs)


def prompts_digest(loaded: Loaded) -> str:
    """Of every text that the items ask with, in their order: shots, prompt and choices, without a chat template."""
    total = hashlib.sha256()
    loaded.begin(range(len(loaded.docs)))
    with quiet():
        loaded.task.build_all_requests(limit=None, rank=0, world_size=1)
    for instance in loaded.task.instances:
        texts = [text for text in instance.args if isinstance(text, str)]
        total.update(json.dumps([instance.doc_id, *texts]).encode())
    return f"sha256:{total.hexdigest()}"


def revision(loaded: Loaded) -> str | None:
    """The commit of the hub's data set that the items are of; None for local data.

    As the task's metadata say (bigcode's rows are kept as a file), else as `datasets` knows it.
    """
    stated = (loaded.definition.config.get("metadata") or {}).get("revision")
    if stated:
        return str(stated)
    split = getattr(loaded.task, "dataset", {}).get(loaded.definition.eval_split)
    if not loaded.definition.remote or split is None:
        return None
    urls = [*(split.info.download_checksums or ()), *(file["filename"] for file in split.cache_files)]
    found = {match[1] for url in urls if (match := _COMMIT.search(str(url)))}
    return found.pop() if len(found) == 1 else None


_COMMIT = re.compile(r"[@/]([0-9a-f]{40})/")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the progress bars and warnings that lm-eval and its libraries write to stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep `datasets` off the network: it reports even the loading of a local file."""
    places = [importlib.import_module(name) for name in ("datasets.config", "huggingface_hub.constants")]
    before = [place.__dict__["HF_HUB_OFFLINE"] for place in places]
    try:
        for place in places:
            place.__dict__["HF_HUB_OFFLINE"] = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.__dict__["HF_HUB_OFFLINE"] = value


@contextlib.contextmanager
def _in_memory(config: dict[str, Any]) -> Iterator[None]:
    """Load local data without the network and without leaving a converted copy in the user's cache."""
    with offline(), tempfile.TemporaryDirectory(prefix="fuse-bench-data-") as folder:
        if "custom_dataset" not in config:
            config["dataset_kwargs"] = (config.get("dataset_kwargs") or {}) | {
                "cache_dir": folder,
                "keep_in_memory": True,
            }
        yield


def _kind(definition: Definition) -> str:
    config, metadata = definition.config, definition.config.get("metadata") or {}
    output = config.get("output_type", "generate_until")
    kind = metadata.get("kind", "generate" if output == "generate_until" else "likelihood")
    if kind not in KINDS:
        raise TaskError(f"{definition.place}: metadata.kind is '{kind}'; expected {', '.join(KINDS)}")
    if kind == "code" and output != "generate_until":
        raise TaskError(f"{definition.place}: a code task needs 'output_type: generate_until', this has '{output}'")
    named = [entry.get("metric") for entry in config.get("metric_list") or []]
    if kind != "code" and (config.get("unsafe_code") or any(metric in CODE_METRICS for metric in named)):
        raise TaskError(
            f"{definition.place}: the task would run generated programs inside the bench; "
            "with 'metadata: {kind: code}' and rows of prompt, test, entry_point they run in the sandbox"
        )
    return str(kind)


def rows_of(definition: Definition) -> str:
    """What the rows of a code task are like: a key of `rows.CODE_FIELDS`."""
    found = (definition.config.get("metadata") or {}).get("rows", "humaneval")
    if found not in rows.CODE_FIELDS:
        raise TaskError(f"{definition.place}: metadata.rows is '{found}'; expected {', '.join(rows.CODE_FIELDS)}")
    return str(found)


def _refuse_leaks(definition: Definition) -> None:
    """Few-shot examples must not come from the scored items, which lm-eval falls back to."""
    config = definition.config
    shots = config.get("fewshot_config") or {}
    split = config.get("fewshot_split") or shots.get("split")
    if not config.get("num_fewshot") or shots.get("samples"):
        return
    given = split or config.get("training_split") or (config.get("test_split") and config.get("validation_split"))
    if not given or (split == definition.eval_split and split != config.get("test_split")):
        raise TaskError(
            f"{definition.place}: {config['num_fewshot']} shots, but no examples to take them from except the scored "
            "items, which would show their answers: name a 'training_split' with its data file (under `data:`, give "
            "the file of that split, too), or give 'fewshot_config: {samples: [...]}'"
        )


def _config(definition: Definition, kind: str) -> dict[str, Any]:
    """The task's configuration for lm-eval: functions resolved, local data absolute."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = dict(load_yaml(definition.path, resolve_func=True))
    for key in ("dataset_path", "dataset_kwargs"):
        if key in definition.config:
            config[key] = definition.config[key]
    config.pop("counts", None)
    if kind == "code":
        # The sandbox scores it: lm-eval must neither run programs nor fetch metric code.
        config |= {"unsafe_code": False, "metric_list": [_BYPASS], "filter_list": None, "process_results": None}
        config.setdefault("doc_to_target", "")
    return config


_BYPASS = {"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}


def _build(definition: Definition, config: dict[str, Any]) -> Any:
    import jinja2
    from lm_eval.tasks import TaskManager

    filters.register()
    _remember_templates()
    try:
        built = TaskManager(include_defaults=False).load([config])["tasks"]
    except jinja2.UndefinedError as error:
        raise TaskError(
            f"{rows.line_of(definition, 0)}: a template of the task uses a missing field: {error}"
        ) from None
    except Exception as error:
        if isinstance(error, IndexError) and "size 0" in str(error):
            raise TaskError(
                f"{definition.place}: no data: split '{definition.eval_split}' has no rows for it"
            ) from None
        kind = RemoteError if definition.remote else TaskError
        where = "its data cannot be loaded from the hub" if definition.remote else "lm-eval cannot load it"
        raise kind(f"{definition.place}: {where}: {type(error).__name__}: {error}") from error
    (task,) = built.values()
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _remember_templates() -> None:
    """Have lm-eval compile a template once: it does so for every item, which is most of the time that prompts take."""
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.lru_cache(maxsize=1024)(utils.env.from_string)


def _check_docs(definition: Definition, task: Any, docs: list[dict[str, Any]]) -> int:
    """How many items have no right choice. TaskError for the first that cannot be asked and scored.

    Two tasks of BBH have such items (ruin_names, movie_recommendation), so they are refused in a user's own task only.
    """
    if not docs:
        raise TaskError(f"{definition.place}: no data: split '{definition.eval_split}' has no rows")
    unanswerable = 0
    for index, doc in enumerate(docs):
        fault, known = _fault(task, doc), builtin_folder() in definition.origin.parents
        if fault and not (known and _NO_CHOICE in fault):
            raise TaskError(f"{rows.line_of(definition, index)}: task '{definition.name}': {fault}")
        unanswerable += bool(fault)
    return unanswerable


_NO_CHOICE = "which is none of the"


def _fault(task: Any, doc: dict[str, Any]) -> str | None:
    """What keeps an item from being asked and scored, or None."""
    until = (task.config.generation_kwargs or {}).get("until")
    if (task.config.metadata or {}).get("rows") == "multiple" and doc.get("stop_tokens") not in (None, until):
        return f"its stop_tokens are {doc['stop_tokens']!r}, and the task generates until {until!r}"
    try:
        task.doc_to_text(doc)
        target = task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    except Exception as error:
        return f"the row does not fit the templates: {type(error).__name__}: {error}"
    if choices is None or task.OUTPUT_TYPE != "multiple_choice":
        return None
    if not isinstance(choices, list) or len(choices) < 2 or not all(choices):
        return f"doc_to_choice must give two or more texts, it gives {choices!r}"
    for gold in target if isinstance(target, list) else [target]:
        if not task.multiple_input and not _is_choice(gold, choices):
            return f"doc_to_target gives {gold!r}, {_NO_CHOICE} {len(choices)} choices"
    return None


def _is_choice(gold: Any, choices: list[str]) -> bool:
    return gold in choices if isinstance(gold, str) else isinstance(gold, int) and 0 <= gold < len(choices)


def _scores(definition: Definition, task: Any, kind: str) -> tuple[Score, ...]:
    """The headline first: what a suite says counts, else metadata.metric, else acc_norm, else the first that is a mean.

    A metric's name without its filter means that of the first filter.
    """
    chosen = definition.config.get("counts")
    if kind == "code":
        # Of bigcode's tasks some compare texts.
        own = str((definition.config.get("metadata") or {}).get("metric", "pass@1"))
        if chosen not in (None, own):
            raise TaskError(f"task '{definition.name}' has no score '{chosen}' that can count: it has {own}")
        return (Score(own, own, "none"),)
    from lm_eval.api.metrics import mean

    metrics = [name for name, aggregate in task.aggregation().items() if aggregate is mean]
    filters = [ensemble.name for ensemble in task._filters]
    found = [
        Score(metric if len(filters) == 1 else f"{metric},{name}", metric, name)
        for name in filters
        for metric in metrics
    ]
    wanted = chosen or (definition.config.get("metadata") or {}).get("metric")
    first = next((score for score in found if wanted in (score.label, score.metric)), None)
    if wanted is not None and first is None:
        what = f"task '{definition.name}' has no score '{wanted}'" if chosen else f"metadata.metric is '{wanted}'"
        raise TaskError(f"{definition.place}: {what}; it has {', '.join(score.label for score in found)}")
    first = first or next((score for score in found if score.metric == "acc_norm"), None) or next(iter(found), None)
    if first is None or task.higher_is_better().get(first.metric) is False:
        raise TaskError(
            f"{definition.place}: no metric that is a mean over items and higher when better "
            f"(it has {', '.join(task.aggregation())})"
        )
    return (first, *(score for score in found if score != first))
