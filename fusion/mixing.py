"""Several distributions made into one: who counts how much, ids carried into the target's vocabulary, weighted means.

The rules of the published code (FuseLLM as in 18907305772/FuseAI at 7d9a307, `compat: fusellm-v1`) stand beside ours.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

Fusion = Literal["min_ce", "avg_ce"]
# A source's part in n tokens: its weights, and ids with their probabilities.
Part = tuple[Float[np.ndarray, " n"], Int[np.ndarray, "n j"], Float[np.ndarray, "n j"]]


def choose(scores: Float[np.ndarray, "sources n"], fusion: Fusion) -> Float[np.ndarray, "sources n"]:
    """The sources' weights, of sum 1 in each column; all 0 where no score is finite. A lower score is better.

    min_ce: 1 for the source of the lowest score (the first of equals). avg_ce: softmax(-score). A source whose score is
    not finite is out.
    """
    there = np.isfinite(scores)
    safe = np.where(there, scores, np.inf)
    if fusion == "min_ce":
        weights = (np.arange(len(scores))[:, None] == safe.argmin(0)).astype(np.float64)
        return weights * there
    least = np.where(there.any(0), safe.min(0), 0.0)
    weights = np.exp(least - safe)
    return weights / np.maximum(weights.sum(0), 1)


def published_scores(nats: Float[np.ndarray, "sources n"]) -> Float[np.ndarray, "sources n"]:
    """-exp(-cross-entropy), by which the published code chooses, in its bfloat16: what that rounds alike are equals.

    Under avg_ce the weights are then softmax(exp(-cross-entropy)), nearly uniform.
    """
    rewards = (1 / torch.exp(torch.from_numpy(nats).to(torch.bfloat16))).double().numpy()
    return np.where(np.isfinite(nats), -rewards, np.inf)


def ratio(
    cost: Float[np.ndarray, "sources n"], extent: Float[np.ndarray, "sources n"]
) -> Float[np.ndarray, "sources n"]:
    """cost / extent; infinite where there is no extent."""
    return np.divide(cost, extent, out=np.full(cost.shape, np.inf), where=extent > 0)


def blocks(lengths: Int[np.ndarray, " documents"], context: int) -> Int[np.ndarray, " documents"]:
    """Of each document, the number of its block: consecutive documents that together have at least `context` tokens."""
    block, filled, numbers = 0, 0, []
    for length in lengths.tolist():
        if filled >= context:
            block, filled = block + 1, 0
        numbers.append(block)
        filled += length
    return np.asarray(numbers, np.int64)


def carry(
    ids: Int[np.ndarray, "n k"],
    log_probs: Float[np.ndarray, "n k"],
    log_tail: Float[np.ndarray, " n"],
    mapping: Int[np.ndarray, " source_vocabulary"],
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Distributions over a source's ids in the target's: what has no image has probability 0, its mass is the tail's.

    mapping: target id of each source id, or -1. Different ids may come out the same (`mix` sums them).
    """
    probs = np.exp(log_probs)
    # Half precision leaves a sum that is off by 1e-3.
    probs /= probs.sum(-1, keepdims=True) + np.exp(log_tail)[:, None]
    images = mapping[ids]
    return np.maximum(images, 0), np.where(images >= 0, probs, 0.0)


def published_carry(
    ids: Int[np.ndarray, "n k"],
    log_probs: Float[np.ndarray, "n k"],
    mapping: Int[np.ndarray, " source_vocabulary"],
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """As the published code has it: of ids with the same image the first stays, and what stays is scaled to sum 1.

    A row of which nothing stays has probabilities 0.
    """
    images = mapping[ids]
    earlier = np.tril(images[:, :, None] == images[:, None, :], -1).any(-1)
    probs = np.where((images >= 0) & ~earlier, np.exp(log_probs), 0.0)
    total = probs.sum(-1, keepdims=True)
    return np.maximum(images, 0), np.divide(probs, total, out=probs, where=total > 0)


def mix(
    parts: Sequence[Part], width: int
) -> tuple[Int[np.ndarray, "n width"], Float[np.ndarray, "n width"], Float[np.ndarray, " n"]]:
    """The weighted mean of the parts: its `width` most probable ids in falling order, and the tail.

    Weights are scaled to sum 1 in each row; probabilities of the same id are summed, of equally probable ids the lower
    comes first. A probability that a part does not state (its own tail's) stays in the tail. A row of fewer ids is
    filled with its first, at probability 0.
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
    best = np.argsort(-summed, -1, kind="stable")[:, :width]
    ids, probs = np.take_along_axis(ids, best, -1), np.take_along_axis(summed, best, -1)
    ids = np.where(probs > 0, ids, ids[:, :1])
    return ids, probs, np.maximum(1 - probs.sum(-1), 0)
