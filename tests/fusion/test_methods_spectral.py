"""The methods that go by singular vectors, against a plain float64 implementation of each."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fusion.methods.spectral import is_map
from tests.fusion.arrays import (
    Arrays,
    merged,
    wide,
)
from tests.fusion.plain import Vector

# Singular vectors.

MATRICES = {
    "proj.weight": (12, 8),
    "wide.weight": (5, 20),
    "embed_tokens.weight": (12, 8),
    "norm.weight": (8,),
    "s": (),
}


def matrices(seed: int, rank: int | None = None) -> Arrays:
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in MATRICES.items():
        value = generator.standard_normal(shape)
        if rank is not None and len(shape) == 2:
            value = generator.standard_normal((shape[0], rank)) @ generator.standard_normal((rank, shape[1]))
        found[name] = np.float32(value)
    return found


def added(base: Arrays, deltas: Sequence[Arrays]) -> list[Arrays]:
    return [{k: np.float32(base[k] + d[k]) for k in base} for d in deltas]


def plain_rank(matrix: Vector) -> tuple[Vector, Vector, Vector]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-5 * max(s[0], 1e-30)).sum())
    return u[:, :rank], s[:rank], vt[:rank]


def plain_tsv(tensors: list[Vector], base: Vector, scale: float) -> Vector:
    """By inverse square roots: U (U^T U)^(-1/2) is the nearest matrix with orthonormal columns."""
    found = [plain_rank(theta - base) for theta in tensors]
    count = max(1, min(base.shape) // len(tensors))
    u = np.concatenate([f[0][:, :count] for f in found], 1)
    s = np.concatenate([f[1][:count] for f in found])
    v = np.concatenate([f[2][:count].T for f in found], 1)

    def whitened(x: Vector) -> Vector:
        values, vectors = np.linalg.eigh(x.T @ x)
        inverse = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0)
        return x @ (vectors * inverse) @ vectors.T

    return base + scale * whitened(u) @ np.diag(s) @ whitened(v).T


def plain_iso(tensors: list[Vector], base: Vector, scale: float) -> Vector:
    u, s, vt = plain_rank(sum(theta - base for theta in tensors))
    return base + (scale * s.mean() * u @ vt if s.size else 0.0)


@pytest.mark.parametrize("method, plain", [("tsv", plain_tsv), ("iso_c", plain_iso)])
@pytest.mark.parametrize("case", ["three", "one", "low rank", "one zero delta", "zero deltas", "the same twice"])
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_merges_of_singular_vectors(method: str, plain: Callable[..., Vector], case: str, scale: float) -> None:
    base, zero = matrices(0), {k: np.zeros_like(v) for k, v in matrices(0).items()}
    deltas = {
        "three": [matrices(1), matrices(2), matrices(3)],
        "one": [matrices(1)],
        "low rank": [matrices(1, 2), matrices(2, 1)],
        "one zero delta": [matrices(1), zero],
        "zero deltas": [zero, zero],
        "the same twice": [matrices(1), matrices(1)],
    }[case]
    models = added(base, deltas)
    found = merged(method, models, base, **{"lambda": scale})
    for name, value in wide(base).items():
        tensors = [wide(m)[name] for m in models]
        if name in ("proj.weight", "wide.weight"):
            expected = plain(tensors, value, scale)
        else:
            expected = value + scale * sum(theta - value for theta in tensors) / len(tensors)
        np.testing.assert_allclose(found[name], expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name)


def test_tsv_of_orthogonal_tasks_keeps_their_leading_parts_whole() -> None:
    base = {"w": np.zeros((4, 4), np.float32)}
    models = [{"w": np.float32(np.diag([3, 2, 0, 0]))}, {"w": np.float32(np.diag([0, 0, 5, 4]))}]
    np.testing.assert_allclose(merged("tsv", models, base)["w"], np.diag([3, 2, 5, 4]), atol=1e-5)
    twice = merged("tsv", [models[0], models[0]], base)["w"]
    np.testing.assert_allclose(twice, models[0]["w"], atol=1e-5)


def test_iso_c_has_equal_singular_values_with_their_sum_kept() -> None:
    base = matrices(0)
    models = added(base, [matrices(1), matrices(2)])
    name = "proj.weight"
    total = sum(np.float64(m[name]) - base[name] for m in models)
    values = np.linalg.svd(merged("iso_c", models, base)[name] - np.float64(base[name]), compute_uv=False)
    np.testing.assert_allclose(values, np.linalg.svd(total, compute_uv=False).mean(), rtol=1e-5)


def test_which_tensors_are_linear_maps() -> None:
    maps = ["model.layers.0.mlp.up_proj.weight", "h.0.attn.c_attn.weight", "w"]
    tables = ["model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight", "wpe.weight", "output.weight"]
    assert [is_map(name, (4, 4)) for name in maps + tables] == [True] * 3 + [False] * 5
    assert not any(is_map("w", shape) for shape in [(4,), (2, 4, 4), (), (0, 4)])
