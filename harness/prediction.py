"""How well gain is predicted for merges of models that were not seen, without their kinship and with it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.association import UNITS_FOR_INTERVAL, Array, Bools, Half, Ints, members_of, scaled


class Prediction(NamedTuple):
    """Error of a prediction of units left out, without and with kinship; the share by which kinship lowers it.

    NaN is what cannot be known. predicted counts predictions, folds the units that could be left out.
    """

    rmse: tuple[float, float]
    r2: tuple[float, float]
    fall: float
    low: float
    high: float
    predicted: int
    folds: int


def prediction(x: Array, halves: Sequence[Half], folds: Bools, strata: Ints) -> Prediction | None:
    """How well least squares predicts the first outcome of merges with units that it has not seen.

    x: (rows,). Every unit of `folds` (rows, units) is left out once: its rows are predicted from rows without it, by
    method, covariates, and then kinship too. r2 is against the training rows' mean by method. None where no unit can be
    left out: too few rows remain, or their methods do not occur elsewhere.

    The interval of `fall` is a jackknife over units, refitted, with a t of units - 1 degrees: a bootstrap would put
    copies of one unit in training and in test.
    """
    every = np.ones(len(x), dtype=bool)
    whole = _errors(x, halves, folds, strata, every)
    if whole is None:
        return None
    error, counts = whole
    rmse = (math.sqrt(error[1]), math.sqrt(error[2]))
    r2 = (1 - error[1] / error[0], 1 - error[2] / error[0]) if error[0] > 0 else (math.nan, math.nan)
    fall = _fall(error)
    again = [_errors(x, halves, folds, strata, ~folds[:, j]) for j in range(folds.shape[1])]
    falls = np.array([_fall(one[0]) for one in again if one is not None])
    if len(falls) < max(len(again), UNITS_FOR_INTERVAL) or not np.isfinite(falls).all():
        return Prediction(rmse, r2, fall, math.nan, math.nan, *counts)
    from scipy.special import stdtrit

    n = len(falls)
    half_width = float(stdtrit(n - 1, 0.975)) * math.sqrt((n - 1) * float(falls.var()))
    return Prediction(rmse, r2, fall, fall - half_width, fall + half_width, *counts)


def _fall(error: list[float]) -> float:
    return 1 - math.sqrt(error[2] / error[1]) if error[1] > 0 else math.nan


def _errors(
    x: Array, halves: Sequence[Half], folds: Bools, strata: Ints, kept: Bools
) -> tuple[list[float], tuple[int, int]] | None:
    """Mean squared errors by method alone, with covariates, and with kinship; (predictions, folds) of one half."""
    members = members_of(strata)
    place = np.unique(strata, return_inverse=True)[1]
    parameters = len(members) + len(halves[0].z) + 1
    train = (kept & ~folds.T).astype(np.float64)  # (folds, rows)
    usable = train.sum(axis=1) >= parameters + 2
    seen = (train @ members.T > 0)[:, place]
    test = folds.T & kept & seen & usable[:, None]
    if not test.any():
        return None
    errors = [0.0, 0.0, 0.0]
    for half in halves:
        columns = np.stack([*members, *(scaled(one) for one in (*half.z, x))], axis=1)
        for i, width in enumerate((len(members), parameters - 1, parameters)):
            rest = _predicted(columns[:, :width], half.y[0], train) - half.y[0]
            errors[i] += float((rest[test] ** 2).mean()) / len(halves)
    return errors, (int(test.sum()), int(test.any(axis=1).sum()))


def _predicted(columns: Array, y: Array, train: Array) -> Array:
    """Least-squares predictions of all rows from each set of training rows: (folds, rows)."""
    k = columns.shape[1]
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(y), k * k)
    normal = (train @ products).reshape(-1, k, k)
    moments = train @ (columns * y[:, None])
    slopes = np.linalg.pinv(normal, rcond=1e-10, hermitian=True) @ moments[:, :, None]
    predicted: Array = slopes[:, :, 0] @ columns.T
    return predicted
