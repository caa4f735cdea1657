"""Documents that stay in their files: the lines of a JSON Lines file as a sequence, and several such as one."""

import bisect
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import BinaryIO, overload

from fusion.corpus import Document
from fusion.errors import TrainingError


class JsonLines(Sequence[Document]):
    """The documents of a file, read when they are asked for; a slice of them is a list.

    Raises TrainingError as `read_jsonl` says, and when the file is no longer the one that was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading() as file:
            self._stamp = _stamp(file)
            self._starts = _offsets(file, path)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        numbers = range(len(self))[index]
        with self._reading() as file:
            if isinstance(numbers, int):
                return self._document(file, numbers)
            return [self._document(file, number) for number in numbers]

    def __iter__(self) -> Iterator[Document]:
        with self._reading() as file:
            for number in range(len(self)):
                yield self._document(file, number)

    def _reading(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise TrainingError(f"corpus {self.path}: cannot be read ({error.strerror})") from error

    def _document(self, file: BinaryIO, number: int) -> Document:
        if _stamp(file) != self._stamp:
            raise TrainingError(f"corpus {self.path}: has changed since it was opened; start again")
        start, end = self._starts[number], self._starts[number + 1]
        file.seek(start)
        return _parse(file.read(end - start).decode().strip(), f"{self.path}, document {number + 1}")


def _stamp(file: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def _offsets(file: BinaryIO, path: Path) -> "array[int]":
    """Where each document begins, and the end of the file. What lies between two documents is blank."""
    starts, at = array("q"), 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise TrainingError(f"corpus {path}: is not UTF-8 (byte {at + error.start})") from error
        if text:
            _parse(text, f"{path}:{number}")
            starts.append(at)
        at += len(line)
    if not starts:
        raise TrainingError(f'corpus {path}: holds no document; expected a line {{"text": ...}} for each')
    starts.append(at)
    return starts


class Joined(Sequence[Document]):
    """The documents of several corpora after each other; a slice of them is a list."""

    def __init__(self, corpora: Sequence[Sequence[Document]]) -> None:
        self.corpora = corpora
        self._starts = list(accumulate(map(len, corpora), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        numbers = range(len(self))[index]
        if not isinstance(numbers, int):
            return [self[number] for number in numbers]
        at = bisect.bisect_right(self._starts, numbers) - 1
        return self.corpora[at][numbers - self._starts[at]]

    def __iter__(self) -> Iterator[Document]:
        return chain.from_iterable(self.corpora)


def read_jsonl(path: Path) -> Sequence[Document]:
    """Documents of a JSON Lines file, one a line; blank lines are skipped.

    All lines are checked here; only where they begin is kept. Raises TrainingError for a file that is missing or empty
    and, with its line, for a document of another form.
    """
    return JsonLines(path)


def _parse(line: str, where: str) -> Document:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainingError(f"{where}: is not JSON ({error.msg})") from error
    keys = set(document) if isinstance(document, dict) else set()
    if not (keys >= {"text"} or keys >= {"prompt", "answer"}):
        raise TrainingError(f'{where}: expected {{"text": ...}} or {{"prompt": ..., "answer": ...}}')
    kept = ("text",) if "text" in keys else ("prompt", "answer")
    if not all(isinstance(document[key], str) for key in kept):
        raise TrainingError(f"{where}: {' and '.join(kept)} must be text")
    try:
        "".join(document[key] for key in kept).encode()
    except UnicodeEncodeError as error:
        raise TrainingError(
            f"{where}: holds half a character ({error.object[error.start]!r}), as cut text does"
        ) from error
    return {key: document[key] for key in kept}
