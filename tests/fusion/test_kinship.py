import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.checkpoint import Checkpoint
from fusion.errors import CheckpointError, MismatchError, RecipeError
from fusion.kinship import MEASURES
from fusion.kinship.weights import WEIGHTS, kinship
from tests.fusion.models import Memory, save_plain


def sources(base: torch.Tensor, *deltas: torch.Tensor) -> tuple[dict[str, Memory], Memory]:
    """Models base + delta, each cut into two tensors."""

    def model(vector: torch.Tensor) -> Memory:
        half = len(vector) // 2
        return Memory({"a": vector[:half].reshape(2, -1), "b": vector[half:]})

    return {f"m{i}": model(base + delta) for i, delta in enumerate(deltas)}, model(base)


# Orthogonal, of equal length and of mean zero.
U = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
V = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
BASE = torch.arange(8.0)


def test_a_correlation_of_one_half() -> None:
    models, base = sources(BASE.double(), U.double(), 0.5 * U.double() + math.sqrt(0.75) * V.double())
    [row] = kinship(models, base)
    assert (row["a"], row["b"]) == ("m0", "m1")
    assert row["pcc"] == pytest.approx(0.5, rel=1e-14)
    assert row["cosine"] == pytest.approx(0.5, rel=1e-14)
    assert row["euclidean"] == pytest.approx(math.sqrt(8), rel=1e-14)
    assert "status" not in row


def test_opposite_deltas_are_minus_one() -> None:
    models, base = sources(BASE, U, -U)
    [row] = kinship(models, base)
    assert row["pcc"] == pytest.approx(-1.0, rel=1e-15)
    assert row["cosine"] == pytest.approx(-1.0, rel=1e-15)
    assert row["euclidean"] == math.sqrt(32)


def test_pcc_and_cosine_differ_by_the_mean() -> None:
    models, base = sources(BASE, U + 2, V + 2)
    [row] = kinship(models, base)
    assert row["pcc"] == pytest.approx(0.0, abs=1e-15)
    assert row["cosine"] == pytest.approx(32 / 40, rel=1e-14)


def test_a_model_that_equals_the_base_has_a_status() -> None:
    models, base = sources(BASE, U, 0 * U)
    assert kinship(models, base) == [
        {
            "a": "m0",
            "b": "m1",
            "pcc": None,
            "cosine": None,
            "euclidean": math.sqrt(8),
            "status": "'m1' equals the base: its task vector is zero",
        }
    ]


def test_a_constant_delta_has_a_cosine_but_no_correlation() -> None:
    models, base = sources(BASE, U, 0 * U + 0.5)
    [row] = kinship(models, base)
    assert row["pcc"] is None
    assert row["cosine"] == pytest.approx(0.0, abs=1e-15)
    assert "no variance" in str(row["status"])


def test_the_same_model_twice_has_distance_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    base, delta = torch.randn(100_000, generator=generator), torch.randn(100_000, generator=generator) * 1e-3
    models, origin = sources(base, delta, delta)
    [row] = kinship(models, origin)
    assert row["euclidean"] == 0.0
    assert row["pcc"] == pytest.approx(1.0, rel=1e-12)


def test_models_that_are_nearly_the_same_have_an_exact_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(1000, generator=generator).double() for _ in range(2))
    models, origin = sources(base, delta, delta + 1e-7)
    exact = torch.dist(models["m0"].tensor("a"), models["m1"].tensor("a")) ** 2
    exact += torch.dist(models["m0"].tensor("b"), models["m1"].tensor("b")) ** 2
    [row] = kinship(models, origin)
    assert row["euclidean"] == pytest.approx(float(exact.sqrt()), rel=1e-12)


def test_all_pairs_in_order_and_only_the_measures_asked_for() -> None:
    models, base = sources(BASE, U, V, U + V)
    rows = kinship(models, base, ["cosine"])
    assert [(row["a"], row["b"]) for row in rows] == [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    assert [list(row) for row in rows] == [["a", "b", "cosine"]] * 3
    assert rows[1]["cosine"] == pytest.approx(1 / math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_million_elements_agree_with_float64(dtype: torch.dtype) -> None:
    """Deltas of correlation 0.5 with a small mean, where sums in float32 are wrong in the third digit."""
    generator = torch.Generator().manual_seed(0)
    base, common, x, y = (torch.randn(10_000_000, generator=generator) for _ in range(4))
    first = (base + 2e-3 * (common + x) + 1e-4).to(dtype)
    second = (base + 2e-3 * (common + y) + 1e-4).to(dtype)
    base = base.to(dtype)
    [row] = kinship({"x": Memory({"w": first}), "y": Memory({"w": second})}, Memory({"w": base}))
    d, e = (first.double() - base.double()).numpy(), (second.double() - base.double()).numpy()
    assert row["pcc"] == pytest.approx(float(np.corrcoef(d, e)[0, 1]), rel=1e-10)
    assert row["cosine"] == pytest.approx(float(d @ e / np.sqrt((d @ d) * (e @ e))), rel=1e-10)
    assert row["euclidean"] == pytest.approx(float(np.linalg.norm(d - e)), rel=1e-10)


def test_every_checkpoint_is_read_once() -> None:
    class Once(Memory):
        reads = 0

        def tensor(self, name: str) -> torch.Tensor:
            self.reads += 1
            return super().tensor(name)

    models, base = sources(BASE, U, V, U + V, U - V)
    counted = {name: Once(source.tensors) for name, source in models.items()}
    kinship(counted, base)
    assert [source.reads for source in counted.values()] == [2, 2, 2, 2]


def test_tied_weights_count_once(tmp_path: Path) -> None:
    embedding, delta = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.ones(6, 4)

    def model(name: str, shift: float, stored: bool) -> Checkpoint:
        weight = embedding + shift * delta
        tensors = {"model.embed_tokens.weight": weight, "model.norm.weight": torch.arange(4.0) * (1 + shift)}
        copies = {"lm_head.weight": weight.clone()} if stored else {}
        return Checkpoint(save_plain(tmp_path / name, {**tensors, **copies}, {"tie_word_embeddings": True}))

    plain = kinship({"x": model("x", 1.0, False), "y": model("y", -0.5, False)}, model("base", 0.0, False))
    mixed = kinship({"x": model("x2", 1.0, True), "y": model("y2", -0.5, False)}, model("base2", 0.0, True))
    assert mixed == plain


def test_integers_are_left_out() -> None:
    models, base = sources(BASE, U, V)
    plain = kinship(models, base)
    for source in (*models.values(), base):
        source.tensors["ids"] = torch.arange(5)
    assert kinship(models, base) == plain


def test_bad_input() -> None:
    models, base = sources(BASE, U, V)
    with pytest.raises(RecipeError, match="unknown measure 'cosin': did you mean 'cosine'"):
        kinship(models, base, ["cosin"])
    with pytest.raises(RecipeError, match="got 1, give two or more"):
        kinship({"m0": models["m0"]}, base)
    models["m1"].tensors["a"] = torch.ones(3)
    models["m1"].tensors["c"] = torch.ones(3)
    with pytest.raises(MismatchError, match=r"(?s)m1: c \[3\] is extra.*m1: a is \[3\] instead of \[2, 2\]"):
        kinship(models, base)
    models, base = sources(BASE, U, V)
    models["m1"].tensors["b"][1] = float("nan")
    with pytest.raises(CheckpointError, match="m1: tensor b holds 1 NaN"):
        kinship(models, base)


def test_the_table_says_all_about_its_measures() -> None:
    assert list(WEIGHTS) == [
        *("pcc", "cosine", "euclidean", "relative_euclidean", "norm_ratio"),
        *("sign_agreement", "sign_excess", "top_agreement", "subspace_overlap"),
    ]
    assert list(MEASURES)[: len(WEIGHTS)] == list(WEIGHTS)
    for name, measure in MEASURES.items():
        assert measure.name == name and measure.formula and measure.source and measure.cost
    assert [name for name, row in WEIGHTS.items() if row.direction == "lower is closer"] == [
        "euclidean",
        "relative_euclidean",
    ]
    assert {row.needs for row in WEIGHTS.values()} == {"weights"}
