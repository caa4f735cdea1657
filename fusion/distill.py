"""Losses, and the targets that several models' distributions are fused into.

FuseLLM (Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024, arXiv:2401.10491, section 3) trains a
target on L = lambda L_CLM + (1 - lambda) D(p_fused || p_target). Here p_fused comes per document from the source with
the lowest cross-entropy (MinCE) or from all of them, weighted by softmax(-cross-entropy) (AvgCE). The cross-entropy is
in bits per byte, because bits per token favour whoever cuts the text into more tokens. D is the forward KL divergence
over k + 1 buckets: the fused distribution's k tokens, and all others together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion import align, vocabulary
from fusion.corpus import Document, Loss, Tokens, text_of
from fusion.errors import FusionError
from fusion.teachers import Store
from fusion.vocabulary import Vocabulary

How = Literal["min_ce", "avg_ce"]
Fallback = Literal["next_token", "drop"]

# Rows that are fused at a time: bounds the memory, changes no number.
BLOCK = 1 << 16


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@runtime_checkable
class Objective(Protocol):
    """A loss over the predicted tokens of a batch, n of them."""

    @property
    def identity(self) -> str:
        """What a checkpoint must share to be resumed under this loss."""

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        """What the loss needs to know of the predicted tokens, given by their index in the corpus."""

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss, and its parts by name for the curves. `batch` holds what `about` gave."""


class CausalLM:
    """Next-token cross-entropy in nats, averaged over tokens."""

    identity = "clm"

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        return {}

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        return cross_entropy(logits, target, logits.logsumexp(-1)).mean(), {}


def cross_entropy(
    logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], log_sum: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """-log p[target]; log_sum is the logits' logsumexp, which other losses share."""
    return log_sum - logits.gather(-1, target[:, None]).squeeze(-1)


def sparse_kl(
    logits: Float[Tensor, "n v"],
    log_sum: Float[Tensor, " n"],
    ids: Int[Tensor, "n k"],
    probs: Float[Tensor, "n k"],
    tail: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """KL(p || q) over k + 1 buckets: p is probs at ids and tail elsewhere (they sum to 1), q the softmax of logits.

    An id may occur again with probability 0, to fill a row that has fewer than k.
    """
    log_q = logits.gather(-1, ids) - log_sum[:, None]
    # From the tail's own logits: log(1 - sum of q) has neither digits nor a gradient left where q's tail is small.
    log_q_tail = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - log_sum
    negative_entropy = torch.xlogy(probs, probs).sum(-1) + torch.xlogy(tail, tail)
    return negative_entropy - (probs * log_q).sum(-1) - tail * log_q_tail


@dataclass(frozen=True)
class Fused:
    """Targets for every token of the target's corpus: k ids with probabilities, the tail's, and a weight of 0 or 1."""

    ids: Int[np.ndarray, "n k"]
    probs: Float[np.ndarray, "n k"]
    tail: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]


class FusionLoss:
    """lambda L_CLM + (1 - lambda) D(p_fused || p_target); the parts are called clm and fusion."""

    def __init__(self, fused: Fused, lambda_: float, identity: str) -> None:
        self.fused, self.lambda_, self.identity = fused, lambda_, identity

    def about(self, token: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
        return {
            "fused_ids": torch.from_numpy(self.fused.ids[token].astype(np.int64)),
            "fused_probs": torch.from_numpy(self.fused.probs[token]),
            "fused_tail": torch.from_numpy(self.fused.tail[token]),
            "fused_weight": torch.from_numpy(self.fused.weight[token]),
        }

    def loss(
        self, logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        log_sum = logits.logsumexp(-1)
        clm = cross_entropy(logits, target, log_sum).mean()
        divergence = sparse_kl(logits, log_sum, batch["fused_ids"], batch["fused_probs"], batch["fused_tail"])
        weight = batch["fused_weight"]
        fusion = (weight * divergence).sum() / weight.sum().clamp(min=1)
        return self.lambda_ * clm + (1 - self.lambda_) * fusion, {"clm": clm, "fusion": fusion}


# ---------------------------------------------------------------------------------------------------------------------
# Fused targets


@dataclass(frozen=True)
class Reading:
    """A corpus as one tokenizer cuts it. begins, ends [n]: bytes of its document before and after each token."""

    tokens: Tokens
    vocabulary: Vocabulary
    begins: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]

    def document_of(self) -> Int[np.ndarray, " n"]:
        """The document that each token belongs to."""
        return np.repeat(np.arange(len(self.tokens)), np.diff(self.tokens.starts))

    def counted(self, loss: Loss) -> Bool[np.ndarray, " n"]:
        """Tokens that are predicted (all but the first of a document) and that the loss is about."""
        counted = self.tokens.answer.copy() if loss == "answers" else np.ones(len(self.tokens.ids), bool)
        counted[self.tokens.starts[:-1]] = False
        return counted


@dataclass(frozen=True)
class Source:
    """A model to learn from: its store, its reading of the corpus, its ids in the target's vocabulary (-1: none)."""

    name: str
    store: Store
    reading: Reading
    mapping: Int[np.ndarray, " source_vocabulary"]


def read(tokens: Tokens, vocab: Vocabulary, documents: Sequence[Document]) -> Reading:
    """Where each token lies in its document. Raises FusionError for one that the tokenizer does not give back."""
    begins, ends = np.zeros(len(tokens.ids), np.int64), np.zeros(len(tokens.ids), np.int64)
    for number, document in enumerate(documents):
        own = slice(tokens.starts[number], tokens.starts[number + 1])
        try:
            ends[own] = vocabulary.byte_ends(vocab, tokens.ids[own], text_of(document))
        except FusionError as error:
            raise FusionError(f"document {number + 1}: {error}") from error
        begins[own][1:] = ends[own][:-1]
    return Reading(tokens, vocab, begins, ends)


def make_source(name: str, store: Store, reading: Reading, target: Vocabulary) -> Source:
    """A model's store and reading, with its vocabulary mapped to the target's by exact bytes."""
    mapping = vocabulary.exact_map(reading.vocabulary, target)
    # A model may have more outputs than its tokenizer has tokens; those stand for nothing.
    unused = max(0, store.meta["vocabulary"] - len(mapping))
    return Source(name, store, reading, np.pad(mapping, (0, unused), constant_values=-1))


def bits_per_byte(source: Source, loss: Loss) -> Float[np.ndarray, " documents"]:
    """A source's cross-entropy on each document, over the bytes of the tokens that count; NaN where there is none."""
    reading = source.reading
    size = reading.ends - reading.begins
    counted = reading.counted(loss) & (size > 0)
    document = reading.document_of()[counted]
    bits = -np.asarray(source.store.true, np.float64)[counted] / np.log(2)
    total = np.bincount(document, bits, len(reading.tokens))
    length = np.bincount(document, size[counted], len(reading.tokens))
    return np.divide(total, length, out=np.full(len(total), np.nan), where=length > 0)


def choose(bits: Float[np.ndarray, "sources documents"], how: How) -> Float[np.ndarray, "sources documents"]:
    """The sources' weights for each document, of sum 1; all 0 where no source read a byte that counts.

    min_ce: 1 for the source of fewest bits per byte (the first of equals). avg_ce: softmax(-bits per byte).
    """
    known = np.isfinite(bits).all(0)
    safe = np.where(known, bits, 0.0)
    if how == "min_ce":
        weights = (np.arange(len(bits))[:, None] == safe.argmin(0)).astype(np.float64)
    else:
        raised = np.exp(safe.min(0) - safe)
        weights = raised / raised.sum(0)
    return weights * known


def align_source(source: Source, target: Reading) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """For the target's tokens: the source's token in its own corpus, or -1; and whether a boundary is shared."""
    aligned, boundary = np.full(len(target.tokens.ids), -1, np.int64), np.zeros(len(target.tokens.ids), bool)
    reading = source.reading
    for number in range(len(target.tokens)):
        own = slice(target.tokens.starts[number], target.tokens.starts[number + 1])
        theirs = slice(reading.tokens.starts[number], reading.tokens.starts[number + 1])
        found = align.align(
            target.tokens.ids[own],
            target.ends[own],
            reading.tokens.ids[theirs],
            reading.ends[theirs],
            source.mapping,
        )
        aligned[own] = np.where(found.source >= 0, found.source + theirs.start, -1)
        boundary[own] = found.boundary
    return aligned, boundary


def fuse(
    target: Reading, sources: Sequence[Source], how: How, loss: Loss, top_k: int, fallback: Fallback
) -> tuple[Fused, dict[str, Any]]:
    """The fused target of every token of the target's corpus, and a report.

    Source ids without an exact image in the target's vocabulary go to the tail; ids with the same image are summed. A
    token that no weighted source predicts identically (`align.py`) falls back to the token itself, or is left out.
    Report: documents by source, bits per byte of each, vocabulary shares, and of the tokens that count the shares
    aligned, with a shared boundary, and fallen back.
    """
    bits = np.stack([bits_per_byte(source, loss) for source in sources])
    weights = choose(bits, how)
    alignments = [align_source(source, target) for source in sources]
    document = target.document_of()
    n = len(target.tokens.ids)
    fused = Fused(
        np.zeros((n, top_k), np.int32),
        np.zeros((n, top_k), np.float32),
        np.zeros(n, np.float32),
        np.ones(n, np.float32),
    )
    taught = np.zeros(n, bool)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        parts = [
            (weights[i, document[rows]] * (aligned[rows] >= 0), *_mapped(sources[i], aligned[rows]))
            for i, (aligned, _) in enumerate(alignments)
        ]
        fused.ids[rows], fused.probs[rows], fused.tail[rows], taught[rows] = mix(parts, top_k)
    fused.ids[~taught] = target.tokens.ids[~taught, None]
    fused.probs[~taught] = np.eye(1, top_k, dtype=np.float32)
    fused.tail[~taught] = 0
    if fallback == "drop":
        fused.weight[~taught] = 0
    counted = target.counted(loss)
    return fused, _report(sources, bits, weights, alignments, taught, counted, document)


def _mapped(source: Source, aligned: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """A source's distributions in the target's ids; what has no image, or no alignment, has probability 0."""
    at = np.maximum(aligned, 0)
    probs = np.exp(source.store.log_probs[at].astype(np.float64))
    # Half precision leaves a sum that is off by 1e-3.
    probs /= probs.sum(-1, keepdims=True) + source.store.tail[at, None]
    ids = source.mapping[source.store.ids[at]]
    probs[(ids < 0) | (aligned < 0)[:, None]] = 0
    return np.maximum(ids, 0), probs


def mix(
    parts: Sequence[tuple[Float[np.ndarray, " n"], Int[np.ndarray, "n j"], Float[np.ndarray, "n j"]]], top_k: int
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The weighted mean of (weight, ids, probabilities), cut to its top_k ids; the rest is the tail.

    Weights are scaled to sum 1 in each row. A probability that a part does not state (its own tail's) stays in the
    tail. The last array says which rows have weight and any id at all.
    """
    total = sum(weight for weight, _, _ in parts)
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    ids = np.concatenate([part for _, part, _ in parts], -1)
    probs = np.concatenate([(weight * scale)[:, None] * part for weight, _, part in parts], -1)
    # In each row equal ids side by side, their sum at the first of them.
    order = np.argsort(ids, -1, kind="stable")
    ids, probs = np.take_along_axis(ids, order, -1), np.take_along_axis(probs, order, -1)
    first = np.ones_like(ids, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first.ravel())
    summed = np.zeros_like(probs)
    summed.ravel()[starts] = np.add.reduceat(probs.ravel(), starts) if len(starts) else 0
    best = np.argsort(-summed, -1, kind="stable")[:, :top_k]
    ids, probs = np.take_along_axis(ids, best, -1), np.take_along_axis(summed, best, -1)
    ids = np.where(probs > 0, ids, ids[:, :1])
    return ids, probs, np.maximum(1 - probs.sum(-1), 0), probs[:, 0] > 0


def _report(
    sources: Sequence[Source],
    bits: Float[np.ndarray, "sources documents"],
    weights: Float[np.ndarray, "sources documents"],
    alignments: Sequence[tuple[np.ndarray, np.ndarray]],
    taught: Bool[np.ndarray, " n"],
    counted: Bool[np.ndarray, " n"],
    document: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    known = np.isfinite(bits).all(0)
    chosen = weights[:, document[counted]]
    return {
        "positions": int(counted.sum()),
        "aligned": _mean(taught[counted]),
        "fallback": _mean(~taught[counted]),
        "sources": {
            source.name: {
                "weight": _mean(weights[i][known]),
                "weight_of_positions": _mean(chosen[i]),
                "bits_per_byte": _mean(bits[i][known]),
                "aligned": _mean(alignments[i][0][counted] >= 0),
                "boundary": _mean(alignments[i][1][counted]),
                "vocabulary": vocabulary.shares(
                    source.mapping[: len(source.reading.vocabulary.tokens)], source.reading.vocabulary
                ),
            }
            for i, source in enumerate(sources)
        },
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
