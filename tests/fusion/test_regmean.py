"""RegMean's closed form, on Gram matrices that are given."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods import fisher, linear, regmean, regmean_plus
from fusion.methods.call import Place
from fusion.methods.regmean import Gram, Params

D_IN, D_OUT = 6, 4


def inputs(seed: int, rows: int = 40, width: int = D_IN) -> Tensor:
    """Inputs with correlations and features of different size, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix


def weights_of(seed: int, shape: tuple[int, ...] = (D_OUT, D_IN)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(x: Tensor, transposed: bool = False) -> Gram:
    return Gram(x.T @ x / len(x), len(x), transposed)


def place(*grams: Gram | None, notes: dict[str, float] | None = None) -> Place:
    models = tuple(f"m{i}" for i in range(len(grams)))
    note = (lambda key, value: None) if notes is None else notes.__setitem__
    return Place("layers.0.up.weight", models, statistics=grams, note=note)


X = [inputs(1), inputs(2, 60), inputs(3, 50)]
W = [weights_of(4), weights_of(5), weights_of(6)]
GRAMS = [gram(x) for x in X]


def plain(alpha: float, c: list[float], ridge: float = 0.0) -> np.ndarray:
    """The normal equations in numpy's float64, by a general solver; [d_out, d_in]."""
    left, right = np.zeros((D_IN, D_IN)), np.zeros((D_IN, D_OUT))
    average = sum(ci * w.double().numpy().T for ci, w in zip(c, W, strict=True)) / sum(c)
    for ci, x, w in zip(c, X, W, strict=True):
        g = (x.T @ x / len(x)).numpy()
        g = alpha * g + (1 - alpha) * np.diag(np.diag(g))
        left += ci * g
        right += ci * g @ w.double().numpy().T
    pull = ridge * np.diag(left).mean() * np.eye(D_IN)
    return np.linalg.solve(left + pull, right + pull @ average).T


def run(params: Params, c: list[float] | None = None, notes: dict[str, float] | None = None) -> Tensor:
    return regmean.merge(W, None, c, params, place(*GRAMS, notes=notes))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("c", [None, [1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_it_is_the_solution_of_the_normal_equations(alpha: float, c: list[float] | None, ridge: float) -> None:
    expected = plain(alpha, c or [1.0] * 3, ridge)
    np.testing.assert_allclose(run(Params(alpha, ridge), c).numpy(), expected, rtol=3e-6, atol=3e-7)


def test_it_minimises_the_squared_error_of_the_outputs() -> None:
    """sum_i |X_i W - X_i W_i|^2 / n_i has no slope there, and rises in every direction."""
    found = run(Params(alpha=1.0)).double()

    def error(w: Tensor) -> Tensor:
        return sum((((x @ w.T) - x @ own.double().T) ** 2).sum() / len(x) for x, own in zip(X, W, strict=True))

    w = found.clone().requires_grad_()
    error(w).backward()
    start = torch.zeros_like(found).requires_grad_()
    error(start).backward()
    assert float(w.grad.abs().max()) < 1e-5 * float(start.grad.abs().max())
    for seed in range(5):
        assert error(found + 0.01 * weights_of(seed).double()) > error(found)


def test_equal_grams_give_the_average_whatever_alpha_is() -> None:
    for alpha in (0.0, 0.5, 1.0):
        found = regmean.merge(W, None, [1.0, 2.0, 1.0], Params(alpha), place(*[GRAMS[0]] * 3))
        assert torch.allclose(found, (W[0] + 2 * W[1] + W[2]) / 4, rtol=1e-5, atol=1e-6)


def test_one_model_and_models_that_agree_stay_as_they_are() -> None:
    singular = gram(inputs(1, rows=2))
    for models in ([W[0]], [W[0], W[0].clone()]):
        for at in (place(*GRAMS[: len(models)]), place(*[singular] * len(models))):
            assert torch.equal(regmean.merge(models, None, None, Params(alpha=1.0), at), W[0])


def test_alpha_0_is_a_mean_by_input_feature() -> None:
    found = run(Params(alpha=0.0))
    power = torch.stack([g.matrix.diagonal() for g in GRAMS])
    expected = (torch.stack(W).double() * power[:, None]).sum(0) / power.sum(0)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_alpha_scales_what_is_off_the_diagonal_and_not_the_other_way_round() -> None:
    """The convention: in code elsewhere .1 often stands for this .9."""
    full, most, none = (run(Params(alpha)) for alpha in (1.0, 0.99, 0.0))
    assert (full - most).norm() < 0.1 * (full - none).norm()
    assert Params().alpha == 0.9


def test_transposed_weights_give_the_transposed_result() -> None:
    grams = [Gram(g.matrix, g.tokens, True) for g in GRAMS]
    found = regmean.merge([w.T.contiguous() for w in W], None, None, Params(), place(*grams))
    assert torch.equal(found.T, run(Params()))


def test_inputs_of_another_size_change_nothing() -> None:
    """The solution is scaled: a feature a million times as large makes it no harder to find."""
    scale = torch.tensor([1e6, 1.0, 1e-6, 1.0, 1e3, 1.0], dtype=torch.float64)
    notes: dict[str, float] = {}
    plainly: dict[str, float] = {}
    models = [(w.double() / scale).float() for w in W]
    found = regmean.merge(models, None, None, Params(), place(*[gram(x * scale) for x in X], notes=notes))
    assert torch.allclose(found.double() * scale, run(Params(), notes=plainly).double(), rtol=1e-4, atol=1e-5)
    assert notes["condition"] == pytest.approx(plainly["condition"], rel=1e-6)


def test_the_condition_number_is_recorded() -> None:
    notes: dict[str, float] = {}
    run(Params(alpha=1.0), notes=notes)
    summed = sum(g.matrix for g in GRAMS).numpy()
    scale = np.sqrt(np.diag(summed))
    assert notes == {
        "condition": pytest.approx(np.linalg.cond(summed / np.outer(scale, scale), 1), rel=1e-8),
        "dead": 0.0,
        "tokens": 150,
    }


def test_dead_inputs_take_the_average() -> None:
    dead = [x.clone() for x in X]
    for x in dead:
        x[:, [0, 3]] = 0.0
    dead[0][:, 5] = 0.0  # but not in the others
    notes: dict[str, float] = {}
    for ridge in (0.0, 0.01):
        at = place(*map(gram, dead), notes=notes)
        found = regmean.merge(W, None, [1.0, 2.0, 1.0], Params(alpha=1.0, ridge=ridge), at)
        average = (W[0] + 2 * W[1] + W[2]) / 4
        assert torch.allclose(found[:, [0, 3]], average[:, [0, 3]], atol=1e-6)
        assert not torch.allclose(found[:, [1, 2, 4, 5]], average[:, [1, 2, 4, 5]], atol=1e-2)
        assert notes["dead"] == pytest.approx(1 / 3)
    nothing = place(*[Gram(torch.zeros(D_IN, D_IN, dtype=torch.float64), 9)] * 3)
    assert torch.equal(
        regmean.merge(W, None, None, Params(), nothing), linear.merge(W, None, None, linear.Params(), nothing)
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_too_little_data_is_refused_with_what_to_do(rows: int) -> None:
    few = [gram(inputs(seed, rows)) for seed in (1, 2)]
    with pytest.raises(RecipeError) as refused:
        regmean.merge(W[:2], None, None, Params(alpha=1.0), place(*few))
    text = str(refused.value)
    assert text.startswith("layers.0.up.weight: ") and ("not positive definite" in text or "condition number" in text)
    assert f"{2 * rows} tokens, for 6 inputs, at alpha 1 and ridge 0" in text
    assert "Collect more text" in text and "lower alpha" in text and "ridge above 0" in text


def test_a_copied_feature_is_refused_though_tokens_are_plenty() -> None:
    """Singular but for rounding: Cholesky alone may well get through."""
    twins = [x.clone() for x in X]
    for x in twins:
        x[:, 1] = x[:, 0] * (1 + 1e-9)
    with pytest.raises(RecipeError, match="noise"):
        regmean.merge(W, None, None, Params(alpha=1.0), place(*map(gram, twins)))


def test_ridge_and_alpha_solve_what_is_singular() -> None:
    few = [gram(inputs(seed, 2)) for seed in (1, 2)]
    average = (W[0] + W[1]) / 2
    distance = []
    for ridge in (1e-3, 1.0, 1e3, 1e6):
        found = regmean.merge(W[:2], None, None, Params(alpha=1.0, ridge=ridge), place(*few))
        distance.append(float((found - average).norm()))
        assert bool(torch.isfinite(found).all())
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-4 < distance[0]
    assert bool(torch.isfinite(regmean.merge(W[:2], None, None, Params(alpha=0.9), place(*few))).all())


def test_a_ridge_that_is_too_small_is_refused_as_well() -> None:
    few = [gram(inputs(seed, 2)) for seed in (1, 2)]
    with pytest.raises(RecipeError, match="ridge 1e-14"):
        regmean.merge(W[:2], None, None, Params(alpha=1.0, ridge=1e-14), place(*few))


def test_what_is_no_linear_layer_is_averaged() -> None:
    notes: dict[str, float] = {}
    biases = [weights_of(seed, (5,)) for seed in range(3)]
    at = place(None, None, None, notes=notes)
    found = regmean.merge(biases, None, [1.0, 1.0, 2.0], Params(), at)
    assert torch.allclose(found, (biases[0] + biases[1] + 2 * biases[2]) / 4) and notes == {}
    # an expert that one corpus never reaches
    found = regmean.merge(W, None, None, Params(), place(GRAMS[0], None, GRAMS[2], notes=notes))
    assert torch.allclose(found, sum(W) / 3) and notes == {"grams_missing": 1}


def test_inputs_are_not_written_to() -> None:
    before = [g.matrix.clone() for g in GRAMS], [w.clone() for w in W]
    run(Params(alpha=0.5, ridge=0.1), [1.0, 2.0, 3.0])
    assert all(torch.equal(g.matrix, b) for g, b in zip(GRAMS, before[0], strict=True))
    assert all(torch.equal(w, b) for w, b in zip(W, before[1], strict=True))


@pytest.mark.parametrize("module", [regmean, fisher])
def test_weights_that_make_no_sense_are_refused(module: Any) -> None:
    params = module.Params()
    assert "negative" in module.METHOD.check([1.0, -0.5], params)
    assert "undefined" in module.METHOD.check([0.0, 0.0], params)
    assert module.METHOD.check([0.0, 1.0], params) is None


def test_regmean_plus_plus_is_the_same_arithmetic_on_other_statistics() -> None:
    assert regmean_plus.METHOD.name == "regmean++" and regmean_plus.METHOD.statistics == "gram++"
    assert regmean_plus.METHOD.merge is regmean.METHOD.merge and regmean.METHOD.statistics == "gram"
    assert regmean_plus.METHOD.formula != regmean.METHOD.formula


def test_a_hundred_inputs_keep_float32s_digits() -> None:
    """Against exact rational arithmetic where it is cheap: integers all through."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randint(-3, 4, (300, 100), generator=generator).double() for _ in range(2)]
    w = [torch.randint(-9, 10, (3, 100), generator=generator).float() for _ in range(2)]
    found = regmean.merge(w, None, None, Params(alpha=1.0), place(*[gram(part) for part in x]))
    left = sum(part.T @ part for part in x)
    residual = left @ found.double().T - sum(a.T @ a @ b.double().T for a, b in zip(x, w, strict=True))
    assert float(residual.norm()) < 1e-6 * float(left.norm() * found.double().norm())
    assert math.isfinite(float(found.sum()))
