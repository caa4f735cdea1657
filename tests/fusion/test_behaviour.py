"""Kinship from behaviour: agreement beyond chance, flips, and the divergence of next-token distributions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion import corpus, new_model, teachers
from fusion.errors import FusionError
from fusion.kinship import next_token
from fusion.kinship.behaviour import BEHAVIOUR, Answers, capa, error_consistency, flips, positive_flips
from fusion.kinship.probed import Divergence, Probed


def answers(right: Any, probs: Any = None, options: Any = None, correct: Any = None) -> Answers:
    scores = np.asarray(right, np.float64)
    items = scores.shape[1]
    return Answers(
        scores,
        None if probs is None else np.asarray(probs, np.float64),
        np.zeros(items, int) if options is None else np.asarray(options),
        np.full(items, -1) if correct is None else np.asarray(correct),
    )


def multiple_choice(models: int, items: int, seed: int) -> Answers:
    """Random models over items of 2 to 5 choices, every seventh item without any."""
    rng = np.random.default_rng(seed)
    options = np.where(np.arange(items) % 7 == 6, 0, rng.integers(2, 6, items))
    probs = rng.random((models, items, 5)) * (np.arange(5) < options[:, None])
    probs /= np.maximum(probs.sum(-1, keepdims=True), 1e-300)
    correct = np.where(options > 0, rng.integers(0, np.maximum(options, 1)), -1)
    return Answers((rng.random((models, items)) < 0.6).astype(float), probs, options, correct)


# -------------------------------------------------------------------------------------------------------------- records


def plain_capa(found: Answers, a: int, b: int) -> float:
    assert found.probs is not None
    observed, right, other, blind = [], [], [], []
    for item, options in enumerate(found.options.tolist()):
        if options:
            first, second = found.probs[a, item, :options].tolist(), found.probs[b, item, :options].tolist()
            observed.append(sum(p * q for p, q in zip(first, second, strict=True)))
            right.append(first[found.correct[item]])
            other.append(second[found.correct[item]])
            blind.append(1 / (options - 1))
    mean = [sum(values) / len(values) for values in (observed, right, other, blind)]
    expected = mean[1] * mean[2] + (1 - mean[1]) * (1 - mean[2]) * mean[3]
    return (mean[0] - expected) / (1 - expected)


def test_capa_is_as_defined() -> None:
    found = multiple_choice(3, 60, 1)
    for a, b in ((0, 1), (1, 2), (2, 2)):
        assert capa(found, a, b) == pytest.approx(plain_capa(found, a, b), abs=1e-12)
    assert capa(found, 0, 2) == capa(found, 2, 0)


def one_hot(choices: list[list[int]], options: int) -> np.ndarray:
    return np.eye(options)[np.asarray(choices)]


def test_capa_of_the_same_certain_choices_is_1_and_of_ones_that_never_agree_below_0() -> None:
    correct = [0, 1, 2, 3, 0, 1]
    found = answers(
        np.zeros((3, 6)),
        one_hot([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2], [1, 2, 3, 3, 0, 1]], 4),
        [4] * 6,
        correct,
    )
    assert capa(found, 0, 1) == pytest.approx(1, abs=1e-12)
    # Both right on half: chance agrees on 1/4 + 1/4 * 1/3, and they agree on nothing.
    assert capa(found, 0, 2) == pytest.approx(-(1 / 3) / (2 / 3), abs=1e-12)


def test_capa_of_independent_models_is_near_0_whatever_their_accuracy() -> None:
    rng = np.random.default_rng(2)
    n, options = 20_000, 4
    choices = []
    for accuracy in (0.9, 0.5):
        wrong = rng.integers(1, options, n)
        choices.append(np.where(rng.random(n) < accuracy, 0, wrong).tolist())
    found = answers(np.zeros((2, n)), one_hot(choices, options), [options] * n, [0] * n)
    value = capa(found, 0, 1)
    assert value is not None and abs(value) < 4 / np.sqrt(n)
    assert value == pytest.approx(plain_capa(found, 0, 1), abs=1e-12)


def test_capa_is_undefined_without_choices_and_where_both_are_always_right() -> None:
    assert capa(answers([[1, 0], [1, 1]]), 0, 1) is None
    none = answers([[1], [1]], np.zeros((2, 1, 3)))
    assert capa(none, 0, 1) is None
    single = answers([[1], [1]], np.ones((2, 1, 1)), [1], [0])
    assert capa(single, 0, 1) is None
    perfect = answers([[1, 1], [1, 1]], one_hot([[0, 1], [0, 1]], 2), [2, 2], [0, 1])
    assert capa(perfect, 0, 1) is None


def test_error_consistency_is_as_defined() -> None:
    found = multiple_choice(2, 80, 3)
    pairs = list(zip(found.right[0].tolist(), found.right[1].tolist(), strict=True))
    observed = sum(p == q for p, q in pairs) / len(pairs)
    first, second = (sum(own) / len(pairs) for own in zip(*pairs, strict=True))
    expected = first * second + (1 - first) * (1 - second)
    assert error_consistency(found, 0, 1) == pytest.approx((observed - expected) / (1 - expected), abs=1e-12)


def test_error_consistency_of_the_same_opposite_and_independent_errors() -> None:
    half = [1, 0] * 8
    quarters = [1, 1, 0, 0] * 4
    found = answers([half, half, [1 - score for score in half], quarters, [1] * 16])
    assert error_consistency(found, 0, 1) == 1
    assert error_consistency(found, 0, 2) == -1
    assert error_consistency(found, 0, 3) == 0
    assert error_consistency(found, 0, 4) == 0
    assert error_consistency(found, 4, 4) is None


def test_a_score_in_between_is_the_mean_over_tries() -> None:
    """Two models with pass rates of n tries agree as all pairs of their tries do on average."""
    rng = np.random.default_rng(4)
    tries = rng.random((2, 30, 4)) < rng.random((1, 30, 1))
    rates = answers(tries.mean(-1))
    every = [(i, s, t) for i in range(30) for s in range(4) for t in range(4)]
    paired = answers([[tries[0, i, s] for i, s, _ in every], [tries[1, i, t] for i, _, t in every]])
    assert error_consistency(rates, 0, 1) == pytest.approx(error_consistency(paired, 0, 1), abs=1e-12)
    assert flips(rates, 0, 1) == pytest.approx(flips(paired, 0, 1), abs=1e-12)


def test_flips_count_what_one_alone_gets_right() -> None:
    found = answers([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
    assert positive_flips(found, 0, 1) == 2 / 5
    assert positive_flips(found, 1, 0) == 1 / 5
    assert flips(found, 0, 1) == flips(found, 1, 0) == pytest.approx(3 / 5)
    assert flips(found, 1, 1) == 0


def test_no_items_define_nothing() -> None:
    nothing = answers(np.zeros((2, 0)))
    assert [BEHAVIOUR[name].value(nothing, 0, 1) for name in ("capa", "error_consistency", "flips")] == [None] * 3


@pytest.mark.parametrize("score", [np.nan, -0.1, 1.5, np.inf])
def test_a_score_that_is_none_is_refused(score: float) -> None:
    with pytest.raises(FusionError, match="answer of model 1 to item 2: its score is"):
        answers([[1, 1, 1], [0, 0, score]])


def test_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(FusionError, match=r"model 0 to item 1: the probabilities of its choices sum to 0\.5"):
        answers([[1, 1]], [[[0.5, 0.5], [0.25, 0.25]]], [2, 2], [0, 0])
    with pytest.raises(FusionError, match="sum to nan"):
        answers([[1]], [[[np.nan, 1]]], [2], [0])


# ---------------------------------------------------------------------------------------------------- next-token say


def dense_js(p: np.ndarray, q: np.ndarray) -> float:
    mean = (p + q) / 2
    return sum(
        float((own[own > 0] * np.log2(own[own > 0] / mean[own > 0])).sum()) / 2
        for own in (p.astype(float), q.astype(float))
    )


def known(p: np.ndarray, k: int, number: np.ndarray) -> next_token.Known:
    """The k most probable of each row's tokens, by the numbers they go by."""
    order = np.argsort(-p, axis=1)[:, :k]
    probs = np.take_along_axis(p, order, 1)
    return number[order], probs, np.maximum(1 - probs.sum(1), 0.0)


def distributions(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).gamma(0.3, size=(rows, width)) + 1e-12
    return drawn / drawn.sum(1, keepdims=True)


def test_js_of_whole_distributions_is_the_dense_one() -> None:
    p, q = distributions(50, 12, 1), distributions(50, 12, 2)
    every = np.arange(12)
    found = next_token.js(known(p, 12, every), known(q, 12, every))
    assert np.allclose(found, [dense_js(*rows) for rows in zip(p, q, strict=True)], atol=1e-12)


def least_js(p: dict[Any, float], q: dict[Any, float], s: float, t: float) -> float:
    """The least divergence of distributions that name p and q and leave s and t open."""
    shared = [(p[token], q[token]) for token in sorted(set(p) & set(q))]
    a, b = (sum(own[token] for token in set(own) - set(other)) for own, other in ((p, q), (q, p)))
    rest = [(a + s, b + t)] if a * b <= s * t else [(a, t), (s, b)]
    return dense_js(*(np.asarray([pair[side] for pair in shared + rest]) for side in (0, 1)))


@pytest.mark.parametrize("k", [1, 3, 6, 11])
def test_js_of_what_is_named_is_the_least_that_it_can_be(k: int) -> None:
    p, q = distributions(30, 12, 1), distributions(30, 12, 2)
    every = np.arange(12)
    found = next_token.js(known(p, k, every), known(q, k, every))
    for row, value in enumerate(found.tolist()):
        named = [{i: own[row][i] for i in np.argsort(-own[row])[:k].tolist()} for own in (p, q)]
        assert value == pytest.approx(least_js(*named, *(1 - sum(own.values()) for own in named)), abs=1e-9)
        assert value <= dense_js(p[row], q[row]) + 1e-9


@pytest.mark.parametrize(
    "shares", [(0.3, 0.1, 0.4, 0.5), (0.6, 0.7, 0.2, 0.1), (0.5, 0.0, 0.3, 0.7), (0.9, 0.9, 0.0, 0.0)]
)
def test_no_sharing_of_what_is_open_has_a_lesser_divergence(shares: tuple[float, float, float, float]) -> None:
    a, b, s, t = shares
    first, second = (
        (np.asarray([[0, number]]), np.asarray([[1 - own - rest, own]]), np.asarray([rest]))
        for number, own, rest in ((1, a, s), (2, b, t))
    )
    grid = np.linspace(0, 1, 51)
    every = [
        dense_js(np.asarray([1 - a - s, a, y * s, s - y * s]), np.asarray([1 - b - t, x * t, b, t - x * t]))
        for x in grid
        for y in grid
    ]
    found = float(next_token.js(first, second)[0])
    assert found <= min(every) + 1e-12 and found == pytest.approx(min(every), abs=1e-3)


def test_js_is_0_of_the_same_1_of_others_and_knows_no_order() -> None:
    p, q = distributions(20, 8, 1), distributions(20, 8, 2)
    every = np.arange(8)
    same = known(p, 5, every)
    assert np.abs(next_token.js(same, same)).max() == 0
    certain = [(np.full((1, 1), token), np.ones((1, 1)), np.zeros(1)) for token in (0, 1, -1)]
    assert next_token.js(certain[0], certain[1]).tolist() == [1]
    # A token that the other vocabulary lacks may stand for what the other model says in pieces.
    assert next_token.js(certain[0], certain[2]).tolist() == [0]
    swapped = next_token.js(known(q, 4, every), known(p, 5, every))
    assert np.allclose(next_token.js(known(p, 5, every), known(q, 4, every)), swapped, atol=1e-12)


def test_tokens_of_the_same_bytes_count_as_one_and_those_of_one_vocabulary_as_not_named() -> None:
    first = np.asarray([[4, 4, -1, 2]]), np.asarray([[0.4, 0.2, 0.2, 0.1]]), np.asarray([0.1])
    second = np.asarray([[4, -1, -1, 3]]), np.asarray([[0.3, 0.1, 0.0, 0.5]]), np.asarray([0.1])
    expected = least_js({4: 0.6, 2: 0.1}, {4: 0.3, 3: 0.5}, 0.3, 0.2)
    assert next_token.js(first, second) == pytest.approx(expected, abs=1e-12)


TEXTS = ["red and blue is two three", "a long one, naïve 1 2 3", "two and two is four", "blue", "", "日本 and red"]
DOCUMENTS = [{"text": text} for text in TEXTS] + [{"prompt": "red is", "answer": " blue and"}]


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of one tokenizer, and one of another."""
    own = new_model.train_tokenizer(TEXTS * 4, 290)
    other = new_model.train_tokenizer(["and red is blue and is two"] * 4, 275)
    sizes = {"width": 16, "layers": 2, "heads": 2, "context": 64}
    found = {}
    for name, tokenizer, architecture in (("a", own, "llama"), ("b", own, "gpt2"), ("c", other, "gpt_neox")):
        model = new_model.new_model(architecture, sizes, tokenizer, seed=len(found))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(5)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


def heard(model: Path, folder: Path, top_k: int) -> next_token.Said:
    store = teachers.write_store([model], DOCUMENTS, top_k, folder, nothing)
    return next_token.said(store, teachers.load_tokenizer(model), DOCUMENTS)


Say = tuple[int, bytes, dict[bytes, float]]


def spelt(tokenizer: Any) -> list[bytes]:
    """What each token stands for; a byte that is no character alone by its spelling, which both tokenizers share."""
    content = []
    for i, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        text = tokenizer.decode([i])
        content.append((piece if "\ufffd" in text else text).encode())
    content[tokenizer.eos_token_id] = b"<end>"
    return content


def plain_says(live: Any, tokenizer: Any, text: str, top_k: int) -> list[Say]:
    """Of each prediction: the bytes before it, the token that came, and the named tokens with their probabilities."""
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    content = spelt(tokenizer)
    with torch.inference_mode():
        probs = live.double()(torch.tensor([ids])).logits[0, :-1].softmax(-1)
    # In a byte-level spelling each byte is a character.
    sizes = [len(tokenizer.convert_ids_to_tokens(i)) for i in ids]
    says = []
    for at in range(1, len(ids)):
        values, best = probs[at - 1].topk(top_k)
        named = {content[i]: p for i, p in zip(best.tolist(), values.tolist(), strict=True)}
        says.append((sum(sizes[:at]), content[ids[at]], named))
    return says


def plain_divergence(first: Path, second: Path, top_k: int) -> tuple[float, float]:
    values, most = [], [0, 0]
    loaded = [teachers.load(model) for model in (first, second)]
    both = set.intersection(*(set(spelt(tokenizer)) for _, tokenizer in loaded))
    for document in DOCUMENTS:
        says = [plain_says(*model, corpus.text_of(document), top_k) for model in loaded]
        most = [count + len(own) for count, own in zip(most, says, strict=True)]
        other = {before: (token, named) for before, token, named in says[1]}
        for before, token, named in says[0]:
            if before in other and other[before][0] == token:
                pair = [{t: p for t, p in own.items() if t in both} for own in (named, other[before][1])]
                values.append(least_js(*pair, *(1 - sum(own.values()) for own in pair)))
    return float(np.mean(values)), len(values) / max(most)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", "c"), ("c", "b")])
def test_models_are_compared_where_they_have_the_same_choice(
    made: dict[str, Path], tmp_path: Path, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_token, "NUMBERS", 50_000)
    monkeypatch.setattr(corpus, "DOCUMENTS", 3)
    found = next_token.divergence(heard(made[first], tmp_path / "1", 100), heard(made[second], tmp_path / "2", 100))
    bits, aligned = plain_divergence(made[first], made[second], 100)
    assert found.bits == pytest.approx(bits, abs=2e-3) and bits > 0.05
    assert found.aligned == pytest.approx(aligned, abs=1e-12)
    assert (aligned == 1) == ("c" not in (first, second))


def test_a_model_does_not_diverge_from_itself(made: dict[str, Path], tmp_path: Path) -> None:
    said = heard(made["a"], tmp_path, 8)
    assert next_token.divergence(said, said) == Divergence(0.0, 1.0)


def test_more_named_tokens_show_more_of_the_divergence(made: dict[str, Path], tmp_path: Path) -> None:
    few, many = (
        next_token.divergence(heard(made["a"], tmp_path / f"a{k}", k), heard(made["b"], tmp_path / f"b{k}", k)).bits
        for k in (2, 250)
    )
    assert few is not None and many is not None and few < many


# ----------------------------------------------------------------------------------------------------- cross-likelihood


def test_cross_likelihood_is_half_of_both_divergences() -> None:
    p, q = distributions(1, 6, 1)[0], distributions(1, 6, 2)[0]
    bits = np.asarray([[-(said * np.log2(read)).sum() for said in (p, q)] for read in (p, q)])
    facts = Probed({}, [], {(0, 1): Divergence(0.25, 0.5)}, bits)
    expected = ((p * np.log2(p / q)).sum() + (q * np.log2(q / p)).sum()) / 2
    measure = BEHAVIOUR["cross_likelihood"].value
    assert measure(facts, 0, 1) == measure(facts, 1, 0) == pytest.approx(expected, rel=1e-12)
    assert measure(facts, 1, 1) == 0
    assert BEHAVIOUR["js"].value(facts, 1, 0) == 0.25
    assert measure(Probed({}, [], {}, np.asarray([[1, np.nan], [1, np.nan]])), 0, 1) is None
