"""Text that models are measured on by the bits per byte they need: documents, and what of them is scored.

A document is `{"text": ...}`, scored as a whole, or `{"prompt": ..., "answer": ...}`, of which the answer is scored,
given the prompt. Nothing here knows lm-eval or a model.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import TaskError
from harness.tasks import rows

POCKET = "pocket/"


@dataclass(frozen=True)
class Part:
    """What is scored of a document: `text`, given `context` (empty: from the beginning), of so many bytes in UTF-8."""

    context: str
    text: str
    bytes: int


@dataclass(frozen=True)
class Texts:
    """The scored parts of a corpus by doc_id, the hashes of their documents, and where each stands."""

    parts: tuple[Part, ...]
    ids: tuple[str, ...]
    places: tuple[str, ...]


def is_text(source: str) -> bool:
    """Whether a source is a text, and not a task's file."""
    return source.startswith(POCKET) or source.endswith(".jsonl")


def load(source: str) -> Texts:
    """A text from its file or, as pocket/NAME, from its generator; kept in this process until the file changes.

    Raises TaskError, with its line, for a document of another form or without anything to score.
    """
    if source.startswith(POCKET):
        return _load(source, (0, 0))
    try:
        state = Path(source).stat()
    except OSError as error:
        raise TaskError(f"{source}: cannot be read: {error.strerror}") from None
    return _load(source, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=8)
def _load(source: str, signature: tuple[int, int]) -> Texts:
    placed = [(place, _kept(place, row)) for place, row in _rows(source)]
    if not placed:
        raise TaskError(f'{source}: holds no document; expected a line {{"text": ...}} for each')
    parts = tuple(_part(place, document) for place, document in placed)
    return Texts(parts, tuple(_hash(document) for _, document in placed), tuple(place for place, _ in placed))


def _rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if source.startswith(POCKET):
        from harness.pocket import corpus

        # The same documents whatever the suite's seed, as a task has the same items.
        documents: Sequence[Mapping[str, str]] = corpus(source, 0)
        yield from ((f"{source}: document {number}", document) for number, document in enumerate(documents))
    else:
        yield from ((f"{source}:{line}", row) for line, row in rows.of_file(Path(source)))


def _kept(place: str, row: Mapping[str, Any]) -> dict[str, str]:
    keys = ("text",) if "text" in row else ("prompt", "answer")
    if not all(isinstance(row.get(key), str) for key in keys):
        raise TaskError(f'{place}: expected {{"text": ...}} or {{"prompt": ..., "answer": ...}}, each of them text')
    return {key: row[key] for key in keys}


def _part(place: str, document: Mapping[str, str]) -> Part:
    prompt = document.get("prompt", "")
    # The blanks that end a prompt are scored with the answer, as lm-eval has it: tokenizers join them to what follows.
    context = prompt.rstrip()
    last = "text" if "text" in document else "answer"
    text = prompt[len(context) :] + document[last]
    if not document[last]:
        raise TaskError(f"{place}: there is nothing to score: its {last} is empty")
    try:
        size = len(text.encode())
        context.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{place}: is not Unicode text ({error.reason})") from None
    return Part(context, text, size)


def _hash(document: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
