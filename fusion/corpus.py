"""Text to train on: documents, their tokens, and how they are packed into rows.

A document is `{"text": ...}` or `{"prompt": ..., "answer": ...}`; of the latter the text is prompt followed by answer,
tokenized as one string, as an evaluation harness does with a context and its continuation.

Rows: a row holds `context` tokens. Documents are packed in a seeded order, each into the open row with the least room
that still takes it (best fit), and never split to fit. What a row has left is padding that nothing is learnt from.
Positions start at 0 in every document and attention stays inside the document (`train.py`), so a packed document
costs and teaches exactly what it would in a row of its own.

A corpus may be larger than memory: documents stay in their file until they are asked for, and tokens are written to
files and mapped where a folder is given for them. What is held are some numbers a document, and a row's documents.
"""

import bisect
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fusion.errors import TrainingError

Document = Mapping[str, str]
Loss = Literal["all", "answers"]

# Rows that stay open while packing. More would fill rows no better: with 32, under 2 % of a row is padding.
OPEN_ROWS = 32
DOCUMENTS = 1024  # of a block
AT_ONCE = 128  # documents given to the tokenizer together: what it returns is large


def text_of(document: Document) -> str:
    """The whole text of a document."""
    return document["text"] if "text" in document else document["prompt"] + document["answer"]


def prompt_of(document: Document) -> str:
    """The part of a document that is given rather than learnt under loss "answers"; empty for plain text."""
    return document.get("prompt", "") if "text" not in document else ""


def digest(documents: Sequence[Document]) -> str:
    """`sha256:...` over the documents in their order."""
    total = hashlib.sha256()
    for document in documents:
        total.update(json.dumps(dict(document), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return f"sha256:{total.hexdigest()}"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a corpus, document after document.

    ids [n]: token ids. answer [n]: whether the token ends beyond its document's prompt (an EOS does, and so does every
    token of plain text). Document d owns ids[starts[d]:starts[d + 1]].
    """

    ids: Int[np.ndarray, " n"]
    answer: Bool[np.ndarray, " n"]
    starts: Int[np.ndarray, " documents_and_one"]

    def __len__(self) -> int:
        return len(self.starts) - 1


def encode(tokenizer: Any, documents: Sequence[Document], folder: Path | None = None) -> Tokens:
    """Tokenize documents as the tokenizer does by itself (with a BOS where it adds one), each closed by one EOS.

    With a folder, ids and answer are written to files there and mapped, read-only. Raises TrainingError for a tokenizer
    that has no EOS or is not a fast one, whose offsets are needed.
    """
    blocks = (tokens for _, tokens in encode_blocks(tokenizer, documents))
    if folder is not None:
        return _written(blocks, folder)
    found = list(blocks)
    lengths = [np.diff(tokens.starts) for tokens in found]
    return Tokens(
        np.concatenate([np.zeros(0, np.int32), *(tokens.ids for tokens in found)]),
        np.concatenate([np.zeros(0, bool), *(tokens.answer for tokens in found)]),
        np.concatenate([[0], *lengths]).cumsum(),
    )


def _written(blocks: Iterable[Tokens], folder: Path) -> Tokens:
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [np.zeros(1, np.int64)]
    partial = [folder / "ids.partial", folder / "answer.partial"]
    with partial[0].open("wb") as ids, partial[1].open("wb") as answer:
        for tokens in blocks:
            ids.write(tokens.ids.data)
            answer.write(tokens.answer.data)
            lengths.append(np.diff(tokens.starts))
    # Renamed, because another process may still map what an earlier call wrote.
    files = [file.replace(file.with_suffix(".bin")) for file in partial]
    starts = np.concatenate(lengths).cumsum()
    if not starts[-1]:
        return Tokens(np.zeros(0, np.int32), np.zeros(0, bool), starts)
    mapped = np.memmap(files[0], np.int32, "r"), np.memmap(files[1], np.bool_, "r")
    return Tokens(np.asarray(mapped[0]), np.asarray(mapped[1]), starts)


def encode_blocks(
    tokenizer: Any, documents: Sequence[Document], begin: int = 0
) -> Iterator[tuple[Sequence[Document], Tokens]]:
    """Documents from `begin` on with their tokens, DOCUMENTS at a time; each block's tokens count from 0.

    Raises as `encode` does.
    """
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise TrainingError(f"tokenizer {tokenizer.name_or_path!r}: a fast tokenizer with an EOS token is needed")
    for block in _blocks(documents, DOCUMENTS, begin):
        rows = [row for some in _blocks(block, AT_ONCE) for row in _encoded(tokenizer, some)]
        ids, answer = (np.concatenate(column) for column in zip(*rows, strict=True))
        yield block, Tokens(ids, answer, np.cumsum([0, *(len(row) for row, _ in rows)]))


def _encoded(
    tokenizer: Any, documents: Sequence[Document]
) -> Iterator[tuple[Int[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]]:
    """ids and answer of each document."""
    prompts = [len(prompt_of(document)) for document in documents]
    encoded = tokenizer(
        [text_of(document) for document in documents],
        return_offsets_mapping=any(prompts),  # most of the time and memory, and of no use to plain text
        return_attention_mask=False,
        verbose=False,
    )
    for number, (row, prompt) in enumerate(zip(encoded["input_ids"], prompts, strict=True)):
        ends = [end for _, end in encoded["offset_mapping"][number]] if prompt else [1] * len(row)
        row, ends = _closed(row, ends, tokenizer.eos_token_id)
        yield np.asarray(row, np.int32), np.asarray(ends) > prompt


def _blocks(documents: Sequence[Document], size: int, begin: int = 0) -> Iterator[Sequence[Document]]:
    for start in range(begin, len(documents), size):
        yield documents[start : start + size]


def _closed(ids: list[int], ends: list[int], eos: int) -> tuple[list[int], list[int]]:
    """With exactly one EOS at the end, which ends beyond any prompt."""
    if ids and ids[-1] == eos:
        ids, ends = ids[:-1], ends[:-1]
    return [*ids, eos], [*ends, np.iinfo(np.int64).max]


@dataclass(frozen=True)
class Pieces:
    """Stretches of the corpus that fit a row: tokens start[i] to start[i] + length[i]."""

    start: Int[np.ndarray, " pieces"]
    length: Int[np.ndarray, " pieces"]
    truncated: int  # documents that lost the beginning of their prompt


def cut(tokens: Tokens, context: int, loss: Loss) -> Pieces:
    """Documents as pieces of at most `context` tokens.

    A longer document becomes consecutive pieces that share one token, so that every token but the first is predicted
    once. Under "answers" one that has a prompt keeps its last `context` tokens, the answer and the nearest prompt, or
    what more its answer takes. A document of one token has nothing to predict and is left out.
    """
    first, end = tokens.starts[:-1], tokens.starts[1:]
    truncated = 0
    if loss == "answers" and len(tokens.ids):
        # Every document ends in an answer: its EOS is one.
        answers = np.flatnonzero(tokens.answer)
        answer = np.append(answers, len(tokens.ids))[np.searchsorted(answers, first)]
        kept = np.maximum(first, np.minimum(end - context, answer - 1))
        truncated = int((kept > first).sum())
        first = kept
    pieces = np.maximum(-(-(end - first - 1) // (context - 1)), 0)
    # Of each piece, which one of its document's it is.
    turn = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    start = np.repeat(first, pieces) + turn * (context - 1)
    return Pieces(start, np.minimum(context, np.repeat(end, pieces) - start), truncated)


def pack(length: Int[np.ndarray, " pieces"], context: int, rows: int, seed: int) -> list[list[int]]:
    """The pieces of each of `rows` rows: epoch after epoch, each in an order of its own, drawn from seed and epoch."""
    packed: list[list[int]] = []
    epoch = 0
    while len(packed) < rows:
        rng = np.random.default_rng([seed, epoch])
        filled = _best_fit(rng.permutation(len(length)).tolist(), length.tolist(), context)
        packed += [filled[i] for i in rng.permutation(len(filled)).tolist()]
        epoch += 1
    return packed[:rows]


def pack_once(length: Int[np.ndarray, " pieces"], context: int) -> list[list[int]]:
    """The pieces of each row when every piece is read once, in the corpus's order as far as packing allows."""
    return _best_fit(list(range(len(length))), length.tolist(), context)


def _best_fit(order: list[int], length: list[int], context: int) -> list[list[int]]:
    full: list[list[int]] = []
    rows: dict[int, list[int]] = {}
    # Open rows as (room, number), which is sorted: the least room that takes a piece is found by bisection.
    room: list[tuple[int, int]] = []
    for opened, piece in enumerate(order):
        at = bisect.bisect_left(room, (length[piece], -1))
        if at < len(room):
            left, number = room.pop(at)
            rows[number].append(piece)
        else:
            if len(room) == OPEN_ROWS:
                full.append(rows.pop(room.pop(0)[1]))
            left, number = context, opened
            rows[number] = [piece]
        bisect.insort(room, (left - length[piece], number))
    return full + list(rows.values())


@dataclass(frozen=True)
class Rows:
    """The rows of a training, by number; called with numbers, it collates them into a batch.

    predicted[i]: whether token i of the corpus is one to learn. `about`: what a loss needs about the predicted tokens,
    given by their index in the corpus.
    """

    tokens: Tokens
    pieces: Pieces
    packed: list[list[int]]
    predicted: Bool[np.ndarray, " n"]
    context: int
    pad: int
    about: Callable[[Int[np.ndarray, " predictions"]], dict[str, Tensor]]

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """input_ids, position_ids [rows, context]; at, target [n]: flat slots that predict a token, and that token."""
        shape = (len(numbers), self.context)
        index = np.full(shape, -1, np.int64)  # of each slot's token in the corpus
        position = np.empty(shape, np.int64)
        for row, number in enumerate(numbers):
            filled = 0
            for piece in self.packed[number]:
                start, length = self.pieces.start[piece], self.pieces.length[piece]
                index[row, filled : filled + length] = np.arange(start, start + length)
                position[row, filled : filled + length] = np.arange(length)
                filled += length
            position[row, filled:] = np.arange(self.context - filled)
        token = index.ravel()
        # A slot predicts when the next one holds the next token of the same document.
        at = np.flatnonzero((position.ravel()[1:] > 0) & (token[1:] >= 0) & self.predicted[token[1:]])
        ahead = token[at + 1]
        ids = np.where(index >= 0, self.tokens.ids[index], self.pad)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "position_ids": torch.from_numpy(position),
            "at": torch.from_numpy(at),
            "target": torch.from_numpy(self.tokens.ids[ahead].astype(np.int64)),
            "tokens": int((token >= 0).sum()),
            **self.about(ahead),
        }


def make_rows(
    tokens: Tokens,
    context: int,
    loss: Loss,
    rows: int,
    seed: int,
    pad: int,
    about: Callable[[Int[np.ndarray, " predictions"]], dict[str, Tensor]],
) -> Rows:
    """The rows of a training, in order; they do not depend on `about`, so controls see the same batches.

    Raises TrainingError when no document has a token to predict.
    """
    pieces = cut(tokens, context, loss)
    if not len(pieces.start):
        raise TrainingError(f"empty corpus: {len(tokens)} documents, and no token in them to predict")
    predicted = tokens.answer if loss == "answers" else np.broadcast_to(np.True_, len(tokens.ids))
    return Rows(tokens, pieces, pack(pieces.length, context, rows, seed), predicted, context, pad, about)
