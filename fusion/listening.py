"""The first pass of a fusion: all tokenizers read the corpus side by side, block by block.

Noted are which token of each source is which of the target's (in files, 8 bytes a token and source), and how well each
source knows each document (in memory, some numbers a document).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion import vocabulary
from fusion.align import Alignment, Cut, aligner
from fusion.corpus import Document, Loss, Tokens, encode_blocks, text_of
from fusion.errors import FusionError, RoundTripError
from fusion.teachers import Store
from fusion.vocabulary import Alignments, Compat, Map, Vocabulary

# Rows of a store that are looked at together: bounds the memory.
ROWS = 1 << 16


class Column:
    """Numbers that are written one after another, and then mapped."""

    def __init__(self, path: Path, dtype: Any) -> None:
        # Who still maps a file of this name keeps what it had.
        path.unlink(missing_ok=True)
        self._path, self._dtype, self._file = path, dtype, path.open("wb")

    def append(self, values: np.ndarray) -> None:
        """Write an array's numbers, row by row."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def mapped(self, *row: int) -> np.ndarray:
        """All that was written, read-only, as rows of the given shape."""
        self._file.close()
        return np.asarray(np.memmap(self._path, self._dtype, mode="r")).reshape(-1, *row)


@dataclass(frozen=True)
class Block:
    """Some documents as one tokenizer cuts them: bytes of the text in each token, and whether the loss is about it."""

    tokens: Tokens
    cuts: Sequence[Cut]
    sizes: Int[np.ndarray, " n"]
    counted: Bool[np.ndarray, " n"]

    def by_document(self, values: np.ndarray, where: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " documents"]:
        """Sums of the values at some tokens."""
        document = np.repeat(np.arange(len(self.tokens)), np.diff(self.tokens.starts))
        return np.bincount(document[where], values[where], len(self.tokens)).astype(np.float64)


class Reading:
    """What one tokenizer makes of the corpus. unreadable: documents that it does not give back; reason: the first's."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary.read_vocabulary(tokenizer)
        self.unreadable, self.reason = 0, ""

    def blocks(self, documents: Sequence[Document], loss: Loss) -> Iterator[Block]:
        """The documents, block by block, counting what is unreadable."""
        number = 0
        for some, tokens in encode_blocks(self.tokenizer, documents):
            cuts = []
            for own, document in enumerate(some):
                number += 1
                cuts.append(self._cut(tokens.ids[tokens.starts[own] : tokens.starts[own + 1]], document, number))
            counted = tokens.answer.copy() if loss == "answers" else np.ones(len(tokens.ids), bool)
            counted[tokens.starts[:-1]] = False
            yield Block(tokens, cuts, np.concatenate([self._sizes(cut) for cut in cuts]), counted)

    def _cut(self, ids: Int[np.ndarray, " n"], document: Document, number: int) -> Cut:
        try:
            return Cut(ids, vocabulary.byte_ends(self.vocabulary, ids, text_of(document)))
        except RoundTripError as error:
            self.unreadable += 1
            self.reason = self.reason or f"document {number}: {error}"
            return Cut(ids, None)

    def _sizes(self, cut: Cut) -> Int[np.ndarray, " n"]:
        return self.vocabulary.lengths[cut.ids] if cut.ends is None else np.diff(cut.ends, prepend=0)


class Voice:
    """One source as the target hears it; arrays over documents are filled block by block.

    bits, bytes: over the tokens that the loss is about and that stand for bytes; all_bits, tokens: over all that it is
    about. teaches: documents in which the source can be aligned at all. aligned, boundary: counts of the target's
    tokens that the loss is about. named, lost: of what the source says, the probability that its store names, and of
    that what has no image in the target's vocabulary.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        reading: Reading,
        target: Reading,
        alignment: Alignments,
        compat: Compat | None,
        documents: int,
    ) -> None:
        self.name, self.store, self.reading, self.alignment = name, store, reading, alignment
        own, wanted = reading.vocabulary, target.vocabulary
        self.same = (own.pieces, own.roles) == (wanted.pieces, wanted.roles)
        self.mapping = _identity(own) if self.same else vocabulary.vocabulary_map(own, wanted, alignment, compat)
        # A model may have more outputs than its tokenizer has tokens; those stand for nothing.
        unused = max(0, store.meta["vocabulary"] - len(self.mapping.ids))
        self.images = np.pad(self.mapping.ids, (0, unused), constant_values=-1)
        self._aligner = aligner(alignment, own, wanted, self.mapping, compat)
        self.bits, self.bytes, self.all_bits, self.tokens = np.zeros((4, documents))
        self.teaches = np.zeros(documents, bool)
        self.use = np.zeros(len(own.tokens), np.int64)
        self.aligned = self.boundary = self._first = self._row = 0
        self.named = self.lost = 0.0

    def hear(
        self, own: Block, target: Block
    ) -> tuple[Int[np.ndarray, " target_tokens"], Float[np.ndarray, " target_tokens"]]:
        """For the target's tokens: the source's row in its store, or -1, and its bits per byte there (inf at -1).

        Raises FusionError for a store that has fewer tokens than the text.
        """
        rows = slice(self._row, self._row + len(own.tokens.ids))
        self.check_rows(rows.stop)
        bits = -np.asarray(self.store.true[rows], np.float64) / np.log(2)
        self._measure(own, bits)
        scores = bits / np.maximum(own.sizes, 1)
        found, score = [], []
        for number, (cut, heard) in enumerate(zip(target.cuts, own.cuts, strict=True)):
            alignment = self._align(cut, heard, self._first + number)
            counted = target.counted[target.tokens.starts[number] : target.tokens.starts[number + 1]]
            there = alignment.source >= 0
            self.aligned += int((there & counted).sum())
            self.boundary += int((alignment.boundary & counted).sum())
            at = np.where(there, alignment.source + own.tokens.starts[number], -1)
            found.append(np.where(there, at + self._row, -1))
            score.append(np.where(there, scores[at], np.inf))
        self._first += len(own.cuts)
        self._row = rows.stop
        return np.concatenate(found), np.concatenate(score)

    def check_rows(self, wanted: int | None = None) -> None:
        """Raises FusionError unless the store has at least the wanted rows; without a number, just those heard."""
        have = len(self.store.true)
        if have < (wanted or 0) or (wanted is None and have != self._row):
            raise FusionError(
                f"{self.store.folder}: holds {have} tokens, and the tokenizer of {self.name} cuts the text into "
                "another number; make the store again with this tokenizer and text"
            )

    def _align(self, target: Cut, own: Cut, document: int) -> Alignment:
        if self.same and np.array_equal(target.ids, own.ids):
            self.teaches[document] = True
            every = np.arange(len(own.ids))
            return Alignment(np.where(every > 0, every, -1), every > 0)
        if self.alignment == "bytes" and (target.ends is None or own.ends is None):
            return Alignment(np.full(len(target.ids), -1), np.zeros(len(target.ids), bool))
        self.teaches[document] = True
        return self._aligner(target, own)

    def _measure(self, own: Block, bits: Float[np.ndarray, " n"]) -> None:
        documents = slice(self._first, self._first + len(own.cuts))
        counted, sized = own.counted, own.counted & (own.sizes > 0)
        self.bits[documents] = own.by_document(bits, sized)
        self.bytes[documents] = own.by_document(own.sizes, sized)
        self.all_bits[documents] = own.by_document(bits, counted)
        self.tokens[documents] = own.by_document(np.ones(len(bits)), counted)
        self.use += np.bincount(own.tokens.ids, minlength=len(self.use))
        said = np.flatnonzero(counted) + self._row
        for start in range(0, len(said), ROWS):
            ids, log_probs, _ = self.store.top(said[start : start + ROWS])
            probs = np.exp(log_probs)
            self.named += float(probs.sum())
            self.lost += float(probs[self.images[ids] < 0].sum())


def _identity(own: Vocabulary) -> Map:
    there = np.asarray([piece is not None for piece in own.pieces])
    return Map(np.where(there, np.arange(len(there)), -1), there)
