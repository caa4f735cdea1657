"""Plain float64 implementations of what the methods on task vectors share, with loops over entries."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from tests.fusion.arrays import Arrays


def task_vectors(models: Sequence[Arrays], base: Arrays) -> list[Arrays]:
    """theta - base in float64, rounded to float32 as a task vector is."""
    return [{k: np.float64(np.float32(m[k] - base[k])) for k in base} for m in models]


def plain_order(values: np.ndarray) -> np.ndarray:
    """Positions by magnitude, the largest first, of equal ones the first."""
    return np.argsort(-np.abs(values.reshape(-1)), kind="stable")


def plain_band(delta: np.ndarray, density: float, gamma: float = 0.0) -> np.ndarray:
    top = round(gamma * delta.size)
    count = 0 if density == 0 else min(delta.size - top, max(1, round(density * delta.size)))
    keep = np.zeros(delta.size, dtype=bool)
    keep[plain_order(delta)[top : top + count]] = True
    return np.where(keep.reshape(delta.shape), delta, 0.0)


def plain_global(deltas: Sequence[Arrays], density: Sequence[float]) -> list[Arrays]:
    result = []
    for delta, share in zip(deltas, density, strict=True):
        names = sorted(delta)
        flat = plain_band(np.concatenate([delta[k].reshape(-1) for k in names]), share)
        parts = np.split(flat, np.cumsum([delta[k].size for k in names])[:-1])
        result.append({k: part.reshape(delta[k].shape) for k, part in zip(names, parts, strict=True)})
    return result


def draws(seed: int, tensor: str, model: int, count: int) -> np.ndarray:
    """The method's random numbers as ints: all of a tensor's in one go, from the first."""
    digest = hashlib.sha256(json.dumps([seed, tensor, model]).encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(-(-count // 2))
    return np.asarray(raw, dtype="<u8").view("<i4")[:count].astype(np.int64)


def plain_dare(seed: int, model: int, tensor: str, delta: np.ndarray, density: float, rescale: bool) -> np.ndarray:
    keep = draws(seed, tensor, model, delta.size) + 2**31 < density * 2**32
    return np.where(keep.reshape(delta.shape), delta / (density if rescale and density else 1), 0.0)


def plain_della(
    seed: int, model: int, tensor: str, delta: np.ndarray, density: float, epsilon: float, rescale: bool
) -> np.ndarray:
    if density in (0, 1):
        return delta * density
    rows = delta.reshape(-1 if delta.ndim > 1 else 1, delta.size // (len(delta) if delta.ndim > 1 else 1))
    numbers = draws(seed, tensor, model, delta.size).reshape(rows.shape) + 2**31
    result = np.zeros(rows.shape)
    for row, drawn, out in zip(rows, numbers, result, strict=True):
        for rank, place in enumerate(np.argsort(np.abs(row), kind="stable")):
            share = density + epsilon * (2 * rank / (len(row) - 1) - 1) if len(row) > 1 else density
            if drawn[rank] < share * 2**32:
                out[place] = row[place] / (share if rescale else 1)
    return result.reshape(delta.shape)


def plain_l1(delta: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    return sparse * (np.abs(delta).sum() / np.abs(sparse).sum()) if np.abs(sparse).sum() else sparse


def plain_sum(
    deltas: Sequence[Arrays], base: Arrays, weights: Sequence[float], scale: float, normalize: bool
) -> Arrays:
    total = sum(weights) if normalize else 1.0
    return {k: base[k] + scale * sum(w * d[k] for w, d in zip(weights, deltas, strict=True)) / total for k in base}


def plain_elect(
    deltas: Sequence[Arrays], base: Arrays, weights: Sequence[float], scale: float, normalize: bool
) -> Arrays:
    result = {}
    for k in base:
        tau = np.zeros(base[k].size)
        for p in range(base[k].size):
            column = [w * d[k].reshape(-1)[p] for w, d in zip(weights, deltas, strict=True)]
            sign = np.sign(sum(column))
            agree = [i for i, value in enumerate(column) if sign != 0 and np.sign(value) == sign]
            if agree:
                tau[p] = sum(column[i] for i in agree) / (sum(abs(weights[i]) for i in agree) if normalize else 1)
        result[k] = base[k] + scale * tau.reshape(base[k].shape)
    return result
