"""LoRA pairs by their factors, against the products written out in float64."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.adapter import Adapted
from fusion.checkpoint import Checkpoint
from fusion.errors import CheckpointError
from fusion.kinship import lowrank, subspaces
from fusion.kinship.weights import kinship
from tests.fusion.models import save_plain
from tests.fusion.plain_kinship import plain
from tests.fusion.test_adapter import DOWN, EMBED, PREFIX, Q, base_tensors, lora, normal, product, save_adapter

GRAM = ("pcc", "cosine", "euclidean", "relative_euclidean", "norm_ratio")


def flat(base: dict[str, Tensor], changes: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([changes.get(name, torch.zeros(base[name].shape)).double().reshape(-1) for name in base]).numpy()


def folder(tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Path]:
    base = base_tensors(dtype)
    return base, save_plain(tmp_path / "base", base, {"model_type": "toy", "tie_word_embeddings": False})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_of_adapters_are_as_the_dense_answer_in_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    """Of other ranks, scales and modules, one of them an embedding, which peft stores turned."""
    base, path = folder(tmp_path, dtype)
    x = {**lora(Q, 6, 4), **lora(DOWN, 4, 4, seed=60)}
    y = lora(Q, 6, 4, rank=3, seed=70)
    a, b = normal(2, 10, seed=80), normal(4, 2, seed=81)
    z = {**lora(Q, 6, 4, seed=90), f"{PREFIX}model.embed_tokens.lora_embedding_A": a,
         f"{PREFIX}model.embed_tokens.lora_embedding_B": b}  # fmt: skip
    deltas = {
        "x": {f"{Q}.weight": 4 * product(x, Q), f"{DOWN}.weight": 4 * product(x, DOWN)},
        "y": {f"{Q}.weight": 2 * product(y, Q)},
        "z": {f"{Q}.weight": 4 * product(z, Q), EMBED: 4 * (b.double() @ a.double()).T},
    }
    folders = {
        "x": save_adapter(tmp_path / "x", x),
        "y": save_adapter(tmp_path / "y", y, r=3, lora_alpha=6),
        "z": save_adapter(tmp_path / "z", z),
    }
    models = {name: Adapted(Checkpoint(path), adapter) for name, adapter in folders.items()}
    rows = kinship(models, Checkpoint(path), GRAM)
    for row, (one, other) in zip(rows, combinations(deltas, 2), strict=True):
        wanted = plain(flat(base, deltas[one]), flat(base, deltas[other]))
        assert {measure: row[measure] for measure in GRAM} == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_no_delta_is_made_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = folder(tmp_path)
    models = {
        name: Adapted(Checkpoint(path), save_adapter(tmp_path / name, lora(Q, 6, 4, seed=seed)))
        for name, seed in (("x", 1), ("y", 5))
    }
    monkeypatch.setattr(Adapted, "tensor", lambda self, name: pytest.fail(f"{name} was made"))
    kinship(models, Checkpoint(path))


def test_the_entries_of_products_are_exact_where_they_are_needed(tmp_path: Path) -> None:
    """A step of 1e-9 is lost in float32 weights near 1, and with it its sign; not in the factors."""
    _, path = folder(tmp_path)
    tensors = {"x": lora(Q, 6, 4, seed=1), "y": lora(Q, 6, 4, seed=5)}
    models = {
        name: Adapted(Checkpoint(path), save_adapter(tmp_path / name, one, lora_alpha=2e-9))
        for name, one in tensors.items()
    }
    [row] = kinship(models, Checkpoint(path), ["sign_agreement", "cosine", "subspace_overlap"])
    x, y = (product(one, Q) for one in tensors.values())
    assert row["sign_agreement"] == float((x.sign() == y.sign()).double().mean())
    assert row["cosine"] == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-10)
    overlap = subspaces.overlaps(torch.stack([x.float(), y.float()]))[0]
    weight = float(x.norm() * y.norm())
    assert row["subspace_overlap"] == pytest.approx(float(overlap[0, 1]) / weight, rel=1e-4)


def test_what_adapters_have_in_common_is_by_their_factors_too(tmp_path: Path) -> None:
    """One of them replaces the vocabulary's tables by longer ones."""
    base, path = folder(tmp_path)
    longer = {f"{PREFIX}{name}": torch.cat([base[name], normal(3, 4)]) for name in (EMBED, "lm_head.weight")}
    tensors = {"x": {**lora(Q, 6, 4, seed=1), **longer}, "y": lora(Q, 6, 4, seed=5)}
    models = {name: Adapted(Checkpoint(path), save_adapter(tmp_path / name, one)) for name, one in tensors.items()}
    [row] = kinship(models, Checkpoint(path), GRAM, common=True)
    wanted = plain(*(flat(base, {f"{Q}.weight": 4 * product(one, Q)}) for one in tensors.values()))
    assert {measure: row[measure] for measure in GRAM} == pytest.approx(wanted, rel=1e-10)
    assert row["left_out"] == {"tensors": 0, "rows": 3}


def test_adapters_beside_full_models_and_changes_that_are_no_products(tmp_path: Path) -> None:
    base, path = folder(tmp_path)
    bias = {**lora(Q, 6, 4), f"{PREFIX}{Q}.lora_B.bias": normal(6, seed=3)}
    full = {name: tensor + 0.1 * normal(*tensor.shape, seed=i) for i, (name, tensor) in enumerate(base.items())}
    models = {
        "adapter": Adapted(Checkpoint(path), save_adapter(tmp_path / "bias", bias)),
        "full": Checkpoint(save_plain(tmp_path / "full", full, {"tie_word_embeddings": False})),
    }
    [row] = kinship(models, Checkpoint(path), GRAM)
    added = {f"{Q}.weight": 4 * product(bias, Q), f"{Q}.bias": 4 * bias[f"{PREFIX}{Q}.lora_B.bias"].double()}
    other = {name: full[name].double() - base[name].double() for name in base}
    wanted = plain(flat(base, added), flat(base, other))
    # The adapter's sum with its base is a float32 model here.
    assert {measure: row[measure] for measure in GRAM} == pytest.approx(wanted, rel=1e-6)


def test_an_adapter_on_another_base_is_compared_as_a_whole(tmp_path: Path) -> None:
    base, path = folder(tmp_path)
    moved = {name: tensor + 0.5 for name, tensor in base.items()}
    elsewhere = save_plain(tmp_path / "other", moved, {"tie_word_embeddings": False})
    adapter = save_adapter(tmp_path / "x", lora(Q, 6, 4))
    models = {"here": Adapted(Checkpoint(path), adapter), "there": Adapted(Checkpoint(elsewhere), adapter)}
    [row] = kinship(models, Checkpoint(path))
    count = sum(tensor.numel() for tensor in base.values())
    assert row["euclidean"] == pytest.approx(0.5 * count**0.5, rel=1e-6)


def test_nearly_equal_factors_keep_their_distance() -> None:
    left, right = normal(50, 3).double(), normal(3, 40, seed=2).double()
    x, y = lowrank.LowRank(left, right), lowrank.LowRank(left + 1e-9 * normal(50, 3, seed=4).double(), right)
    exact = float(((y.left - x.left) @ right).square().sum())
    assert float(x.square_distance(y)) == pytest.approx(exact, rel=1e-6)
    assert float(x.square_distance(x)) == 0.0


def test_a_nan_in_an_adapter_is_named(tmp_path: Path) -> None:
    _, path = folder(tmp_path)
    broken = lora(Q, 6, 4)
    broken[f"{PREFIX}{Q}.lora_B.weight"][0, 0] = float("nan")
    models = {
        "sound": Adapted(Checkpoint(path), save_adapter(tmp_path / "sound", lora(Q, 6, 4, seed=8))),
        "broken": Adapted(Checkpoint(path), save_adapter(tmp_path / "broken", broken)),
    }
    with pytest.raises(CheckpointError, match=f"broken: tensor {Q}.weight holds 4 NaN"):
        kinship(models, Checkpoint(path))
