"""Models as arrays, for tests of arithmetic: what the engine makes of them, and sets with all that is awkward."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusion.methods.apply import Merge
from fusion.recipe import Recipe
from tests.fusion.models import Memory

Arrays = dict[str, np.ndarray]
SHAPES: dict[str, tuple[int, ...]] = {"a": (5, 7), "b": (11,), "c": (3, 2, 4), "d": ()}


def random_model(seed: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: np.float32(scale * generator.standard_normal(shape)) for name, shape in SHAPES.items()}


def merge_of(
    method: str,
    models: Sequence[Arrays],
    base: Arrays | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    own: tuple[Mapping[str, Any], ...] = (),
    compat: Any = None,
    threads: int = 1,
    **params: Any,
) -> Merge:
    """The merge of models m0, m1, ... that are stored in `dtype`; the result is float32."""
    names = tuple(f"m{i}" for i in range(len(models)))
    found = {**dict(zip(names, models, strict=True)), **({} if base is None else {"base": base})}
    sources = {
        name: Memory({key: torch.tensor(value).to(dtype) for key, value in arrays.items()})
        for name, arrays in found.items()
    }
    chosen = None if weights is None else tuple(weights)
    recipe = Recipe(
        method, names, None if base is None else "base", chosen, params, seed, "float32", own=own, compat=compat
    )
    return Merge(recipe, sources, threads=threads)


def merged(method: str, models: Sequence[Arrays], base: Arrays | None = None, *args: Any, **settings: Any) -> Arrays:
    """What `merge_of` gives, tensor by tensor."""
    merge = merge_of(method, models, base, *args, **settings)
    return {name: merge.tensor(name).numpy() for name in merge.names()}


def wide(arrays: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Arrays:
    """The arrays as they are after storage in `dtype`, in float64."""
    return {name: torch.tensor(value).to(dtype).double().numpy() for name, value in arrays.items()}


def assert_close(found: Arrays, expected: Mapping[str, np.ndarray], tolerance: float = 2e-7) -> None:
    scale = max(1.0, *(float(np.abs(value).max(initial=0.0)) for value in expected.values()))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=4 * tolerance * scale, err_msg=name)


def assert_same(found: Arrays, expected: Arrays) -> None:
    """To the bit."""
    assert all(found[k].tobytes() == expected[k].tobytes() for k in expected)


BASE, A, B, C = random_model(0), random_model(1), random_model(2), random_model(3)
OPPOSITE = {k: np.float32(2 * BASE[k] - A[k]) for k in BASE}
TIED = {k: np.float32(BASE[k] * 0 + 0.5) for k in BASE}
COARSE = {k: np.float32(np.round(v)) for k, v in B.items()}
ZEROS = {k: np.zeros_like(v) for k, v in BASE.items()}

SETS: dict[str, tuple[list[Arrays], Arrays]] = {
    "three": ([A, B, C], BASE),
    "one": ([A], BASE),
    "zero deltas": ([BASE, BASE], BASE),
    "one zero delta": ([A, BASE, C], BASE),
    "opposite deltas": ([A, {k: -v for k, v in A.items()}], ZEROS),
    "opposite about a base": ([A, OPPOSITE], BASE),
    "equal magnitudes": ([TIED, COARSE], ZEROS),
}
WEIGHTS: dict[str, tuple[float, ...] | None] = {
    "none": None,
    "unequal": (0.7, 1.3, 0.1),
    "zero": (1.0, 0.0, 2.0),
    "negative": (1.0, -0.3, 0.4),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
