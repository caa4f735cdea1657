"""Text to train on: documents, their tokens, and how they are packed into rows.

A document is `{"text": ...}` or `{"prompt": ..., "answer": ...}`; of the latter the text is prompt followed by answer,
tokenized as one string, as an evaluation harness does with a context and its continuation.

Rows: a row holds `context` tokens. Documents are packed in a seeded order, each into the open row with the least room
that still takes it (best fit), and never split to fit. What a row has left is padding that nothing is learnt from.
Positions start at 0 in every document and attention stays inside the document (`train.py`), so a packed document
costs and teaches exactly what it would in a row of its own.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def read_jsonl(path: Path) -> list[Document]:
    """Documents of a JSON Lines file, one a line; blank lines are skipped.

    Raises TrainingError for a file that is missing or empty and, with its line, for a document of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"corpus {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"corpus {path}: is not UTF-8 (byte {error.start})") from error
    documents = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not documents:
        raise TrainingError(f'corpus {path}: holds no document; expected a line {{"text": ...}} for each')
    return documents


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
    return {key: document[key] for key in kept}


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


def encode(tokenizer: Any, documents: Sequence[Document]) -> Tokens:
    """Tokenize documents as the tokenizer does by itself (with a BOS where it adds one), each closed by one EOS.

    Needs a fast tokenizer, for its offsets. Raises TrainingError without one or without an EOS.
    """
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise TrainingError(f"tokenizer {tokenizer.name_or_path!r}: a fast tokenizer with an EOS token is needed")
    eos = tokenizer.eos_token_id
    ids: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    for block in _blocks(documents, 1024):
        encoded = tokenizer(
            [text_of(document) for document in block],
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for document, row, offsets in zip(block, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            row, ends = _closed(row, [end for _, end in offsets], eos)
            ids.append(np.asarray(row, np.int32))
            answers.append(np.asarray(ends) > len(prompt_of(document)))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)])
    if not ids:
        return Tokens(np.zeros(0, np.int32), np.zeros(0, bool), starts)
    return Tokens(np.concatenate(ids), np.concatenate(answers), starts)


def _blocks(documents: Sequence[Document], size: int) -> Iterator[Sequence[Document]]:
    for start in range(0, len(documents), size):
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

    Under loss "all" a longer document becomes consecutive pieces that share one token, so that every token but the
    first is predicted once. Under "answers" it keeps its last `context` tokens: the answer and the nearest prompt.
    A document of one token has nothing to predict and is left out.
    """
    start: list[int] = []
    length: list[int] = []
    truncated = 0
    for first, end in zip(tokens.starts[:-1].tolist(), tokens.starts[1:].tolist(), strict=True):
        if loss == "answers" and end - first > context:
            truncated += 1
            first = end - context
        for at in range(first, end - 1, context - 1):
            start.append(at)
            length.append(min(context, end - at))
    return Pieces(np.asarray(start, np.int64), np.asarray(length, np.int64), truncated)


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
    room: list[int] = []
    rows: list[list[int]] = []
    for piece in order:
        fits = [i for i, left in enumerate(room) if left >= length[piece]]
        if fits:
            at = min(fits, key=room.__getitem__)
            room[at] -= length[piece]
            rows[at].append(piece)
            continue
        if len(rows) == OPEN_ROWS:
            fullest = min(range(OPEN_ROWS), key=room.__getitem__)
            room.pop(fullest)
            full.append(rows.pop(fullest))
        room.append(context - length[piece])
        rows.append([piece])
    return full + rows


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
    predicted = tokens.answer if loss == "answers" else np.ones(len(tokens.ids), bool)
    return Rows(tokens, pieces, pack(pieces.length, context, rows, seed), predicted, context, pad, about)
