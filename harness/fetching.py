"""The verb `fetch`: a suite's models and data sets brought to this machine, so that it runs later without a network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import FusionError
from harness import facts
from harness.errors import FuseBenchError
from harness.spec import Candidate, Source, Suite
from harness.store import Store
from harness.suite import load


@dataclass(frozen=True)
class Fetched:
    """A model, tasks or a corpus that a suite needs; `here` says what is here of it, `error` why nothing is."""

    kind: str
    name: str
    here: str = ""
    error: str = ""


def fetch(path: Path, root: Path) -> list[Fetched]:
    """Bring all that a suite names, one thing after another; what cannot be had does not keep the rest away.

    root: the store's folder, where models' digests and descriptions of tasks are kept, too. Raises SuiteError.
    """
    suite, store = load(path, planning=True), Store(root)
    return [*_models(suite, store), *_tasks(suite, store), *_corpora(suite)]


def _models(suite: Suite, store: Store) -> Iterator[Fetched]:
    for source in (model for model in suite.models.values() if isinstance(model, Source)):
        try:
            found = facts.folder_of(source, store)
        except (FuseBenchError, FusionError) as error:
            yield Fetched("model", source.name, error=str(error))
        else:
            yield Fetched("model", source.name, f"{source.origin}, {found.bytes / 1e9:.2f} GB in {found.path}")


def _tasks(suite: Suite, store: Store) -> Iterator[Fetched]:
    for group in (group for group in suite.groups if group.text is None):
        for name in group.tasks:
            try:
                tasks = facts.tasks_of(suite, group, store, [name])
            except (FuseBenchError, FusionError) as error:
                yield Fetched("tasks", name, error=str(error))
            else:
                items = sum(len(task.items) for task in tasks.values())
                yield Fetched("tasks", name, f"{len(tasks)} task{'s' * (len(tasks) > 1)}, {items} items")


def _corpora(suite: Suite) -> Iterator[Fetched]:
    named = [corpus for model in suite.models.values() if isinstance(model, Candidate) for corpus in model.corpora]
    texts = [suite.kinship_texts, *(group.text for group in suite.groups)]
    for corpus in dict.fromkeys([*named, *(text for text in texts if text)]):
        if not corpus.startswith("pocket/"):
            here = Path(corpus).is_file()
            yield Fetched("corpus", corpus, "here" if here else "", "" if here else "is yours to make")


def as_json(found: Sequence[Fetched]) -> dict[str, Any]:
    """{"fetched": [{"kind", "name", "here" or "error"}], "complete"}."""
    rows: list[Mapping[str, str]] = [
        {"kind": one.kind, "name": one.name, **({"error": one.error} if one.error else {"here": one.here})}
        for one in found
    ]
    return {"fetched": rows, "complete": not any(one.error for one in found)}


def words(found: Sequence[Fetched]) -> str:
    """A line for each, what is missing last, and how to go on without a network."""
    lines = [f"{one.kind:<7}{one.name}: {one.here}" for one in found if not one.error]
    lines += [f"missing  {one.kind} {one.name}: {one.error}" for one in found if one.error]
    if not any(one.error for one in found):
        from huggingface_hub.constants import HF_HUB_CACHE

        lines += [
            "",
            f"All is here. For a machine without a network, copy {Path(HF_HUB_CACHE).parent} and the store there, and",
            "set HF_HOME to the copy and HF_HUB_OFFLINE=1 before `fuse-bench run`.",
        ]
    return "\n".join(lines)
