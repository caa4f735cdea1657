"""The methods on task vectors against a plain float64 implementation, written here without looking at the engine's."""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import RecipeError
from fusion.methods import apply
from fusion.methods.trim import kept_count
from tests.fusion.arrays import (
    BASE,
    SETS,
    SHAPES,
    WEIGHTS,
    A,
    Arrays,
    B,
    C,
    assert_close,
    merge_of,
    merged,
    random_model,
    wide,
)

Sparsify = Callable[[int, str, np.ndarray], np.ndarray]
DTYPES = [torch.float32, torch.bfloat16]

# The plain implementations: whole models, float64, loops over entries.


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


Case = tuple[list[Arrays], Arrays, tuple[float, ...] | None]


CASES = [f"{models}, {weights} weights" for models in SETS for weights in WEIGHTS if weights != "unequal"]


@pytest.fixture(params=["three, unequal weights", *CASES])
def case(request: pytest.FixtureRequest) -> Case:
    models, weights = request.param.removesuffix(" weights").rsplit(", ", 1)
    found, base = SETS[models]
    given_weights = WEIGHTS[weights]
    return found, base, None if given_weights is None else given_weights[: len(found)]


def nearly_cancels(case: Case) -> bool:
    """Whether an election hangs on the last bit: after factors that are rounded to float32, it can go either way."""
    return case[0] is SETS["opposite about a base"][0]


def check(
    case: Case, method: str, plain: Callable[..., Arrays], sparse: Callable[[list[Arrays]], list[Arrays]], **params: Any
) -> None:
    """The engine's result, from models stored in two dtypes, is the plain one."""
    models, base, weights = case
    shares = (1.0,) * len(models) if weights is None else weights
    for dtype in DTYPES:
        plain_base = wide(base, dtype)
        deltas = sparse(task_vectors([wide(m, dtype) for m in models], plain_base))
        normalize = params.get("normalize", plain is plain_elect)
        if normalize and plain is plain_sum and sum(shares) == 0:
            continue
        expected = plain(deltas, plain_base, shares, params.get("lambda", 1.0), normalize)
        assert_close(merged(method, models, base, weights, dtype, **params), expected, 4e-7)


def each(sparsify: Sparsify) -> Callable[[list[Arrays]], list[Arrays]]:
    return lambda deltas: [{k: sparsify(i, k, d[k]) for k in d} for i, d in enumerate(deltas)]


@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_task_arithmetic(case: Case, scale: float) -> None:
    check(case, "task_arithmetic", plain_sum, list, **{"lambda": scale})
    check(case, "task_arithmetic", plain_sum, list, normalize=True, **{"lambda": scale})


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.2, 0.97, 1.0])
def test_ties(case: Case, density: float) -> None:
    shared = [density] * len(case[0])
    check(case, "ties", plain_elect, lambda d: plain_global(d, shared), density=density, **{"lambda": 0.7})
    own = each(lambda i, k, delta: plain_band(delta, density))
    check(case, "ties", plain_elect, own, density=density, trim="tensor", **{"lambda": 0.7})
    check(case, "ties", plain_elect, own, density=density, trim="tensor", normalize=False)
    if nearly_cancels(case):
        return
    l1 = each(lambda i, k, delta: plain_l1(delta, plain_band(delta, density)))
    check(case, "ties", plain_elect, l1, density=density, trim="tensor", rescale=True)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("method", "plain"), [("dare_linear", plain_sum), ("dare_ties", plain_elect)])
def test_dare(case: Case, method: str, plain: Callable[..., Arrays], density: float) -> None:
    for rescale in (True, False):
        sparse = each(lambda i, k, delta: plain_dare(0, i, k, delta, density, rescale))  # noqa: B023
        check(case, method, plain, sparse, density=density, rescale=rescale, **{"lambda": 0.7})


@pytest.mark.parametrize(("density", "epsilon"), [(0.0, 0.1), (0.3, 0.3), (0.6, 0.0), (1.0, 0.1)])
@pytest.mark.parametrize(("method", "plain"), [("della_linear", plain_sum), ("della", plain_elect)])
def test_della(case: Case, method: str, plain: Callable[..., Arrays], density: float, epsilon: float) -> None:
    for rescale in (False,) if nearly_cancels(case) else (True, False):
        sparse = each(lambda i, k, delta: plain_della(0, i, k, delta, density, epsilon, rescale))  # noqa: B023
        check(case, method, plain, sparse, density=density, epsilon=epsilon, rescale=rescale)


@pytest.mark.parametrize(("density", "gamma"), [(0.0, 0.1), (0.3, 0.0), (0.5, 0.1), (1.0, 0.2)])
@pytest.mark.parametrize(("method", "plain"), [("breadcrumbs", plain_sum), ("breadcrumbs_ties", plain_elect)])
def test_breadcrumbs(case: Case, method: str, plain: Callable[..., Arrays], density: float, gamma: float) -> None:
    sparse = each(lambda i, k, delta: plain_band(delta, density, gamma))
    check(case, method, plain, sparse, density=density, gamma=gamma, **{"lambda": 0.7})
    if nearly_cancels(case):
        return
    l1 = each(lambda i, k, delta: plain_l1(delta, plain_band(delta, density, gamma)))
    check(case, method, plain, l1, density=density, gamma=gamma, rescale=True, normalize=False)


@pytest.mark.parametrize(("threshold", "agree"), [(0.0, 2), (0.4, 1), (0.6, 2), (1.1, 0)])
def test_consensus(case: Case, threshold: float, agree: int) -> None:
    def plain(deltas: list[Arrays], base: Arrays, weights: Sequence[float], scale: float, _: bool) -> Arrays:
        result = {}
        for k in base:
            taus = [w * d[k] for w, d in zip(weights, deltas, strict=True)]
            tau = sum(taus)
            users = sum((np.abs(t) >= threshold * np.abs(tau - t)).astype(int) for t in taus)
            result[k] = base[k] + scale * tau * (users >= agree)
        return result

    check(case, "consensus", plain, list, threshold=threshold, agree=agree, **{"lambda": 0.7})


def plain_emr(deltas: Sequence[Arrays], base: Arrays, task: int, rescaler: str) -> Arrays:
    uni, masks = {}, {}
    for k in base:
        gamma = np.sign(sum(d[k] for d in deltas))
        largest = np.max([np.where(np.sign(d[k]) == gamma, np.abs(d[k]), 0.0) for d in deltas], axis=0)
        uni[k] = gamma * largest
        masks[k] = deltas[task][k] * uni[k] > 0
    size = {k: base[k].size if rescaler == "code" else 1 for k in base}
    own = sum(np.abs(deltas[task][k]).sum() / size[k] for k in base)
    kept = sum(np.abs(masks[k] * uni[k]).sum() / size[k] for k in base)
    return {k: base[k] + (own / kept if kept else 1.0) * masks[k] * uni[k] for k in base}


@pytest.mark.parametrize("rescaler", ["paper", "code"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", SETS)
def test_emr(models: str, dtype: torch.dtype, rescaler: str) -> None:
    found, base = SETS[models]
    plain_base = wide(base, dtype)
    deltas = task_vectors([wide(m, dtype) for m in found], plain_base)
    for task in range(len(found)):
        result = merged("emr", found, base, None, dtype, task=f"m{task}", rescaler=rescaler)
        assert_close(result, plain_emr(deltas, plain_base, task, rescaler), 4e-7)


def test_emr_of_one_model_is_that_model() -> None:
    assert_close(merged("emr", [A], BASE, task="m0"), wide(A), 4e-7)


def test_emr_wants_a_task_that_there_is() -> None:
    with pytest.raises(RecipeError, match="task 'x' is none of the models: m0, m1"):
        merged("emr", [A, B], BASE, task="x")
    with pytest.raises(RecipeError, match="'task' is missing"):
        merged("emr", [A, B], BASE)


# What each method promises beside its formula.


def test_ties_keeps_exactly_k_and_the_first_of_equal_magnitudes() -> None:
    base = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
    model = {"a": np.float32([1, -1, 2, 1]), "b": np.float32([1, 1, -1, 1])}
    found = merged("ties", [model], base, density=0.5)
    np.testing.assert_array_equal(found["a"], [1, -1, 2, 1])
    np.testing.assert_array_equal(found["b"], [0, 0, 0, 0])
    found = merged("ties", [model], base, density=0.75)
    np.testing.assert_array_equal(found["b"], [1, 1, 0, 0])
    found = merged("ties", [model], base, density=0.5, trim="tensor")
    np.testing.assert_array_equal(found["a"], [1, 0, 2, 0])
    np.testing.assert_array_equal(found["b"], [1, 1, 0, 0])


def test_ties_trims_globally_by_default_as_the_paper_does() -> None:
    base = {"large": np.zeros(10, np.float32), "small": np.zeros(10, np.float32)}
    model = {"large": np.arange(101, 111, dtype=np.float32), "small": np.arange(1, 11, dtype=np.float32)}
    found = merged("ties", [model], base, density=0.5)
    assert (found["large"] != 0).all() and (found["small"] == 0).all()


def test_signs_that_balance_exactly_leave_the_base() -> None:
    base = {"a": np.float32([10, 10, 10])}
    models = [{"a": np.float32([12, 11, 13])}, {"a": np.float32([8, 11, 9])}]
    np.testing.assert_array_equal(merged("ties", models, base, density=1.0)["a"], [10, 11, 13])


def test_breadcrumbs_leaves_out_the_largest_and_the_smallest() -> None:
    base = {"a": np.zeros(10, np.float32)}
    model = {"a": np.float32([1, -2, 3, -4, 5, -6, 7, -8, 9, -10])}
    found = merged("breadcrumbs", [model], base, density=0.3, gamma=0.2)
    np.testing.assert_array_equal(found["a"], [0, 0, 0, 0, 0, -6, 7, -8, 0, 0])


AWKWARD = st.lists(st.sampled_from([0.0, -0.0, 1e-40, 1.0, -1.0, 1.5, -2.0, 3e38, 1.0000001]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(values=AWKWARD, density=st.floats(0.0, 1.0), at=st.integers(0, 40))
def test_the_global_cut_is_that_of_a_stable_sort(values: list[float], density: float, at: int) -> None:
    vector = np.float32(values)
    model = {"a": vector[:at], "b": vector[at:]}
    base = {k: np.zeros_like(v) for k, v in model.items()}
    found = merged("ties", [model], base, density=density)
    expected = plain_band(np.float64(vector), density)
    np.testing.assert_array_equal(np.concatenate([found["a"], found["b"]]), np.float32(expected))


@settings(max_examples=60, deadline=None)
@given(values=AWKWARD, density=st.floats(0.0, 1.0), gamma=st.floats(0.0, 1.0))
def test_a_tensors_own_cuts_are_those_of_a_stable_sort(values: list[float], density: float, gamma: float) -> None:
    vector = np.float32(values)
    found = merged("breadcrumbs", [{"a": vector}], {"a": np.zeros_like(vector)}, density=density, gamma=gamma)
    np.testing.assert_array_equal(found["a"], np.float32(plain_band(np.float64(vector), density, gamma)))


@pytest.mark.parametrize("trim", ["global", "tensor"])
def test_cuts_over_many_blocks_are_exact(trim: str) -> None:
    """Values that share their upper bits, so that the second pass decides, and tensors longer than a block."""
    generator = np.random.default_rng(5)
    vector = np.float32(1.0 + generator.integers(0, 3000, 200_000) * 2.0**-23)
    model = {"a": vector[:150_000], "b": vector[150_000:]}
    base = {k: np.zeros_like(v) for k, v in model.items()}
    found = merged("ties", [model], base, density=0.123, trim=trim)
    if trim == "global":
        expected = plain_band(np.float64(vector), 0.123)
    else:
        expected = np.concatenate([plain_band(np.float64(part), 0.123) for part in model.values()])
    np.testing.assert_array_equal(np.concatenate([found["a"], found["b"]]), np.float32(expected))


def test_each_model_may_have_its_own_density() -> None:
    own = ({"density": 0.0}, {"density": 0.3}, {})
    deltas = task_vectors([wide(m) for m in (A, B, C)], wide(BASE))
    found = merged("ties", [A, B, C], BASE, own=own, density=0.6)
    assert_close(found, plain_elect(plain_global(deltas, [0.0, 0.3, 0.6]), wide(BASE), (1, 1, 1), 1.0, True))
    sparse = [{k: plain_dare(0, i, k, d[k], (0.0, 0.3, 0.6)[i], True) for k in d} for i, d in enumerate(deltas)]
    found = merged("dare_linear", [A, B, C], BASE, own=own, density=0.6)
    assert_close(found, plain_sum(sparse, wide(BASE), (1, 1, 1), 1.0, False))


def test_a_density_that_varies_over_tensors_wants_trim_tensor() -> None:
    varied = [{"filter": "b", "value": 0.3}, {"value": 0.6}]
    with pytest.raises(RecipeError, match="set trim: tensor"):
        merged("ties", [A, B], BASE, density=varied)
    with pytest.raises(RecipeError, match="set trim: tensor"):
        merged("ties", [A, B], BASE, own=({"density": varied}, {}))
    found = merged("ties", [A], BASE, density=varied, trim="tensor")
    delta = task_vectors([wide(A)], wide(BASE))[0]
    trimmed = {k: plain_band(delta[k], 0.3 if k == "b" else 0.6) for k in delta}
    assert_close(found, {k: wide(BASE)[k] + trimmed[k] for k in delta})


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_refuses_probabilities_out_of_range(method: str) -> None:
    with pytest.raises(RecipeError, match=r"density 0.9 with epsilon 0.2 gives probabilities from 0.7 to 1.1"):
        merged(method, [A], BASE, density=0.9, epsilon=0.2)
    with pytest.raises(RecipeError, match=r"from -0.1 to 0.3"):
        merged(method, [A, B], BASE, epsilon=0.2, density=0.5, own=({}, {"density": 0.1}))


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
def test_a_normalised_sum_wants_weights_with_a_sum(method: str) -> None:
    with pytest.raises(RecipeError, match="sum to 0"):
        merged(method, [A, B], BASE, (1.0, -1.0), normalize=True)
    with pytest.raises(RecipeError, match="sum to 0"):
        merged(method, [A, B], BASE, ([1.0, 1.0], -1.0), normalize=True)
    merged(method, [A, B], BASE, (1.0, -1.0))


def test_kept_count() -> None:
    counts = [kept_count(100, 0.29), kept_count(10, 1e-9), kept_count(1, 0.5), kept_count(0, 0.5), kept_count(3, 1.0)]
    assert counts == [29, 1, 1, 0, 3] and kept_count(5, 0.0) == 0


# Random numbers.

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

    masks = [mask(0, 1, "a"), mask(1, 1, "a"), mask(0, 2, "a"), mask(0, 1, "b"), mask(-1, 1, "a")]
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


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert all(found[k].tobytes() == expected[k].tobytes() for k in expected)


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
        "from tests.fusion.test_task_vectors import SETTINGS\n"
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


# mergekit's arithmetic, from its formulas in float64; `make peers` compares with mergekit itself.


def plain_mergekit(
    deltas: Sequence[Arrays], base: Arrays, weights: Sequence[float], elect: bool, normalize: bool, scale: float
) -> Arrays:
    result = {}
    for k in base:
        stacked = np.stack([w * d[k] for w, d in zip(weights, deltas, strict=True)])
        shares = np.reshape(weights, (-1, *([1] * base[k].ndim)))
        if elect:
            agree = np.sign(stacked) == np.where(stacked.sum(0) >= 0, 1.0, -1.0)
            total, mass = (stacked * agree).sum(0), (shares * agree).sum(0)
            mass = np.where(mass == 0, 1.0, mass)
        else:
            total, mass = stacked.sum(0), np.full(base[k].shape, sum(weights))
            mass = np.where(np.abs(mass) < 1e-8, 1.0, mass)
        result[k] = base[k] + scale * (total / mass if normalize else total)
    return result


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.3, 0.4), (1.0, -2.0, 0.0)])
def test_compat_trims_each_tensor_and_elects_by_weights(weights: tuple[float, ...], rescale: bool) -> None:
    base = wide(BASE)

    def sparse(delta: np.ndarray, top: int, count: int) -> np.ndarray:
        keep = np.zeros(delta.size, dtype=bool)
        keep[plain_order(delta)[top : top + count]] = True
        cut = np.where(keep.reshape(delta.shape), delta, 0.0)
        return plain_l1(delta, cut) if rescale else cut

    deltas = task_vectors([wide(m) for m in (A, B, C)], base)
    trimmed = [{k: sparse(d[k], 0, max(1, int(0.35 * d[k].size))) for k in d} for d in deltas]
    found = merged("ties", [A, B, C], BASE, weights, compat="mergekit", density=0.35, rescale=rescale)
    assert_close(found, plain_mergekit(trimmed, base, weights, True, True, 1.0), 1e-6)
    banded = [{k: sparse(d[k], int(0.1 * d[k].size), int(0.35 * d[k].size)) for k in d} for d in deltas]
    for method, elect in (("breadcrumbs", False), ("breadcrumbs_ties", True)):
        params = {"density": 0.35, "gamma": 0.1, "rescale": rescale, "normalize": True, "lambda": 0.7}
        found = merged(method, [A, B, C], BASE, weights, compat="mergekit", **params)
        assert_close(found, plain_mergekit(banded, base, weights, elect, True, 0.7), 1e-6)


def test_compat_draws_from_one_stream_in_the_order_of_names() -> None:
    density = (0.3, 1.0, 0.6)
    base = wide(BASE)
    stream = torch.Generator().manual_seed(42)
    deltas = task_vectors([wide(m) for m in (A, B, C)], base)
    for k in sorted(base):
        for delta, share in zip(deltas, density, strict=True):
            if share < 1:
                mask = torch.bernoulli(torch.full(SHAPES[k], share), generator=stream).double().numpy()
                delta[k] = plain_l1(delta[k], delta[k] * mask)
    own = tuple({"density": share} for share in density)
    for method, elect in (("dare_linear", False), ("dare_ties", True)):
        merge = merge_of(method, [A, B, C], BASE, compat="mergekit", seed=42, own=own, normalize=False)
        found = {name: merge.tensor(name).numpy() for name in reversed(merge.names())}
        assert_close(found, plain_mergekit(deltas, base, (1, 1, 1), elect, False, 1.0), 1e-6)


def test_compat_keeps_nothing_at_density_0() -> None:
    for method in ("ties", "dare_ties", "della", "breadcrumbs"):
        found = merged(method, [A, random_model(9)], BASE, compat="mergekit", density=0.0)
        assert_same(found, BASE)
