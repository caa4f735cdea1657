"""The methods on task vectors against a plain float64 implementation, written here without looking at the engine's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import RecipeError
from fusion.methods.trim import kept_count
from tests.fusion.arrays import BASE, SETS, WEIGHTS, A, Arrays, B, C, assert_close, merged, wide
from tests.fusion.plain_vectors import (
    plain_band,
    plain_dare,
    plain_della,
    plain_elect,
    plain_global,
    plain_l1,
    plain_sum,
    task_vectors,
)

Sparsify = Callable[[int, str, np.ndarray], np.ndarray]
DTYPES = [torch.float32, torch.bfloat16]

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
    with pytest.raises(RecipeError, match="trim: tensor allows it"):
        merged("ties", [A, B], BASE, density=varied)
    with pytest.raises(RecipeError, match="trim: tensor allows it"):
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
