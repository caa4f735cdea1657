"""Models combined at their outputs, against float64 by hand; what density a domain has, against its formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.ensemble import COMBINE, Domains, combined, identity, mean, normalised, perplexity_weights, pooled
from fusion.errors import RecipeError

MODELS, ROWS, VOCABULARY = 3, 4, 11


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(MODELS, ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))


def by_hand(logits: list[list[float]], weights: list[float], combine: str) -> list[float]:
    """One row's log-probabilities in plain Python."""
    probs = [[math.exp(z - max(row)) for z in row] for row in logits]
    probs = [[p / sum(row) for p in row] for row in probs]
    if combine in ("mean_prob", "routed"):
        return [math.log(sum(w * row[v] for w, row in zip(weights, probs, strict=True))) for v in range(VOCABULARY)]
    scores = [sum(w * row[v] for w, row in zip(weights, logits, strict=True)) for v in range(VOCABULARY)]
    total = math.log(math.fsum(math.exp(score) for score in scores))
    return [score - total for score in scores]


@pytest.mark.parametrize("combine", COMBINE)
def test_every_way_to_combine_is_its_formula(logits: torch.Tensor, combine: str) -> None:
    weights = torch.rand(MODELS, ROWS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = weights / weights.sum(0)
    found = combined(logits, weights, combine)
    for row in range(ROWS):
        wanted = by_hand(logits[:, row].double().tolist(), weights[:, row].tolist(), combine)
        assert found[row].tolist() == pytest.approx(wanted, abs=2e-6)
    assert found.exp().sum(-1).tolist() == pytest.approx([1.0] * ROWS, abs=1e-6)


@pytest.mark.parametrize("combine", COMBINE)
def test_one_model_or_two_equal_ones_are_that_model(logits: torch.Tensor, combine: str) -> None:
    alone = logits[0].log_softmax(-1)
    one, two = logits[:1], torch.stack([logits[0], logits[0]])
    torch.testing.assert_close(combined(one, torch.ones(1, ROWS), combine), alone)
    torch.testing.assert_close(combined(two, torch.full((2, ROWS), 0.5), combine), alone)


def test_a_mixture_keeps_what_one_model_believes_and_a_product_does_not() -> None:
    sure, unlikely = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[-20.0, 0.0, 0.0]])
    both, half = torch.stack([sure, unlikely]), torch.full((2, 1), 0.5)
    assert float(combined(both, half, "mean_prob")[0, 0].exp()) == pytest.approx(0.5, abs=1e-6)
    assert float(combined(both, half, "mean_logit")[0, 0].exp()) == pytest.approx(1 / 3, abs=1e-6)


def test_whole_texts_are_averaged_as_tokens_are_but_not_normalised() -> None:
    likelihoods = torch.tensor([[-3.0, -700.0], [-5.0, -900.0]], dtype=torch.float64)
    weights = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    mixture = [math.log(0.25 * math.exp(-3) + 0.75 * math.exp(-5)), -700 + math.log(0.25)]
    assert mean(likelihoods, weights, "mean_prob").tolist() == pytest.approx(mixture)
    assert mean(likelihoods, weights, "mean_logit").tolist() == pytest.approx([-4.5, -850.0])


def test_a_weight_is_the_inverse_of_the_prompt_s_perplexity() -> None:
    nats = torch.tensor([[8.0, 0.0, 3.0], [4.0, 0.0, 30000.0]], dtype=torch.float64)
    found = perplexity_weights(nats, torch.tensor([4, 0, 1]))
    inverse = [math.exp(-8 / 4), math.exp(-4 / 4)]
    assert found[:, 0].tolist() == pytest.approx([one / sum(inverse) for one in inverse])
    assert found[:, 1].tolist() == [0.5, 0.5], "without a prompt nothing is known"
    assert found[:, 2].tolist() == [1.0, 0.0]


def test_weights_are_normalised_and_equal_where_none_are_given() -> None:
    assert normalised((1, 3), 2).tolist() == [0.25, 0.75]
    assert normalised(None, 4).tolist() == [0.25] * 4


# -------------------------------------------------------------------------------------------------------- domains


def clouds(features: int, texts: int = 40, apart: float = 1.5) -> dict[str, torch.Tensor]:
    """Three domains of correlated features."""
    generator = torch.Generator().manual_seed(features)
    shape = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return {
        name: torch.randn(texts + n, features, generator=generator, dtype=torch.float64) @ shape + apart * n
        for n, name in enumerate("abc")
    }


def shrunk(points: dict[str, torch.Tensor]) -> np.ndarray:
    """Ledoit and Wolf's estimate, sum by sum."""
    inside = np.concatenate([found.numpy() - found.numpy().mean(0) for found in points.values()])
    count, features = inside.shape
    scatter = sum(np.outer(x, x) for x in inside) / count
    unit = np.eye(features) * np.trace(scatter) / features
    spread = ((scatter - unit) ** 2).sum()
    error = sum(((np.outer(x, x) - scatter) ** 2).sum() for x in inside) / count**2
    share = min(error, spread) / spread
    assert 0 < share < 1
    return share * unit + (1 - share) * scatter


@pytest.mark.parametrize("features", [3, 60, 200])
def test_the_posterior_is_that_of_gaussians_of_one_covariance(features: int) -> None:
    """60 and 200: about as many features as texts, and more."""
    points = clouds(features)
    precision = np.linalg.inv(shrunk(points))
    new = clouds(features, texts=6)["b"][:5]
    found = Domains.fit(points).posterior(new)
    for place, z in enumerate(new.numpy()):
        away = [z - one.numpy().mean(0) for one in points.values()]
        log_densities = np.array([-0.5 * d @ precision @ d for d in away])
        wanted = np.exp(log_densities - log_densities.max())
        np.testing.assert_allclose(found[:, place].numpy(), wanted / wanted.sum(), rtol=1e-6, atol=1e-9)


def test_texts_are_given_to_their_own_domain() -> None:
    points = clouds(8, texts=200, apart=4.0)
    domains = Domains.fit({name: found[:100] for name, found in points.items()})
    for place, found in enumerate(points.values()):
        assert float((domains.posterior(found[100:]).argmax(0) == place).double().mean()) > 0.9


def test_equal_domains_weigh_alike_and_points_between_two_as_well() -> None:
    points = clouds(5)["a"]
    assert Domains.fit({"a": points, "b": points}).posterior(points[:3]).flatten().tolist() == pytest.approx([0.5] * 6)
    two = Domains.fit({"a": points, "b": points + 2})
    assert two.posterior((points + 1).mean(0)[None])[:, 0].tolist() == pytest.approx([0.5, 0.5])


def test_one_feature_and_perfectly_even_scatter_are_no_special_case() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0]])
    assert float(Domains.fit({"a": line, "b": line + 5}).posterior(torch.tensor([[1.0]]))[0, 0]) > 0.99


def test_domains_survive_a_file(tmp_path: Path) -> None:
    points = clouds(4)
    first = Domains.fit(points)
    for name in ("one", "two"):
        first.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = Domains.load(tmp_path / "one")
    assert torch.equal(again.posterior(points["a"]), first.posterior(points["a"]))


def test_corpora_that_show_no_domain_are_refused() -> None:
    with pytest.raises(RecipeError, match="the corpus of b, c has fewer than two documents"):
        Domains.fit({"a": torch.randn(3, 2), "b": torch.randn(1, 2), "c": torch.zeros(0, 2)})
    with pytest.raises(RecipeError, match="are all alike"):
        Domains.fit({"a": torch.ones(3, 2), "b": torch.zeros(4, 2)})


def test_a_text_is_the_mean_of_its_tokens() -> None:
    table = torch.arange(12.0).reshape(4, 3).bfloat16()
    found = pooled(table, [0, 3, 3])
    assert found.dtype == torch.float64 and found.tolist() == [6.0, 7.0, 8.0]


# ------------------------------------------------------------------------------------------------------- identity


def test_an_ensemble_is_known_by_all_that_decides_its_answers(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"one")
    (tmp_path / "e").write_bytes(b"two")
    two, auto = ["sha256:a", "sha256:b"], ["auto", "auto"]
    first = identity(two, auto, "mean_prob", None, None)
    assert first.startswith("sha256:")
    assert first == identity(two, auto, "mean_prob", (2.0, 2.0), None), "equal weights are equal weights"
    others = [
        identity(two[::-1], auto, "mean_prob", None, None),
        identity(two, ["auto", "float32"], "mean_prob", None, None),
        identity(two, auto, "mean_logit", None, None),
        identity(two, auto, "mean_prob", (0.7, 0.3), None),
        identity(two, auto, "routed", None, tmp_path / "d"),
        identity(two, auto, "routed", None, tmp_path / "e"),
    ]
    assert len({first, *others}) == len(others) + 1
