"""Losses against their dense definitions, and fused targets against a slow transcription."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fusion import corpus, distill, teachers, train, vocabulary
from fusion.errors import FusionError

DOCUMENTS = [{"prompt": f"{a} and {b} is", "answer": f" {b}{a}\n"} for a in ("red", "blue") for b in ("two", "four")]
DOCUMENTS += [{"text": "the red one and the blue one, two é"}, {"prompt": "no answer", "answer": ""}]


def dense_kl(logits, ids, probs, tail):
    """The definition over [tokens, vocabulary]: both distributions in k + 1 buckets."""
    q = logits.softmax(-1)
    named = torch.zeros_like(q, dtype=torch.bool).scatter(-1, ids, True)
    p = torch.zeros_like(q).scatter_add(-1, ids, probs)
    inside = torch.where(p > 0, p * (p.clamp(min=1e-300 if p.dtype == torch.float64 else 1e-38) / q).log(), 0.0).sum(-1)
    rest = torch.where(named, 0.0, q).sum(-1)
    return inside + torch.xlogy(tail, tail) - tail * rest.log()


def example(dtype, n: int = 50, v: int = 40, k: int = 6):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, v, generator=generator, dtype=dtype)
    ids = torch.stack([torch.randperm(v, generator=generator)[:k] for _ in range(n)])
    buckets = torch.randn(n, k + 1, generator=generator, dtype=dtype).softmax(-1)
    probs, tail = buckets[:, :k].clone(), buckets[:, k].clone()
    probs[0], tail[0] = torch.eye(k, dtype=dtype)[0], 0.0  # a one-hot row
    ids[1, 3:], probs[1, 3:] = ids[1, 0], 0.0  # a row of fewer than k
    probs[1, :3] *= (1 - tail[1]) / probs[1, :3].sum()
    return logits.requires_grad_(), ids, probs, tail


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_sparse_divergence_equals_the_dense_one(dtype, tolerance: float) -> None:
    logits, ids, probs, tail = example(dtype)
    sparse = distill.sparse_kl(logits, logits.logsumexp(-1), ids, probs, tail)
    dense = dense_kl(logits, ids, probs, tail)
    assert torch.allclose(sparse, dense, atol=tolerance, rtol=tolerance)
    assert (sparse >= -tolerance).all()
    (a,) = torch.autograd.grad(sparse.sum(), logits)
    (b,) = torch.autograd.grad(dense.sum(), logits)
    assert torch.allclose(a, b, atol=tolerance)


def test_the_divergence_of_a_model_from_itself_is_zero() -> None:
    logits, ids, _, _ = example(torch.float64)
    q = logits.softmax(-1).detach()
    probs = q.gather(-1, ids)
    probs[1, 3:] = 0
    divergence = distill.sparse_kl(logits, logits.logsumexp(-1), ids, probs, 1 - probs.sum(-1))
    assert torch.allclose(divergence, torch.zeros(50, dtype=torch.float64), atol=1e-12)


def test_a_sure_student_still_feels_its_tail() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    ids, probs, tail = torch.tensor([[0]]), torch.tensor([[0.7]]), torch.tensor([0.3])
    divergence = distill.sparse_kl(logits, logits.logsumexp(-1), ids, probs, tail)
    divergence.sum().backward()
    assert float(divergence.detach()) == pytest.approx(0.3 * 60, rel=0.1)
    assert logits.grad is not None and logits.grad[0].tolist() == pytest.approx([0.3, -0.1, -0.1, -0.1], abs=1e-5)


def test_a_one_hot_row_costs_what_the_next_token_costs() -> None:
    logits, _, _, _ = example(torch.float64)
    target = torch.arange(50) % 40
    one_hot = torch.eye(1, 6, dtype=torch.float64).expand(50, 6)
    log_sum = logits.logsumexp(-1)
    divergence = distill.sparse_kl(logits, log_sum, target[:, None].expand(50, 6), one_hot, torch.zeros(50).double())
    assert torch.allclose(divergence, torch.nn.functional.cross_entropy(logits, target, reduction="none"))


def test_lambda_weighs_the_two_parts() -> None:
    logits, ids, probs, tail = example(torch.float32)
    weight = (torch.arange(50) % 2).float()
    fused = distill.Fused(ids.numpy().astype(np.int32), probs.numpy(), tail.numpy(), weight.numpy())
    loss = distill.FusionLoss(fused, 0.25, "test")
    target = torch.arange(50) % 40
    total, parts = loss.loss(logits, target, loss.about(np.arange(50)))
    assert float(parts["clm"].detach()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, target).detach())
    )
    kept = dense_kl(logits, ids, probs, tail)[weight > 0].mean()
    assert float(parts["fusion"].detach()) == pytest.approx(float(kept.detach()), rel=1e-5)
    assert float((total - 0.25 * parts["clm"] - 0.75 * parts["fusion"]).detach()) == pytest.approx(0, abs=1e-6)


def test_mix_sums_equal_ids_and_keeps_the_best() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        probs = rng.random((200, 5)) * (rng.random((200, 5)) > 0.3)
        weight = rng.random(200) * (rng.random(200) > 0.3)
        parts.append((weight, rng.integers(0, 12, (200, 5)), probs / 5))
    ids, probs, tail, taught = distill.mix(parts, 4)
    for row in range(200):
        total = sum(weight[row] for weight, _, _ in parts)
        summed: dict[int, float] = {}
        for weight, i, p in parts:
            for token, mass in zip(i[row].tolist(), p[row].tolist(), strict=True):
                summed[token] = summed.get(token, 0.0) + (weight[row] / total if total else 0.0) * mass
        best = sorted(summed.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
        best = [(token, mass) for token, mass in best if mass > 0]
        assert taught[row] == bool(best)
        assert ids[row, : len(best)].tolist() == [token for token, _ in best]
        assert probs[row].tolist() == pytest.approx([mass for _, mass in best] + [0.0] * (4 - len(best)))
        assert tail[row] == pytest.approx(1 - probs[row].sum())


def test_choose_takes_the_least_bits_or_weighs_by_them() -> None:
    bits = np.asarray([[1.0, 2.0, 1.0, np.nan], [2.0, 1.0, 1.0, np.nan]])
    assert distill.choose(bits, "min_ce").tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    low = 1 / (1 + np.e)
    assert distill.choose(bits, "avg_ce")[0] == pytest.approx([1 - low, low, 0.5, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Two models with two tokenizers


def save(folder: Path, architecture: str, vocab_size: int, seed: int) -> Path:
    texts = [corpus.text_of(document) for document in DOCUMENTS] * 3
    tokenizer = train.train_tokenizer(texts, vocab_size)
    sizes = {"width": 16, "layers": 1, "heads": 2, "context": 32}
    model = train.new_model(architecture, sizes, tokenizer, seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[distill.Reading, list[distill.Source]]:
    readings, stores = [], []
    for number, (architecture, size) in enumerate([("llama", 290), ("gpt_neox", 270)]):
        folder = save(tmp_path_factory.mktemp(architecture), architecture, size, number)
        tokenizer = teachers.load_tokenizer(folder)
        vocab = vocabulary.read_vocabulary(tokenizer)
        readings.append(distill.read(corpus.encode(tokenizer, DOCUMENTS), vocab, DOCUMENTS))
        stores.append(
            teachers.write_store(folder, DOCUMENTS, 5, tmp_path_factory.mktemp("store"), lambda done, total: None)
        )
    sources = [
        distill.make_source(name, store, reading, readings[0].vocabulary)
        for name, store, reading in zip(("target", "teacher"), stores, readings, strict=True)
    ]
    return readings[0], sources


def test_bits_per_byte_count_the_answers_bytes(world) -> None:
    _, sources = world
    for source in sources:
        bits = distill.bits_per_byte(source, "answers")
        tokens, vocab = source.reading.tokens, source.reading.vocabulary
        for number in range(len(DOCUMENTS)):
            own = range(tokens.starts[number] + 1, tokens.starts[number + 1] - 1)
            own = [i for i in own if tokens.answer[i]]
            size = sum(len(vocab.tokens[tokens.ids[i]] or b"") for i in own)
            if size:
                assert bits[number] == pytest.approx(-sum(source.store.true[i] for i in own) / np.log(2) / size)
            else:
                assert np.isnan(bits[number])
        assert np.isnan(bits[-1]) and np.isfinite(distill.bits_per_byte(source, "all")).all()


def test_the_target_as_its_only_source_gives_back_its_own_distribution(world) -> None:
    target, sources = world
    fused, report = distill.fuse(target, sources[:1], "min_ce", "all", 5, "next_token")
    counted = target.counted("all")
    assert report["aligned"] == 1 and report["fallback"] == 0
    assert (fused.ids[counted] == sources[0].store.ids[counted]).all()
    assert np.allclose(fused.probs[counted], np.exp(sources[0].store.log_probs[counted].astype(float)), atol=1e-3)
    assert np.allclose(fused.probs.sum(-1) + fused.tail, 1)


@pytest.mark.parametrize("fallback", ["next_token", "drop"])
def test_a_teacher_of_another_vocabulary_is_carried_over_by_bytes(world, fallback: str) -> None:
    target, (_, teacher) = world
    fused, report = distill.fuse(target, [teacher], "min_ce", "all", 5, fallback)
    aligned, boundary = distill.align_source(teacher, target)
    counted = target.counted("all")
    assert 0 < report["aligned"] < report["sources"]["teacher"]["boundary"] <= 1
    assert report["fallback"] == pytest.approx(1 - report["aligned"])
    assert (boundary | (aligned < 0)).all()
    theirs, ours = teacher.reading.vocabulary.tokens, target.vocabulary.tokens
    for row in np.flatnonzero(counted).tolist():
        if aligned[row] < 0:
            assert fused.ids[row].tolist() == [target.tokens.ids[row]] * 5
            assert fused.probs[row].tolist() == [1, 0, 0, 0, 0] and fused.tail[row] == 0
            assert fused.weight[row] == (0 if fallback == "drop" else 1)
            continue
        at = aligned[row]
        assert theirs[teacher.reading.tokens.ids[at]] == ours[target.tokens.ids[row]]
        stated = np.exp(teacher.store.log_probs[at].astype(float))
        wanted = {
            theirs[i]: mass
            for i, mass in zip(teacher.store.ids[at].tolist(), stated.tolist(), strict=True)
            if theirs[i] in ours and theirs[i] is not None
        }
        got = {ours[i]: mass for i, mass in zip(fused.ids[row], fused.probs[row], strict=True) if mass > 0 and ours[i]}
        assert got == pytest.approx(wanted, abs=2e-3)
        assert fused.probs[row].sum() + fused.tail[row] == pytest.approx(1)


def test_documents_are_taken_from_the_better_source(world) -> None:
    target, sources = world
    _, report = distill.fuse(target, sources, "min_ce", "answers", 5, "next_token")
    bits = [distill.bits_per_byte(source, "answers")[:-1] for source in sources]
    share = report["sources"]["target"]["weight"]
    assert share == pytest.approx((bits[0] <= bits[1]).mean())
    assert report["positions"] == target.counted("answers").sum()
    _, averaged = distill.fuse(target, sources, "avg_ce", "answers", 5, "next_token")
    # Where the teacher is not aligned the target still is; the last document has no byte to compare sources by.
    without = target.counted("answers")[target.tokens.starts[-2] :].sum()
    assert averaged["fallback"] == pytest.approx(without / averaged["positions"])
    assert sum(source["weight"] for source in averaged["sources"].values()) == pytest.approx(1)


def test_a_document_that_is_not_given_back_is_named(world) -> None:
    from tokenizers import normalizers

    tokenizer = train.train_tokenizer(["ab"], 258)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    documents = [{"text": "ab"}, {"text": "AB"}]
    vocab = vocabulary.read_vocabulary(tokenizer)
    with pytest.raises(FusionError, match=r"document 2: tokenizer .* does not give back"):
        distill.read(corpus.encode(tokenizer, documents), vocab, documents)
