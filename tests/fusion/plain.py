"""What plain implementations of merges are written with: one tensor at a time, in float64."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.fusion.arrays import WEIGHTS, A, Arrays

Vector = np.ndarray
NEGATED = {k: -v for k, v in A.items()}


def used(weights: str, count: int) -> tuple[tuple[float, ...] | None, list[float]]:
    """The weights that are given, and as they count."""
    chosen = WEIGHTS[weights]
    return (None, [1.0] * count) if chosen is None else (chosen[:count], list(chosen[:count]))


def each(plain: Callable[..., Vector], models: Sequence[Arrays], base: Arrays | None, *args: Any) -> Arrays:
    """A plain implementation for one tensor, of all of them."""
    return {k: plain([m[k] for m in models], None if base is None else base[k], *args) for k in models[0]}


def one_by_one(plain: Callable[[list[Vector]], Vector], tensors: Sequence[Vector], along: int | None) -> Vector:
    """A function of vectors, of whole tensors (along: None) or of those along an axis."""
    if along is None or tensors[0].ndim < 2:
        return plain([t.reshape(-1) for t in tensors]).reshape(tensors[0].shape)
    moved = [np.moveaxis(t, along, -1) for t in tensors]
    result = np.empty_like(moved[0])
    for index in itertools.product(*map(range, moved[0].shape[:-1])):
        result[index] = plain([m[index] for m in moved])
    return np.moveaxis(result, -1, along)
