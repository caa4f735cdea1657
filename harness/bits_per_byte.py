"""Bits per byte of text: total bits over total bytes, with their uncertainty over documents and replicates.

Lower is better. A ratio of totals is no mean over documents, so each document stands with its jackknife pseudo-value
(Tukey 1958): n times the ratio of all minus n - 1 times that of the others, centred so that their mean is the ratio.
They go through the same machinery as scores (stats.py): intervals resample documents and replicates, differences are
paired on documents. For documents of one length they are the documents' own bits per byte.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness import stats
from harness.errors import TaskError
from harness.relate import gain_entry
from harness.stats import Array, Difference, Estimate, Scores

# Of a model and split: {group: {"bits": (seeds, documents), "bytes": (seeds, documents)}}, documents in one order.
Texts = Mapping[str, Mapping[str, Array]]


def values(bits: Array, sizes: Array) -> Array:
    """Pseudo-values (seeds, documents) of total bits over total bytes; each row's mean is its ratio.

    bits: (seeds, documents). sizes: in bytes, of the same shape. Raises TaskError for documents without bytes.
    """
    bits, sizes = np.atleast_2d(np.asarray(bits, np.float64)), np.atleast_2d(np.asarray(sizes, np.float64))
    if bits.size == 0 or not (sizes > 0).all():
        raise TaskError(f"bits per byte need documents that have bytes; found {bits.shape[-1]} documents")
    total, size = bits.sum(axis=1, keepdims=True), sizes.sum(axis=1, keepdims=True)
    ratio: Array = total / size
    n = bits.shape[1]
    if n == 1:
        return ratio
    pseudo = n * ratio - (n - 1) * (total - bits) / (size - sizes)
    centred: Array = pseudo - pseudo.mean(axis=1, keepdims=True) + ratio
    return centred


def as_scores(texts: Texts, group: str) -> Scores:
    """A group's pseudo-values, as the functions of stats.py take scores."""
    return {group: {group: values(texts[group]["bits"], texts[group]["bytes"])}}


def estimate(texts: Texts, group: str) -> Estimate:
    """A group's bits per byte."""
    return stats.overall(as_scores(texts, group))


def saved(mine: Texts, other: Texts, group: str) -> Difference:
    """How many bits per byte fewer `mine` needs than `other`: positive is better, paired on documents."""
    return stats.difference(as_scores(other, group), as_scores(mine, group))


def gains(name: str, against: Mapping[str, str | None], texts: Mapping[str, Texts]) -> dict[str, dict[str, Any]]:
    """The bits per byte that a model saves, {group: {"control": ..., "target": ...}}, as far as they can be known.

    against: the model for each of these words, None where there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in texts.get(name, {}):
        for key, other in against.items():
            if other is not None and group in texts.get(other, {}):
                pair = saved(texts[name], texts[other], group)
                found.setdefault(group, {})[key] = gain_entry(pair, other)
    return found
