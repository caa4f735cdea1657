"""The losses, against their dense definitions over [tokens, vocabulary] in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusion import distill
from fusion.fused import Fused

N, V, K = 60, 40, 6


def dense(name: str, logits: Tensor, p: Tensor, ids: Tensor) -> Tensor:
    """The definition: both distributions in buckets, made from a softmax over the whole vocabulary."""
    q_all = logits.softmax(-1)
    rows = []
    for row in range(len(logits)):
        named = dict.fromkeys(ids[row].tolist(), 0.0)
        for i, mass in zip(ids[row].tolist(), p[row, :-1].tolist(), strict=True):
            named[i] += mass
        others = [i for i in range(logits.shape[1]) if i not in named]
        buckets = [(mass, q_all[row, i]) for i, mass in named.items()] + [(float(p[row, -1]), q_all[row, others].sum())]
        rows.append(sum((bucket(name, mass, q) for mass, q in buckets), torch.zeros((), dtype=logits.dtype)))
    return torch.stack(rows)


def bucket(name: str, p: float, q: Tensor) -> Tensor:
    if name == "forward_kl":
        return p * (math.log(p) - q.log()) if p else 0 * q
    if name == "reverse_kl":
        return q * (q.log() - math.log(max(p, distill.LEAST)))
    m = (p + q) / 2
    return ((p * (math.log(p) - m.log()) if p else 0) + q * (q.log() - m.log())) / 2


def example(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(N, V, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)])
    p = torch.randn(N, K + 1, generator=generator, dtype=torch.float64).softmax(-1)
    p[0] = torch.eye(K + 1, dtype=torch.float64)[0]  # a label
    ids[0] = ids[0, 0]
    ids[1, 3:], p[1, 3:-1] = ids[1, 0], 0.0  # fewer than k
    p[2, -1] = 0.0  # no tail
    p[3] = torch.eye(K + 1, dtype=torch.float64)[-1]  # nothing but a tail
    p /= p.sum(-1, keepdim=True)
    return logits.to(dtype).requires_grad_(), p.to(dtype), ids


def sparse(name: str, logits: Tensor, p: Tensor, ids: Tensor) -> Tensor:
    log_q, _ = distill.bucket_log_probs(logits, ids, torch.zeros(len(logits), dtype=torch.int64))
    return distill.DIVERGENCES[name](p, log_q, ids)


@pytest.mark.parametrize("name", distill.DIVERGENCES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_sparse_divergences_equal_the_dense_ones(name: str, dtype: torch.dtype, tolerance: float) -> None:
    logits, p, ids = example(dtype)
    exact = logits.detach().double().requires_grad_()
    found, wanted = sparse(name, logits, p, ids), dense(name, exact, p.double(), ids)
    assert torch.allclose(found.double(), wanted, atol=tolerance, rtol=tolerance)
    if name != "reverse_kl":  # whose p is floored, and then sums to more than 1
        assert (found >= -tolerance).all()
    (a,) = torch.autograd.grad(found.sum(), logits)
    (b,) = torch.autograd.grad(wanted.sum(), exact)
    assert torch.allclose(a.double(), b, atol=3 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", distill.DIVERGENCES)
def test_they_stay_finite_and_exact_where_the_student_is_sure(name: str) -> None:
    """Logits of +-100: the student's tail is e^-200, all, or anything between."""
    generator = torch.Generator().manual_seed(1)
    logits = (200.0 * torch.randint(0, 2, (N, V), generator=generator) - 100).float()
    _, p, ids = example(torch.float32)
    logits[10] = -100.0
    logits[10, ids[10, 0]] = 100.0  # all at a named token
    logits[11, ids[11]] = -100.0
    logits[11, (ids[11, 0] + 1) % V] = 100.0  # all in the tail
    p[12, -1] = 1e-30
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    found, wanted = sparse(name, logits, p, ids), dense(name, exact, p.double(), ids)
    assert torch.isfinite(found).all()
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-6)
    (a,) = torch.autograd.grad(found.sum(), logits)
    (b,) = torch.autograd.grad(wanted.sum(), exact)
    assert torch.isfinite(a).all()
    assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", distill.DIVERGENCES)
def test_a_student_that_says_the_same_has_divergence_0_and_is_the_minimum(name: str) -> None:
    logits, _, ids = example()
    ids[0] = torch.arange(K)
    ids[1] = torch.arange(K)
    q = logits.softmax(-1).detach()
    p = torch.cat([q.gather(-1, ids), 1 - q.gather(-1, ids).sum(-1, keepdim=True)], -1)
    same = sparse(name, logits, p, ids)
    assert torch.allclose(same, torch.zeros(N, dtype=torch.float64), atol=1e-12)
    (gradient,) = torch.autograd.grad(same.sum(), logits)
    assert gradient.abs().max() < 1e-12
    assert (sparse(name, logits + torch.linspace(0, 3, V), p, ids) > 0).all()


def test_js_is_at_most_log_2_and_does_not_care_who_is_who() -> None:
    logits, p, ids = example(scale=30.0)
    js = sparse("js", logits, p, ids)
    assert (js <= math.log(2) + 1e-12).all() and js.max() > 0.5
    row = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    other = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    ids = torch.tensor([[0, 1]])
    there, back = (sparse("js", q.log(), p, ids) for p, q in ((row, other), (other, row)))
    assert float(there) == pytest.approx(float(back))


def test_the_gradient_is_that_of_the_function() -> None:
    logits, _, ids = example()
    target = torch.arange(3)
    assert torch.autograd.gradcheck(
        lambda z: distill.bucket_log_probs(z, ids[:3], target), logits[:3].detach().requires_grad_()
    )


def test_a_sure_student_still_feels_its_tail() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    divergence = sparse("forward_kl", logits, torch.tensor([[0.7, 0.3]]), torch.tensor([[0]]))
    divergence.sum().backward()
    assert float(divergence.detach()) == pytest.approx(0.3 * 60, rel=0.1)
    assert logits.grad is not None and logits.grad[0].tolist() == pytest.approx([0.3, -0.1, -0.1, -0.1], abs=1e-5)


def test_a_label_costs_its_cross_entropy() -> None:
    logits, _, _ = example()
    target = torch.arange(N) % V
    label = torch.eye(1, K + 1, dtype=torch.float64).expand(N, -1)
    found = sparse("forward_kl", logits, label, target[:, None].expand(N, K))
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, target, reduction="none"))


# ---------------------------------------------------------------------------------------------------------------------
# Memory


class Large(TorchDispatchMode):
    """Collects the storages of as many numbers as the logits have that operations return."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.found = numbers, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.numel() >= self.numbers:
                self.found.add(tensor.untyped_storage().data_ptr())
        return result


def large(step: Callable[[], Any]) -> tuple[set[int], Any]:
    with Large(N * V) as seen:
        result = step()
    return seen.found, result


@pytest.mark.parametrize("name", distill.DIVERGENCES)
def test_nothing_as_large_as_the_logits_is_made_but_their_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(distill.CHUNK, "cpu", 8 * V)
    logits, _, _ = example(torch.float32)
    loss = fusion_loss(name, 0.5)
    batch = {**loss.about(np.arange(N)), "target": torch.arange(N) % V}
    saved: list[Tensor] = []
    given = {logits.untyped_storage().data_ptr()}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        made, (total, _) = large(lambda: loss.loss(logits, batch["target"], batch))
    assert not made - given
    assert {tensor.data_ptr() for tensor in saved if tensor.numel() >= N * V} == {logits.data_ptr()}
    made, (gradient,) = large(lambda: torch.autograd.grad(total, logits))
    assert made - given == {gradient.untyped_storage().data_ptr()}


def test_chunks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1, 7 * V, 1 << 20):
        monkeypatch.setitem(distill.CHUNK, "cpu", size)
        logits, p, ids = example(torch.float32)
        divergence = sparse("js", logits, p, ids)
        found.append((divergence.detach(), *torch.autograd.grad(divergence.sum(), logits)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The loss of a batch


def make_fused(ids: Tensor, p: Tensor) -> Fused:
    """Row 0 is a label, every fourth has no weight."""
    weight = np.arange(N) % 4 != 1
    return Fused(
        ids.numpy().astype(np.uint8),
        p[:, :-1].numpy().astype(np.float16),
        p[:, -1].numpy().astype(np.float16),
        weight,
        weight & (np.arange(N) > 0),
    )


def fusion_loss(name: Any, lambda_: float) -> distill.FusionLoss:
    _, p, ids = example()
    return distill.FusionLoss(make_fused(ids, p), lambda_, name, "test")


def whole_batch(loss: distill.Objective) -> dict[str, Any]:
    return {**loss.about(np.arange(N)), "target": torch.arange(N) % V}


@pytest.mark.parametrize("name", distill.DIVERGENCES)
def test_lambda_weighs_the_two_parts(name: str) -> None:
    logits, p, ids = example(torch.float32)
    loss = fusion_loss(name, 0.25)
    batch = whole_batch(loss)
    total, parts = loss.loss(logits, batch["target"], batch)
    clm = torch.nn.functional.cross_entropy(logits, batch["target"])
    assert float(parts["clm"].detach()) == pytest.approx(float(clm.detach()))
    exact = logits.detach().double()
    rows = dense(name, exact, p.double(), ids)
    # The row of a label is learnt by its cross-entropy under every divergence.
    rows[0] = torch.nn.functional.cross_entropy(exact[0], ids[0, 0])
    kept = rows[torch.arange(N) % 4 != 1].mean()
    assert float(parts["fusion"].detach()) == pytest.approx(float(kept), rel=2e-3)
    assert float((total - 0.25 * parts["clm"] - 0.75 * parts["fusion"]).detach()) == pytest.approx(0, abs=1e-6)
    assert float(parts["aligned"]) == pytest.approx((N * 3 / 4 - 1) / N)


def test_a_target_is_a_distribution_whatever_half_precision_left() -> None:
    batch = fusion_loss("forward_kl", 0.5).about(np.arange(N))
    assert torch.allclose(batch["fused_probs"].sum(-1), torch.ones(N), atol=1e-6)
    empty = Fused(
        *(np.zeros((2, 3), kind) for kind in (np.uint8, np.float16)), np.zeros(2, np.float16), *np.zeros((2, 2), bool)
    )
    for name in distill.DIVERGENCES:
        loss = distill.FusionLoss(empty, 0.5, name, "")
        batch = {**loss.about(np.arange(2)), "target": torch.tensor([1, 2])}
        logits = torch.randn(2, 9, requires_grad=True)
        total, parts = loss.loss(logits, batch["target"], batch)
        total.backward()
        assert float(parts["fusion"].detach()) == 0 and float(parts["aligned"]) == 0
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_lambda_1_is_the_text_alone_to_the_bit() -> None:
    logits, _, _ = example(torch.float32)
    for name in distill.DIVERGENCES:
        loss = fusion_loss(name, 1.0)
        batch = whole_batch(loss)
        total, parts = loss.loss(logits, batch["target"], batch)
        alone, _ = distill.CausalLM().loss(logits, batch["target"], batch)
        assert torch.equal(total, alone) and float(parts["fusion"]) > 0
        gradients = [torch.autograd.grad(value, logits)[0] for value in (total, alone)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", [distill.CausalLM(), *(fusion_loss(name, 0.3) for name in distill.DIVERGENCES)])
def test_the_pieces_of_a_step_add_up_to_it(loss: distill.Objective) -> None:
    logits, _, _ = example(torch.float64)
    batch = whole_batch(loss)
    total, parts = loss.loss(logits, batch["target"], batch)
    (wanted,) = torch.autograd.grad(total, logits)
    pieces = [
        {name: value[rows] for name, value in batch.items()}
        for rows in (slice(0, 1), slice(1, 2), slice(2, 2), slice(2, N))
    ]
    counted = [loss.totals(piece) for piece in pieces]
    sums = {name: sum(float(of[name]) for of in counted[:2] + counted[3:]) for name in counted[0]}
    totals = {name: torch.tensor(value) for name, value in sums.items()}
    found = [loss.loss(logits[rows], piece["target"], {**piece, "totals": totals}) for rows, piece in zip(
        (slice(0, 1), slice(1, 2), slice(2, 2), slice(2, N)), pieces, strict=True
    )]  # fmt: skip
    assert float(sum(value for value, _ in found).detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    for name, value in parts.items():
        assert float(sum(more[name].detach() for _, more in found)) == pytest.approx(float(value.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(sum(value for value, _ in found), logits)
    assert torch.allclose(gradient, wanted, atol=1e-8)


@pytest.mark.parametrize("name", distill.DIVERGENCES)
def test_descending_any_divergence_ends_at_the_target(name: str) -> None:
    _, p, ids = example(torch.float32)
    p, ids = p[4:8], ids[4:8]
    logits = torch.zeros(4, V, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(120):
        optimizer.zero_grad()
        sparse(name, logits, p, ids).sum().backward()
        optimizer.step()
    assert torch.allclose(logits.softmax(-1).gather(-1, ids), p[:, :-1], atol=2e-3)
