"""Fisher merging, and the Fisher information it weighs by."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fusion import teachers
from fusion.calibration import Collect, read
from fusion.checkpoint import Checkpoint
from fusion.fisher_information import Information, draw, sampler
from fusion.methods import fisher
from fusion.methods.call import Place
from fusion.methods.fisher import Fisher, Params
from fusion.statistics import collect, open_statistics

from .models import save_llama, tiny_llama

DOCUMENTS = [{"text": "t3 t4 t5 t6"}, {"text": "t7 t3"}, {"text": "t9 t8 t7 t6 t5 t4 t3"}, {"text": "t25"}]
SETTINGS = Collect(sequences=8, context=16)


def nothing(done: int, total: int) -> None:
    pass


def place(*found: Fisher | None, notes: dict[str, float] | None = None) -> Place:
    note = (lambda key, value: None) if notes is None else notes.__setitem__
    return Place("w", tuple(f"m{i}" for i in range(len(found))), statistics=found, note=note)


def tensors(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Merging

THETA = tensors([1.0, 2.0, 3.0], [5.0, 4.0, -1.0])
INFORMATION = tensors([1.0, 3.0, 0.5], [3.0, 1.0, 0.5])


def test_each_parameter_counts_by_its_information() -> None:
    found = [Fisher(f, 1.0) for f in INFORMATION]
    merged = fisher.merge(THETA, None, None, Params(), place(*found))
    assert torch.allclose(merged, torch.tensor([(1 + 15) / 4, (6 + 4) / 4, 1.0]))
    weighted = fisher.merge(THETA, None, [2.0, 1.0], Params(), place(*found))
    assert torch.allclose(weighted, torch.tensor([(2 + 15) / 5, (12 + 4) / 7, (2 * 3.0 - 1) / 3]))


@pytest.mark.parametrize("normalise", [True, False])
def test_normalise_takes_a_models_own_size_away(normalise: bool) -> None:
    """A model whose Fisher is everywhere a hundred times as large counts the same, if asked for."""
    small = [Fisher(INFORMATION[0], 1.0), Fisher(INFORMATION[1], 1.0)]
    large = [Fisher(INFORMATION[0], 1.0), Fisher(100 * INFORMATION[1], 100.0)]
    a, b = (fisher.merge(THETA, None, None, Params(0.0, normalise), place(*found)) for found in (small, large))
    assert torch.allclose(a, b) == normalise
    if not normalise:
        mass = INFORMATION[0] + 100 * INFORMATION[1]
        expected = (INFORMATION[0] * THETA[0] + 100 * INFORMATION[1] * THETA[1]) / mass
        assert torch.allclose(b, expected)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("scales", [(2.0, 50.0), (0.0, 0.0), (0.0, 3.0)])
def test_without_information_it_is_the_weighted_average(
    normalise: bool, floor: float, scales: tuple[float, float]
) -> None:
    found = [Fisher(torch.zeros(3), scale) for scale in scales]
    merged = fisher.merge(THETA, None, [1.0, 3.0], Params(floor, normalise), place(*found))
    assert torch.allclose(merged, (THETA[0] + 3 * THETA[1]) / 4, atol=1e-6)


def test_the_floor_is_a_share_of_the_models_root_mean_square() -> None:
    theta = tensors([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    scale = 10.0
    found = [Fisher(torch.tensor([10.0, 1e-3, 1e-9]), scale), Fisher(torch.tensor([10.0, 1e-9, 1e-8]), scale)]
    notes: dict[str, float] = {}
    merged = fisher.merge(theta, None, None, Params(floor=1e-5), place(*found, notes=notes))
    assert torch.allclose(merged, torch.tensor([0.5, 1e-5 / (1e-4 + 1e-5), 0.5]))
    assert notes == {"floored": pytest.approx(1 / 3)}
    sharp = fisher.merge(theta, None, None, Params(floor=0.0), place(*found))
    assert torch.allclose(sharp, torch.tensor([0.5, 1e-6, 1e-8 / 1.1e-8]), atol=1e-7)


def test_models_that_agree_stay_as_they_are_and_a_model_without_fisher_makes_an_average() -> None:
    found = [Fisher(f, 1.0) for f in INFORMATION]
    assert torch.equal(fisher.merge([THETA[0]] * 2, None, None, Params(), place(*found)), THETA[0])
    assert torch.equal(fisher.merge([THETA[0]], None, None, Params(), place(found[0])), THETA[0])
    notes: dict[str, float] = {}
    merged = fisher.merge(THETA, None, None, Params(), place(found[0], None, notes=notes))
    assert torch.allclose(merged, (THETA[0] + THETA[1]) / 2) and notes == {"fishers_missing": 1}


def test_inputs_are_not_written_to() -> None:
    found = [Fisher(f.clone(), 1.0) for f in INFORMATION]
    models = [theta.clone() for theta in THETA]
    fisher.merge(models, None, None, Params(floor=0.7), place(*found))
    assert all(torch.equal(f.diagonal, expected) for f, expected in zip(found, INFORMATION, strict=True))
    assert all(torch.equal(theta, expected) for theta, expected in zip(models, THETA, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Fisher information


class Unigram(nn.Module):
    """p(. | anything) = softmax(logits): the Fisher information of logit v is p_v (1 - p_v) a prediction."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.mark.parametrize("length", [1, 4])
def test_the_information_of_a_softmax(length: int) -> None:
    """Within 5 standard errors of p (1 - p), and so whether a sequence has one prediction or several."""
    logits = torch.tensor([0.0, 1.0, 0.5, -0.5])
    information = Information(Unigram(logits))
    count = 2000
    for number in range(count):
        information.add(torch.zeros(length + 1, dtype=torch.int64), sampler(3, number))
    found = information.per_prediction()["logits"].double()
    p = logits.double().softmax(0)
    variance = p * (1 - p)
    # (sum of n centred Bernoullis)^2 / n has variance kappa_4 / n + 2 sigma^4.
    kurtosis = variance * (1 - 6 * variance)
    error = ((kurtosis / length + 2 * variance**2) / count).sqrt()
    assert bool(((found - variance).abs() < 5 * error).all())
    assert bool((5 * error < 0.5 * variance).all())  # the test can fail: half or double the value is far outside
    assert information.predictions == count * length


def plain_information(model: nn.Module, sequences: list[Tensor], numbers: list[int], seed: int) -> dict[str, Tensor]:
    """Squared gradients in float64, sequence by sequence, with labels drawn from the float32 model."""
    with torch.no_grad():
        labels = [
            draw(model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1), sampler(seed, number))
            for ids, number in zip(sequences, numbers, strict=True)
        ]
    wide = model.double()
    named = dict(wide.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for ids, drawn in zip(sequences, labels, strict=True):
        log_probs = wide(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        total = sum(log_probs[t, label] for t, label in enumerate(drawn))
        for name, gradient in zip(named, torch.autograd.grad(total, list(named.values())), strict=True):
            sums[name] += gradient**2
    return {name: (value / sum(map(len, labels))).detach() for name, value in sums.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tied", tiny_llama(3, tied=True))


def test_it_is_the_squared_gradient_of_each_sequence(model: Path, tmp_path: Path) -> None:
    collect("fisher", model, DOCUMENTS, tmp_path / "out", SETTINGS, nothing)
    live, tokenizer = teachers.load(model)
    text = read(tokenizer, DOCUMENTS, SETTINGS, live)
    expected = plain_information(live, text.sequences, text.numbers, 0)
    statistics = open_statistics(tmp_path / "out")
    # The head is tied: the embedding's Fisher is that of both its uses.
    assert set(expected) == set(Checkpoint(model).names()) == set(statistics.about["tensors"])
    squares = sum(float((value**2).sum()) for value in expected.values())
    scale = (squares / sum(value.numel() for value in expected.values())) ** 0.5
    for name, value in expected.items():
        found = statistics.of(name)
        assert isinstance(found, Fisher) and found.diagonal.dtype == torch.float32
        assert torch.allclose(found.diagonal.double(), value, rtol=1e-3, atol=1e-5 * float(value.max()))
        assert found.scale == pytest.approx(scale, rel=1e-4)
    embedding = statistics.of("model.embed_tokens.weight")
    assert bool((embedding.diagonal > 0).all())  # through the head every token has some


def test_labels_hang_on_seed_and_sequence_alone(model: Path, tmp_path: Path) -> None:
    live, tokenizer = teachers.load(model)
    text = read(tokenizer, DOCUMENTS, SETTINGS, live)
    pairs = list(zip(text.sequences, text.numbers, strict=True))

    def sums(order: list[tuple[Tensor, int]], seed: int) -> dict[str, Tensor]:
        information = Information(teachers.load(model)[0])
        for ids, number in order:
            information.add(ids, sampler(seed, number))
        return information.per_prediction()

    one, other, reversed_ = sums(pairs, 0), sums(pairs, 1), sums(pairs[::-1], 0)
    assert all(torch.allclose(one[name], reversed_[name], rtol=1e-4, atol=1e-9) for name in one)
    assert not torch.allclose(one["model.norm.weight"], other["model.norm.weight"], rtol=1e-2)


def test_labels_are_drawn_from_the_distribution() -> None:
    p = torch.tensor([0.7, 0.2, 0.1, 0.0])
    drawn = draw(p.log().expand(4000, -1), sampler(0, 0))
    share = drawn.bincount(minlength=4) / 4000
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt()).all())
    assert torch.equal(drawn, draw(p.log().expand(4000, -1), sampler(0, 0)))
    assert not torch.equal(drawn, draw(p.log().expand(4000, -1), sampler(0, 1)))
    assert not torch.equal(drawn, draw(p.log().expand(4000, -1), sampler(1, 0)))


def test_gradients_do_not_pile_up(model: Path) -> None:
    live, _ = teachers.load(model)
    information = Information(live)
    information.add(torch.tensor([3, 4, 5]), sampler(0, 0))
    assert all(parameter.grad is None for parameter in live.parameters())
