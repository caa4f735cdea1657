"""VaRM against a plain float64 implementation, and what its weights are by hand."""

import numpy as np
import pytest
import torch

from fusion.methods import METHODS
from tests.fusion.arrays import BASE, DTYPES, SETS, A, B, assert_close, merged, wide
from tests.fusion.plain import Vector, each


def plain_varm(tensors: list[Vector], base: Vector) -> Vector:
    deltas = [theta - base for theta in tensors]
    sizes = [float((delta**2).mean()) for delta in deltas]
    if not sum(sizes):
        return base.copy()
    return sum(size / sum(sizes) * delta for size, delta in zip(sizes, deltas, strict=True)) + base


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", SETS)
def test_varm(models: str, dtype: torch.dtype) -> None:
    stored, base = SETS[models]
    found = merged("varm", stored, base, None, dtype)
    assert_close(found, each(plain_varm, [wide(m, dtype) for m in stored], wide(base, dtype)))


def test_weights_are_each_matrix_own_and_sum_to_one() -> None:
    """mean tau^2 is 9 and 1 in the first matrix, 0 and 4 in the second, 0 and 0 in the third."""
    base = {"v": np.full((2, 2), 5, np.float32), "w": np.ones(3, np.float32), "z": np.ones(2, np.float32)}
    one = {**base, "v": base["v"] + np.float32([[3, -3], [-3, 3]])}
    two = {"v": base["v"] + np.float32([[1, 1], [1, 1]]), "w": base["w"] - 2, "z": base["z"]}
    found = merged("varm", [one, two], base)
    np.testing.assert_allclose(found["v"], 5 + np.array([[2.8, -2.6], [-2.6, 2.8]]), rtol=1e-6)
    np.testing.assert_array_equal(found["w"], two["w"])
    np.testing.assert_array_equal(found["z"], base["z"])


def test_one_model_gives_itself_and_equal_changes_give_the_average() -> None:
    assert_close(merged("varm", [A], BASE), wide(A))
    mirrored = {k: np.float32(2 * BASE[k] - A[k]) for k in BASE}
    assert_close(merged("varm", [A, mirrored], BASE), wide(BASE))
    assert_close(
        merged("varm", [A, B, A, B], BASE), {k: np.float64(v) for k, v in merged("varm", [A, B], BASE).items()}
    )


def test_far_and_light_changes_are_weighed_without_overflow() -> None:
    """Squares of 1e-25 and of 1e20 are no float32 numbers; the sums are float64."""
    zeros = {"v": np.zeros(4, np.float32)}
    for scale in (1e-25, 1e20):
        models = [{"v": np.float32([scale, 0, 0, 0])}, {"v": np.float32([0, 2 * scale, 0, 0])}]
        found = np.float64(merged("varm", models, zeros)["v"]) / scale
        np.testing.assert_allclose(found, [0.2, 1.6, 0, 0], rtol=1e-6)


def test_the_table_says_what_it_takes() -> None:
    row = METHODS["varm"]
    assert row.base == "required" and not row.weights and not row.random and row.compat is None
    assert "2402.16107" in row.paper
