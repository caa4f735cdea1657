"""Random masks: how often they keep what, and that nothing but the recipe decides the bytes."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fusion.methods import apply
from tests.fusion.arrays import BASE, A, B, C, assert_close, assert_same, merge_of, merged, wide

SIDE = 512
LARGE = {"a": np.ones((SIDE, SIDE), np.float32)}
LARGE_BASE = {"a": np.zeros((SIDE, SIDE), np.float32)}
SIGMAS = 5.0


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_dare_keeps_the_share_it_should_and_rescales_it(density: float) -> None:
    found = merged("dare_linear", [LARGE], LARGE_BASE, density=density)["a"]
    kept = found != 0
    np.testing.assert_allclose(found[kept], 1 / density, rtol=1e-6)
    spread = math.sqrt(density * (1 - density) / found.size)
    assert abs(kept.mean() - density) < SIGMAS * spread
    # Neighbours are independent: the share of pairs that are both kept is the density squared.
    for pairs in (kept[:, 1:] & kept[:, :-1], kept[1:] & kept[:-1]):
        assert abs(pairs.mean() - density**2) < SIGMAS * 2 * spread


def test_masks_differ_by_seed_model_and_tensor() -> None:
    def mask(seed: int, models: int, tensor: str) -> np.ndarray:
        tensors = {tensor: LARGE["a"]}
        zeros = {tensor: LARGE_BASE["a"]}
        last = merged("dare_linear", [zeros] * (models - 1) + [tensors], zeros, seed=seed, density=0.5)[tensor]
        return last != 0

    masks = [mask(0, 1, "a"), mask(1, 1, "a"), mask(0, 2, "a"), mask(0, 1, "b"), mask(9, 1, "a")]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).mean() - 0.5) < SIGMAS * 0.5 / SIDE
    np.testing.assert_array_equal(masks[0], mask(0, 1, "a"))


def test_della_keeps_each_rank_with_its_own_probability() -> None:
    rows, width, density, epsilon = 4000, 16, 0.6, 0.3
    generator = np.random.default_rng(3)
    ranks = np.argsort(generator.random((rows, width)), axis=1)
    signs = generator.choice([-1.0, 1.0], (rows, width))
    model = {"a": np.float32((ranks + 1) * signs)}
    found = merged("della_linear", [model], {"a": np.zeros_like(model["a"])}, density=density, epsilon=epsilon)["a"]
    for rank in range(width):
        share = density - epsilon + 2 * epsilon * rank / (width - 1)
        values = found[ranks == rank] / model["a"][ranks == rank]
        kept = values != 0
        assert abs(kept.mean() - share) < SIGMAS * math.sqrt(share * (1 - share) / rows)
        np.testing.assert_allclose(values[kept], 1 / share, rtol=1e-6)


# Nothing but the recipe decides the bytes.

SETTINGS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.4},
    "della_linear": {"density": 0.4},
    "breadcrumbs": {"density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.4, "gamma": 0.1},
    "consensus": {},
    "emr": {"task": "m1"},
}


@pytest.mark.parametrize("method", SETTINGS)
def test_blocks_do_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merged(method, [A, B, C], BASE, seed=7, **SETTINGS[method])
    for size in (1, 3, 8, 20):
        monkeypatch.setattr(apply, "BLOCK", size)
        found = merged(method, [A, B, C], BASE, seed=7, **SETTINGS[method])
        if method == "emr":
            # Its rescaler is a sum over blocks in float64, which their size may change in the last place.
            assert_close(found, wide(whole))
        else:
            assert_same(found, whole)


@pytest.mark.parametrize("method", SETTINGS)
def test_threads_and_order_do_not_matter(method: str) -> None:
    merge = merge_of(method, [A, B, C], BASE, seed=7, threads=2, **SETTINGS[method])
    found = {name: merge.tensor(name).numpy() for name in reversed(merge.names())}
    assert_same(found, merged(method, [A, B, C], BASE, seed=7, **SETTINGS[method]))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_the_seed_matters(method: str) -> None:
    one, two = (merged(method, [A, B], BASE, seed=seed, **SETTINGS[method]) for seed in (1, 2))
    assert any((one[k] != two[k]).any() for k in one)


def test_hash_seeds_do_not_matter() -> None:
    program = (
        "import hashlib\n"
        "from tests.fusion.arrays import A, B, BASE, C, merged\n"
        "from tests.fusion.test_draw import SETTINGS\n"
        "found = [merged(m, [A, B, C], BASE, **s) for m, s in SETTINGS.items()]\n"
        "print(hashlib.sha256(b''.join(f[k].tobytes() for f in found for k in sorted(f))).hexdigest())"
    )
    outputs = []
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.append(
            subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        )
    assert outputs[0].stdout == outputs[1].stdout != b""


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 1), (1,)])
def test_tensors_with_next_to_nothing_in_them(method: str, shape: tuple[int, ...]) -> None:
    base = {"a": np.ones(shape, np.float32), "z": np.ones(3, np.float32)}
    models = [{k: value + 1 for k, value in base.items()} for _ in "xy"]
    for compat in (None, "mergekit"):
        found = merged(method, models, base, compat=compat, **SETTINGS[method])
        assert found["a"].shape == shape and np.isfinite(found["a"]).all()
