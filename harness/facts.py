"""What planning must know of the world: weights' digests, tasks and their items, library versions, the machine."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fusion import chat
from fusion.digests import folder_digests, source_digests
from fusion.ensemble import vocabulary_digest
from fusion.errors import CheckpointError
from fusion.merge import write
from fusion.methods.apply import reshapes
from fusion.modelref import Folder, open_ref
from fusion.tokens import has_tokenizer
from harness import bigcode, hub, pocket, sandbox
from harness.errors import SandboxError, TaskError, UsageError
from harness.programs import LANGUAGES
from harness.spec import Candidate, Group, Source, Suite
from harness.store import Store, file_digest, folder_stamp, write_whole
from harness.tasks import Task, describe, describe_here, describe_text
from harness.tasks.local import Given
from harness.tasks.names import near

LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "numpy", "accelerate", "safetensors")


@dataclass(frozen=True)
class FolderFacts:
    """A given model on disk. `digest` is of weights, config and tokenizer together; `bytes` of its weight files.

    `stamps` are of its files' sizes and times, by folder: a worker sees by them that nothing was changed since.
    `chat`: whether it has a chat template; None where it is not here to be looked at. `vocabulary`: a digest of which
    number each token has, of an ensemble's members; None where that is not known.
    """

    path: str
    digest: str
    bytes: int
    stamps: Mapping[str, str]
    chat: bool | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class Missing:
    """What a run needs first: a model or the data of `count` of the tasks that a name stands for, which it fetches.

    A corpus is the user's to make, and so is what a sandbox needs.
    """

    kind: str
    name: str
    origin: str = ""
    count: int = 1
    of: int = 1

    def __str__(self) -> str:
        if self.kind == "model":
            return f"model '{self.name}' ({self.origin})"
        if self.kind == "corpus":
            return f"corpus {self.name}"
        if self.kind == "sandbox":
            return self.name
        if self.of == 1:
            return f"data of {self.name}"
        return f"data of {self.name} ({self.count if self.count == self.of else f'{self.count} of {self.of}'} tasks)"


@dataclass(frozen=True)
class Facts:
    """All that a plan depends on besides the suite. toolchains: the versions of what programs run by, by language."""

    folders: Mapping[str, FolderFacts]
    tasks: Mapping[str, Task]
    groups: Mapping[str, tuple[str, ...]]
    corpora: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    gpus: tuple[str, ...]
    sandbox: str | None
    missing: tuple[Missing, ...] = ()
    toolchains: Mapping[str, str] = field(default_factory=dict)


def gather(suite: Suite, store: Store, offline: bool = False) -> Facts:
    """Look at the models, tasks and corpora that a suite names, and at this machine.

    offline: nothing is fetched; what is not here is named in `missing`, and left out of the tasks. Raises UsageError,
    TaskError or CheckpointError for what is not there or cannot be used.
    """
    missing: list[Missing] = []
    folders = {}
    members = {n for m in suite.models.values() if isinstance(m, Candidate) and m.kind == "ensemble" for n in m.models}
    for source in (m for m in suite.models.values() if isinstance(m, Source)):
        folder = _folder_here(source, store) if offline else folder_of(source, store)
        if folder is None:
            missing.append(Missing("model", source.name, source.origin))
            folder = FolderFacts(source.origin, f"not here: {source.origin} {source.revision}", 0, {})
        together = folder.chat is not None and source.name in members
        folders[source.name] = replace(folder, vocabulary=_vocabulary(source, folder)) if together else folder
    tasks, groups, absent = _tasks(suite, store, offline)
    missing += absent
    corpora = {}
    named = [c for m in suite.models.values() if isinstance(m, Candidate) for c in m.corpora]
    for corpus in dict.fromkeys([*named, *([suite.kinship_texts] if suite.kinship_texts else [])]):
        if offline and not corpus.startswith("pocket/") and not Path(corpus).is_file():
            missing.append(Missing("corpus", corpus))
            corpora[corpus] = f"not here: {corpus}"
        else:
            corpora[corpus] = _corpus(corpus, suite.seed)
    gpus = visible_gpus()
    level: str | None = None
    toolchains: dict[str, str] = {}
    try:
        level, toolchains = _programs(suite, tasks)
    except SandboxError as error:
        if not offline:
            raise
        missing.append(Missing("sandbox", str(error)))
    return Facts(
        folders,
        tasks,
        groups,
        corpora,
        library_versions(),
        "cuda" if gpus else "cpu",
        gpus,
        level,
        tuple(missing),
        toolchains,
    )


def _programs(suite: Suite, tasks: Mapping[str, Task]) -> tuple[str | None, dict[str, str]]:
    """How programs are isolated (None: there are none), and the version of each language that some are written in.

    Raises SandboxError where some could not be judged: without the level, a language's tools, or right verdicts on its
    canaries.
    """
    languages = {task.language for task in tasks.values() if task.kind == "code" and task.language}
    if not languages:
        return None, {}
    named = {language: LANGUAGES.get(language, language) for language in languages}
    sandbox.check_toolchains(named.values())
    level = sandbox.accepted(suite.sandbox)
    sandbox.check_languages(level, named.values())
    return level, {language: sandbox.languages.version(name) for language, name in named.items()}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that can change a score."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return {**found, "python": ".".join(platform.python_version_tuple()[:2])}


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; torch takes a second to ask."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(n) for n in range(len(lines))) if listed.returncode == 0 else ()


def environment() -> dict[str, Any]:
    """What is written into results.json about the machine and its libraries."""
    return {
        "versions": {**library_versions(), "fuse_bench": version("fuse-bench"), "python": platform.python_version()},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": len(visible_gpus()),
        },
    }


def _tasks(
    suite: Suite, store: Store, offline: bool
) -> tuple[dict[str, Task], dict[str, tuple[str, ...]], list[Missing]]:
    """Tasks by their own names, the names of each group's, and what is not here.

    An lm-eval group stands for all its tasks; a text is the one task of its group, and has the group's name.
    """
    tasks: dict[str, Task] = {}
    groups = {}
    missing: list[Missing] = []
    for group in suite.groups:
        if group.text is not None and offline and group.text.endswith(".jsonl") and not Path(group.text).is_file():
            found = []
            missing.append(Missing("corpus", group.text))
        elif group.text is not None:
            found = [describe_text(group.name, group.text)]
        else:
            about = _about(suite, group, store)
            asked, without = bigcode.resolved(group.tasks, store.root, suite.data, offline)
            here, absent = describe_here(asked, *about) if offline else (describe(asked, *about), {})
            missing += [Missing("tasks", name) for name in without]
            found = list(here.values())
            missing += [Missing("tasks", name, "", *counts) for name, counts in absent.items()]
        for task in found:
            _check_source(task, tasks.setdefault(task.name, task))
        groups[group.name] = tuple(task.name for task in found)
    _check_data(suite, tasks)
    return tasks, groups, missing


def tasks_of(suite: Suite, group: Group, store: Store, asked: Sequence[str]) -> dict[str, Task]:
    """Tasks as a group of a suite asks for them, their data fetched where they are not here. Raises TaskError."""
    return describe(bigcode.resolved(asked, store.root, suite.data)[0], *_about(suite, group, store))


def _about(suite: Suite, group: Group, store: Store) -> tuple[Path, Path, bool, Given, str | None]:
    return suite.folder, store.root / "facts", suite.trust_task_code, suite.data, group.metric


def _check_source(task: Task, other: Task) -> None:
    if task.source == other.source or (task.digest, task.metric) == (other.digest, other.metric):
        return
    if task.metric != other.metric:
        raise TaskError(
            f"task '{task.name}' is in two groups, scored by '{other.metric}' in one and by '{task.metric}' in the "
            "other: give both the same `metric:`; a task's other scores are reported beside it"
        )
    raise TaskError(f"two files define task '{task.name}': {other.source} and {task.source}")


def _check_data(suite: Suite, tasks: Mapping[str, Task]) -> None:
    """Data that are given for a task by name are of a task of the suite; a mistyped name would be fetched instead."""
    given = suite.data if isinstance(suite.data, Mapping) else {}
    for name in given:
        if name.replace(bigcode.PREFIX, "bigcode-") not in tasks:
            raise TaskError(f"`data:` has files of '{name}', which is no task of this suite{near(name, tasks)}")


def folder_of(model: Source, store: Store, local_only: bool = False) -> FolderFacts:
    """A given model on this machine, fetched where it is not here. Raises UsageError or CheckpointError."""
    path = Path(model.origin)
    if not path.is_dir():
        path = hub.download(model, local_only=local_only)
    stamps = {str(folder): folder_stamp(folder) for folder in (path, *([Path(model.adapter)] if model.adapter else []))}
    cache = store.root / "facts" / f"folder-{'-'.join(stamps.values())}.json"
    if cache.is_file():
        known = json.loads(cache.read_text())
    else:
        known = _digests(Folder(str(path), model.adapter, model.pickled))
        write_whole(cache, json.dumps(known))
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    own = model.adapter is not None and has_tokenizer(Path(model.adapter))
    template = chat.read(Path(model.adapter) if model.adapter and own else path)
    return FolderFacts(str(path), known["model"], size, stamps, template is not None)


def _vocabulary(model: Source, facts: FolderFacts) -> str | None:
    own = model.adapter is not None and has_tokenizer(Path(model.adapter))
    return vocabulary_digest(Path(model.adapter) if model.adapter and own else Path(facts.path))


def _folder_here(model: Source, store: Store) -> FolderFacts | None:
    """The same without the hub: None for a repository of which not all is in the hub's cache on this machine."""
    if Path(model.origin).is_dir():
        return folder_of(model, store)
    try:
        return folder_of(model, store, local_only=True)
    except (UsageError, CheckpointError):
        return None


def _digests(ref: Folder) -> dict[str, str]:
    """Who a given model is. One whose config or tokenizer is not its folder's is known as it would be written."""
    source = open_ref(ref)
    if not reshapes(source):
        return source_digests(source)
    with tempfile.TemporaryDirectory(prefix="fuse-bench-") as scratch:
        write(ref, Path(scratch) / "model")
        return folder_digests(Path(scratch) / "model")


def _corpus(corpus: str, seed: int) -> str:
    if corpus.startswith("pocket/"):
        return f"{corpus} version {pocket.VERSION} seed {seed}"
    if not Path(corpus).is_file():
        raise UsageError(f"there is no corpus {corpus}: it is a .jsonl file of documents that you make")
    return file_digest(Path(corpus))
