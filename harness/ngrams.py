"""Words in a row that items share with texts: what two of them have in common though their formats differ.

    items = [Item("Who wrote it? Ada", ((words_of("Who wrote it?"), words_of("Ada")),)), ...]    # of one task
    index = look_for([items, ...])
    search(index, texts)     # {number of an item: where it was found first}

The rule is told in `overlap.py`. Texts are read once, and only the items' words and hashes of their words in a row are
held. What a hash finds is compared word by word, so that chance never makes an item overlap.
"""

import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

N = 13
LEAST = 8
TEMPLATE_SHARE, TEMPLATE_ITEMS = 0.1, 3
# Words that are searched at once; texts are never cut.
BLOCK = 1 << 17
# A hash is sum(value of word i * BASE**i) modulo 2**64; odd numbers have the inverse that moves a stretch to i = 0.
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 2**64)
# What is left of a hash after this shift says first whether an entry may have it.
SHIFT = 64 - 24

Words = tuple[str, ...]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Entries = np.ndarray[Any, np.dtype[np.void]]
ENTRY = np.dtype([(name, np.int64) for name in ("at", "length", "item", "text")] + [("hash", np.uint64)])
"""`length` words from `at` on in a row of words, whose item they are, and which of its task's texts that item has."""

Span = tuple[int, int, int, int, int]
"""As many entries: (at of the first, how many, length, item, text)."""


@dataclass(frozen=True)
class Item:
    """An item's text, by which it differs from others, and its words: a question and a right answer, or several."""

    text: str
    asked: tuple[tuple[Words, Words], ...]


@dataclass(frozen=True)
class Shared:
    """Words in a row that an item shares with a text; texts are numbered from 1."""

    words: str
    document: int


@dataclass(frozen=True)
class Index:
    """What is looked for: entries sorted by hash. Items are numbered on from task to task.

    `short`: items with fewer than N words of their own. `judged`: those that have entries. Words are numbered from 1,
    and 0 is any other word; values[number] is what it counts in a hash. row: the numbers of all items' words, where
    entries have their places. likely[hash >> SHIFT]: whether an entry may have such a hash.
    """

    short: frozenset[int]
    judged: frozenset[int]
    numbers: Mapping[str, int]
    values: Hashes
    row: Ints
    entries: Entries
    likely: NDArray[np.bool_]


class _Letters(dict[int, int | None]):
    """For str.translate: keeps letters, marks, numbers and white space."""

    def __missing__(self, point: int) -> int | None:
        kept = chr(point).isspace() or unicodedata.category(chr(point))[0] in "LMN"
        self[point] = point if kept else None
        return self[point]


_LETTERS = _Letters()


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS).split()


def look_for(tasks: Iterable[Sequence[Item]]) -> Index:
    """The index of the items of tasks."""
    numbers: dict[str, int] = {}
    row = array("i")
    short: set[int] = set()
    spans: list[list[Span]] = []
    first = 0
    for items in tasks:
        spans.append(list(_spans(items, first, numbers, row, short)))
        first += len(items)
    values = np.random.default_rng(N).integers(2**64, size=len(numbers) + 1, dtype=np.uint64)
    numbered = np.array(row, np.int64)
    stretches = _Stretches(values[numbered])
    entries = np.concatenate([np.empty(0, ENTRY), *(_without_template(_entries(one, stretches)) for one in spans)])
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    likely = np.zeros(2**64 >> SHIFT, bool)
    likely[entries["hash"] >> np.uint64(SHIFT)] = True
    judged = frozenset(np.unique(entries["item"]).tolist())
    return Index(frozenset(short), judged, numbers, values, numbered, entries, likely)


def search(index: Index, texts: Iterable[str]) -> dict[int, Shared]:
    """Where each item that is found stands first, by its number; in the order of the texts."""
    lengths = np.unique(index.entries["length"]).tolist()
    entries = index.entries
    found: dict[int, Shared] = {}
    for words, starts, before in _blocks(texts):
        known = len(found)
        row = np.fromiter(map(index.numbers.get, words, repeat(0)), np.int64, len(words))
        for at, entry in _candidates(index, entries, row, lengths):
            start, length, item = (int(entries[name][entry]) for name in ("at", "length", "item"))
            if item not in found and np.array_equal(row[at : at + length], index.row[start : start + length]):
                found[item] = Shared(" ".join(words[at : at + length]), before + bisect_right(starts, at))
        if len(found) > known:
            entries = entries[~np.isin(entries["item"], list(found))]
    return found


# -------------------------------------------------------------------------------------------------- what is looked for


def _spans(
    items: Sequence[Item], first: int, numbers: dict[str, int], row: "array[int]", short: set[int]
) -> Iterator[Span]:
    """What is looked for of a task's items; their words go to the row."""
    begin, end = _frame({question for item in items for question, _ in item.asked})
    texts: dict[str, int] = {}
    for number, item in enumerate(items, first):
        text = texts.setdefault(item.text, len(texts))
        short.add(number)
        for question, answer in item.asked:
            own = (*question[begin : len(question) - end], *answer)
            if len(own) >= N:
                short.discard(number)
            for words, length in _counted((*question, *answer), own):
                yield len(row), len(words) - length + 1, length, number, text
                row.extend(numbers.setdefault(word, len(numbers) + 1) for word in words)


def _counted(whole: Words, own: Words) -> Iterator[tuple[Words, int]]:
    """An item's words with and without its task's beginning and end, and how many of them in a row count."""
    if whole:
        yield whole, N if len(own) >= N else len(whole)
    if own != whole and len(own) >= LEAST:
        yield own, min(N, len(own))


def _frame(questions: set[Words]) -> tuple[int, int]:
    """How many words all questions of a task begin with, and how many they end with."""
    if len(questions) < TEMPLATE_ITEMS:
        return 0, 0
    begin = _common(questions)
    return begin, _common({question[begin:][::-1] for question in questions})


def _common(rows: set[Words]) -> int:
    """How many words all rows begin with: as many as the first and the last of them in sorted order."""
    first, last = min(rows), max(rows)
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))


def _entries(spans: Sequence[Span], stretches: "_Stretches") -> Entries:
    first, count, length, item, text = np.array(spans, np.int64).reshape(-1, 5).T
    entries = np.empty(count.sum(), ENTRY)
    for name, column in (("length", length), ("item", item), ("text", text)):
        entries[name] = np.repeat(column, count)
    entries["at"] = _ranges(first, count)
    entries["hash"] = stretches.hashes(entries["at"], entries["length"])
    return entries


def _without_template(entries: Entries) -> Entries:
    """A task's entries without those that too many of its different texts have."""
    texts = len(np.unique(entries["text"]))
    order = np.lexsort((entries["text"], entries["hash"]))
    hashes, text = entries["hash"][order], entries["text"][order]
    again = (hashes[1:] == hashes[:-1]) & (text[1:] == text[:-1])
    found, count = np.unique(np.r_[hashes[:1], hashes[1:][~again]], return_counts=True)
    template = found[(count >= TEMPLATE_ITEMS) & (count > TEMPLATE_SHARE * texts)]
    kept: Entries = entries[~np.isin(entries["hash"], template)]
    return kept


# ----------------------------------------------------------------------------------------------------------- the search


class _Stretches:
    """Hashes of the stretches of a row of words, given by what each word counts."""

    def __init__(self, values: Hashes) -> None:
        self.sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * _powers(BASE, len(values)), out=self.sums[1:])
        self.back = _powers(INVERSE, len(values))

    def hashes(self, at: Ints, length: Ints | int) -> Hashes:
        """Of `length` words from `at`."""
        found: Hashes = (self.sums[at + length] - self.sums[at]) * self.back[at]
        return found


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _candidates(index: Index, entries: Entries, row: Ints, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(place in the row, entry) of equal hashes: by place, the longest first. `lengths` ascend."""
    stretches = _Stretches(index.values[row])
    places, matches = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    at = np.arange(len(row))
    other = np.where(row == 0, at, len(row))
    known = np.minimum.accumulate(other[::-1])[::-1] - at  # words of items in a row
    for length in lengths:
        at = at[known[at] >= length]
        hashes = stretches.hashes(at, length)
        likely = index.likely[hashes >> np.uint64(SHIFT)]
        first, end = (np.searchsorted(entries["hash"], hashes[likely], side) for side in ("left", "right"))
        places.append(np.repeat(at[likely], end - first))
        matches.append(_ranges(first, end - first))
    place, match = np.concatenate(places), np.concatenate(matches)
    order = np.lexsort((-entries["length"][match], place))
    return zip(place[order].tolist(), match[order].tolist(), strict=True)


def _ranges(first: Ints, count: Ints) -> Ints:
    """first[0], first[0] + 1, ..., `count[0]` of them; then from first[1] on; and so forth."""
    return np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())


def _blocks(texts: Iterable[str]) -> Iterator[tuple[list[str], list[int], int]]:
    """Whole texts as words in a row, where each begins, and how many texts there were before.

    The empty word after a text keeps a stretch from reaching into the next.
    """
    words: list[str] = []
    starts: list[int] = []
    before = 0
    for text in texts:
        starts.append(len(words))
        words += words_of(text)
        words.append("")
        if len(words) >= BLOCK:
            yield words, starts, before
            before += len(starts)
            words, starts = [], []
    yield words, starts, before
