"""Which items of a benchmark stand in a text that models are made with: a fusion's corpus, or a merge's.

The rule follows GPT-3 (Brown et al. 2020, appendix C) and lm-eval's decontamination: an item overlaps when 13 words in
a row of it stand in one document.

- Words are what white space separates, in Unicode's normal form (NFKC), without case, and without the characters that
  are no letter, mark or number: `Don't -- "PANIC"!` is `dont panic`. Text without white space is a single word.
- An item is its question, as the task puts it without description and examples, followed by the right answer (of a code
  task, by the `canonical_solution` where the row has one). Each of several right answers counts. So an item overlaps
  where its question alone does, if that is long enough, and one with a short question only together with its answer.
- What all questions of a task begin and end with, such as "Question:" and "Answer:", is no part of the item's own
  words. Items are looked for with it and without it.
- An item with fewer than 13 words of its own is short: it overlaps only where all of its words stand in a row; without
  the task's beginning and end, only if at least 8 words are left (Brown et al.'s least N).
- Words in a row that more than 10 % of a task's different items have, and at least 3 of them, are the task's template
  and count for none. An item that has no others cannot be judged: it is neither overlapping nor known to be clean.
- Where items are put together from a few phrases, others of the same generator share 13 words with them by chance. The
  rule cannot tell; the examples show it.

A corpus is read once and may be larger than memory (`ngrams.py`).
"""

import tempfile
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.corpus import Document, text_of
from fusion.params import did_you_mean
from harness import ngrams
from harness.build import documents as read_corpus
from harness.errors import TaskError, UsageError
from harness.ngrams import Item, N, Shared, words_of
from harness.plan import unique_ids
from harness.pocket import CORPORA
from harness.stats import Scores
from harness.tasks import files, load, sources

EXAMPLES = 3
RULE = (
    "An item overlaps when 13 words in a row of its question and right answer stand in one document, white space, "
    "punctuation and case aside. A short one, with fewer than 13 words of its own, overlaps when all of them stand in "
    "a row. Words in a row that more than 10 % of a task's items share are its template and do not count; an item "
    "with no others is unjudged. The share is of the items that can be judged."
)


@dataclass(frozen=True)
class Overlap:
    """What a corpus has of one task: `found` by item, in the corpus's order. `ids`: all items, as plans name them."""

    ids: tuple[str, ...]
    short: frozenset[str]
    unjudged: frozenset[str]
    found: Mapping[str, Shared]

    @property
    def share(self) -> float | None:
        """Overlapping items among those that can be judged; None where none can."""
        judged = len(self.ids) - len(self.unjudged)
        return len(self.found) / judged if judged else None


def search(sources: Mapping[str, Path], documents: Iterable[Document], trust: bool = False) -> dict[str, Overlap]:
    """What documents have of tasks, given by their files, in one pass over the documents.

    `trust`: tasks may run code of their own (`!function`). Raises TaskError for a task that cannot be scored.
    """
    loaded = {name: load.load(Path(path), trust) for name, path in sources.items()}
    index = ngrams.look_for([[_item(one, doc) for doc in one.docs] for one in loaded.values()])
    found = ngrams.search(index, map(text_of, documents))
    overlaps = {}
    first = 0
    for name, one in loaded.items():
        ids = dict(enumerate(unique_ids(one.ids), first))
        first += len(ids)
        overlaps[name] = Overlap(
            ids=tuple(ids.values()),
            short=frozenset(ids[item] for item in ids.keys() & index.short),
            unjudged=frozenset(ids[item] for item in ids.keys() - index.judged),
            found={ids[item]: shared for item, shared in found.items() if item in ids},
        )
    return overlaps


def contaminated(source: str | Path, documents: Iterable[Document], trust: bool = False) -> frozenset[str]:
    """The items of a task (`source`: its file) that overlap with documents, by their ids in a plan.

    Raises TaskError for a task that cannot be scored.
    """
    return frozenset(search({"": Path(source)}, documents, trust)[""].found)


def clean_scores(
    scores: Scores, ids: Mapping[str, Mapping[str, Sequence[str]]], dirty: Mapping[str, Container[str]]
) -> Scores:
    """The scores of the items that are not `dirty`, by group and task.

    `ids`: the items of `scores`, in their order. `dirty`: every task's overlapping items. A task with no clean item is
    left out, and so is a group with no such task: the mean over what is left of a group is no score of the group.
    """
    kept = {
        group: {task: array[:, [one not in dirty[task] for one in ids[group][task]]] for task, array in tasks.items()}
        for group, tasks in scores.items()
    }
    left = {group: {task: array for task, array in tasks.items() if array.size} for group, tasks in kept.items()}
    return {group: tasks for group, tasks in left.items() if tasks}


def overlap_report(corpus: str, tasks: Sequence[str], folder: Path, seed: int, trust: bool = False) -> dict[str, Any]:
    """How much of each task stands in a corpus, by the tasks' own names, with a few examples of what is shared.

    corpus: `pocket/<name>`, generated from `seed`, or a .jsonl file; it and task files are relative to `folder`.
    Raises UsageError or TrainingError for a corpus that is not there, TaskError for a task that cannot be scored.
    """
    if corpus.startswith("pocket/") and corpus not in CORPORA:
        raise UsageError(f"there is no corpus '{corpus}'; {did_you_mean(corpus, CORPORA)}")
    documents = read_corpus(corpus if corpus in CORPORA else str(folder / Path(corpus).expanduser()), seed)
    with tempfile.TemporaryDirectory(prefix="fuse-bench-") as cache:
        paths: dict[str, Path] = {}
        for path in sources(tasks, folder, Path(cache), trust).values():
            name = files.read(path, trust).name
            if paths.setdefault(name, path) != path:
                raise TaskError(f"two files define task '{name}': {paths[name]} and {path}")
        found = search(paths, documents, trust)
    return {
        "corpus": corpus,
        "documents": len(documents),
        "n": N,
        "rule": RULE,
        "tasks": {name: _row(overlap) for name, overlap in found.items()},
    }


def _row(overlap: Overlap) -> dict[str, Any]:
    examples = list(overlap.found.items())[:EXAMPLES]
    row = {
        "items": len(overlap.ids),
        "short": len(overlap.short),
        "unjudged": len(overlap.unjudged),
        "overlapping": len(overlap.found),
        "overlapping_short": len(overlap.short & overlap.found.keys()),
        "share": overlap.share,
        "examples": [{"item": item, "words": one.words, "document": one.document} for item, one in examples],
    }
    return {key: value for key, value in row.items() if value is not None}


def overlap_words(report: Mapping[str, Any]) -> str:
    """A report for a terminal of 80 columns."""
    tasks = report["tasks"]
    width = min(max(len("task"), *map(len, tasks)), 30)
    columns = ("items", "short", "unjudged", "overlapping", "share")
    lines = [f"{report['corpus']}: {report['documents']} documents", ""]
    lines.append(" ".join([f"{'task':<{width}}", *(f"{column:>{max(7, len(column))}}" for column in columns)]))
    for name, row in tasks.items():
        share = f"{100 * row['share']:.1f} %" if "share" in row else "–"
        cells = [*(str(row[column]) for column in columns[:-1]), share]
        start = f"{name:<{width}}" if len(name) <= width else f"{name}\n{'':<{width}}"
        lines.append(
            " ".join([start, *(f"{c:>{max(7, len(column))}}" for c, column in zip(cells, columns, strict=True))])
        )
    for name, row in tasks.items():
        if row["examples"]:
            lines += ["", name]
        for one in row["examples"]:
            text = f"document {one['document']} has of item {one['item'][:12]}: {one['words']}"
            lines += textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([*lines, "", *textwrap.wrap(report["rule"], 80)])


def _item(loaded: load.Loaded, doc: dict[str, Any]) -> Item:
    question, answers = _asked(loaded, doc)
    asked = tuple((tuple(words_of(question)), tuple(words_of(answer))) for answer in answers)
    return Item("\0".join([question, *answers]), asked)


def _asked(loaded: load.Loaded, doc: dict[str, Any]) -> tuple[str, list[str]]:
    """The question as lm-eval puts it, and every right answer."""
    task = loaded.task
    if loaded.kind == "code":
        return str(task.doc_to_text(doc)), [str(doc.get("canonical_solution") or "")]
    target = task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
    if task.multiple_input:
        # The choices are beginnings, and the target is what follows each of them.
        return choices[task.doc_to_text(doc)], [str(target)]
    right = target if isinstance(target, list) else [target]
    answers = [choices[one] if choices and isinstance(one, int) else str(one) for one in right]
    return str(task.doc_to_text(doc)), answers or [""]
