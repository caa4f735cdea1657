"""The measures beside the paper's three, and all of them by layer and kind, against plain float64 and known answers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.kinship import moments, subspaces
from fusion.kinship.modules import kind_of
from fusion.kinship.moments import find_moments, nothing
from fusion.kinship.weights import WEIGHTS, kinship, summary
from fusion.methods.trim import kept_count
from tests.fusion.models import Memory
from tests.fusion.plain_kinship import plain, plain_signs

SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.input_layernorm.weight": (16,),
    "model.layers.1.mlp.up_proj.weight": (24, 16),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (50, 16),
}


def family(members: int, seed: int = 0, same: float = 0.5) -> tuple[dict[str, Memory], Memory]:
    """Models whose task vectors share a part: in float64, so that a plain version has the same deltas."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}

    base, common = noise(), noise()
    models = {}
    for member in range(members):
        own = noise()
        models[f"m{member}"] = Memory(
            {name: base[name] + 0.01 * (member + 1) * (same * common[name] + own[name]) for name in SHAPES}
        )
    return models, Memory(base)


def delta(model: Memory, base: Memory, names: list[str]) -> np.ndarray:
    return torch.cat([(model.tensors[name] - base.tensors[name]).reshape(-1) for name in names]).numpy()


CHEAP = [name for name in WEIGHTS if name not in ("top_agreement", "subspace_overlap")]


def test_all_pairs_agree_with_the_plain_versions() -> None:
    models, base = family(3)
    for row in kinship(models, base, CHEAP):
        x, y = (delta(models[row[side]], base, list(SHAPES)) for side in "ab")
        for measure, value in {**plain(x, y), **plain_signs(x, y)}.items():
            assert row[measure] == pytest.approx(value, rel=1e-12), measure


def test_layers_and_kinds_are_those_tensors_by_themselves() -> None:
    models, base = family(2)
    [row] = kinship(models, base, CHEAP, by=["layer", "kind"])
    groups = {
        "layers": {str(i): [name for name in SHAPES if f"layers.{i}." in name] for i in range(2)},
        "kinds": {
            "attention": [name for name in SHAPES if "attn" in name],
            "embedding": ["model.embed_tokens.weight"],
            "head": ["lm_head.weight"],
            "mlp": [name for name in SHAPES if "mlp" in name],
            "norm": [name for name in SHAPES if "norm" in name],
        },
    }
    for key, parts in groups.items():
        assert sorted(row[key]) == sorted(parts)
        for part, names in parts.items():
            x, y = (delta(model, base, names) for model in models.values())
            expected = {**plain(x, y), **plain_signs(x, y)}
            assert row[key][part] == {measure: pytest.approx(expected[measure], rel=1e-10) for measure in CHEAP}


def test_the_parts_sum_up_to_the_whole() -> None:
    models, base = family(3)
    found = find_moments(models, base, ["signs", "top", "subspaces"])
    whole = sum(found.values(), start=nothing(3))
    assert whole.count == sum(math.prod(shape) for shape in SHAPES.values())
    deltas = np.stack([delta(model, base, list(SHAPES)) for model in models.values()])
    torch.testing.assert_close(whole.gram, torch.from_numpy(deltas @ deltas.T), rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.sums, torch.from_numpy(deltas.sum(1)), rtol=1e-9, atol=1e-12)
    [row] = kinship({"m0": models["m0"], "m1": models["m1"]}, base, ["euclidean"], by=["layer"])
    inside = sum(part["euclidean"] ** 2 for part in row["layers"].values())
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    rest = np.linalg.norm(delta(models["m0"], base, outside) - delta(models["m1"], base, outside))
    assert row["euclidean"] ** 2 == pytest.approx(inside + rest**2, rel=1e-12)


@pytest.mark.parametrize("rho", [0.5, -0.3])
def test_signs_of_normal_deltas_agree_as_their_correlation_says(rho: float) -> None:
    """P(same sign) = 1/2 + asin(rho)/pi of normal variables; within five standard errors."""
    count = 400_000
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2))
    zero = torch.zeros(count, dtype=torch.float64)
    models = {"x": Memory({"w": x}), "y": Memory({"w": rho * x + math.sqrt(1 - rho**2) * y})}
    [row] = kinship(models, Memory({"w": zero}), ["sign_agreement", "sign_excess", "pcc", "cosine"])
    expected = 0.5 + math.asin(rho) / math.pi
    error = 5 * math.sqrt(expected * (1 - expected) / count)
    assert row["sign_agreement"] == pytest.approx(expected, abs=error)
    assert row["sign_excess"] == pytest.approx(expected - 0.5, abs=2 * error)
    assert row["pcc"] == pytest.approx(rho, abs=5 * (1 - rho**2) / math.sqrt(count))
    assert row["cosine"] == pytest.approx(row["pcc"], abs=1e-4)


def test_signs_count_only_where_both_have_moved() -> None:
    base = torch.zeros(6)
    x, y = torch.tensor([1.0, -1.0, 0.0, 2.0, -3.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, 5.0])
    [row] = kinship({"x": Memory({"w": x}), "y": Memory({"w": y})}, Memory({"w": base}), ["sign_agreement"])
    assert row["sign_agreement"] == 3 / 4
    apart = {"x": Memory({"w": x * torch.tensor([1.0, 0, 0, 0, 0, 0])}), "y": Memory({"w": y * (x == 0)})}
    [row] = kinship(apart, Memory({"w": base}), ["sign_agreement", "sign_excess", "cosine"])
    assert (row["sign_agreement"], row["sign_excess"], row["cosine"]) == (None, None, 0.0)
    assert row["status"] == "nothing to compare by sign_agreement, sign_excess"


def test_the_largest_entries_are_each_tensors_own() -> None:
    models, base = family(2)
    [row] = kinship(models, base, ["top_agreement"])
    same = shared = 0
    for name in SHAPES:
        tops = []
        for model in models.values():
            d = (model.tensors[name] - base.tensors[name]).float().reshape(-1).numpy()
            order = np.argsort(-np.abs(d), kind="stable")[: kept_count(d.size, 0.2)]
            tops.append({int(i): d[i] > 0 for i in order})
        both = tops[0].keys() & tops[1].keys()
        shared += len(both)
        same += sum(tops[0][i] == tops[1][i] for i in both)
    assert row["top_agreement"] == same / shared


def test_of_equal_magnitudes_the_first_are_taken() -> None:
    x, y = torch.ones(10), torch.tensor([1.0, -1.0, *[1.0] * 8])
    [row] = kinship({"x": Memory({"w": x}), "y": Memory({"w": y})}, Memory({"w": torch.zeros(10)}), ["top_agreement"])
    assert row["top_agreement"] == 1 / 2
    # Also where a tensor is gone through in several blocks.
    x, y = torch.ones(200_000), torch.ones(200_000)
    y[40_000:] = -1
    models = {"x": Memory({"w": x}), "y": Memory({"w": y})}
    [row] = kinship(models, Memory({"w": torch.zeros(200_000)}), ["top_agreement"])
    assert row["top_agreement"] == 1.0


def test_pieces_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "PIECE", 10_000)
    generator = torch.Generator().manual_seed(3)
    tensors = [{"a": torch.randn(25_001, generator=generator), "b.weight": torch.randn(64, 300, generator=generator)}
               for _ in range(4)]  # fmt: skip
    base, *models = (Memory(one) for one in tensors)
    named = {str(i): model for i, model in enumerate(models)}
    extras = ["signs", "top", "subspaces"]
    one, two = (find_moments(named, base, extras, threads)[None, "other"] for threads in (1, 2))
    for part in ("sums", "gram", "squares", "signs", "top", "subspaces"):
        assert torch.equal(getattr(one, part), getattr(two, part)), part
    wide = np.stack([np.concatenate([(m.tensors[k].double() - base.tensors[k].double()).reshape(-1).numpy()
                                     for k in tensors[0]]) for m in models])  # fmt: skip
    np.testing.assert_allclose(one.gram.numpy(), wide @ wide.T, rtol=1e-12)
    assert one.count == 25_001 + 64 * 300


# --------------------------------------------------------------------------------------------------------- subspaces


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def overlap_of(x: Tensor, y: Tensor) -> float:
    part, weight = subspaces.overlaps(torch.stack([x, y]))
    return float(part[0, 1] / weight[0, 1])


def test_half_of_a_subspace_is_shared() -> None:
    """Two of four directions are the same on the left, all on the right; all four weigh alike."""
    left, right = torch.linalg.qr(normal(40, 40, seed=0)).Q, torch.linalg.qr(normal(30, 30, seed=1)).Q
    x = left[:, :4] @ right[:4]
    y = left[:, 2:6] @ right[:4]
    excess = (0.5 - 4 / 40) / (1 - 4 / 40)
    assert overlap_of(x, y) == pytest.approx((excess + 1) / 2, abs=1e-5)
    assert overlap_of(x, x) == pytest.approx(1.0, abs=1e-5)
    assert overlap_of(x, -3 * x) == pytest.approx(1.0, abs=1e-5)


def test_the_rank_of_the_lower_one_counts() -> None:
    left, right = torch.linalg.qr(normal(40, 40, seed=0)).Q, torch.linalg.qr(normal(30, 30, seed=1)).Q
    x = 5 * left[:, :1] @ right[:1] + left[:, 1:9] @ right[1:9]
    assert overlap_of(x, left[:, :1] @ right[:1]) == pytest.approx(1.0, abs=1e-5)
    assert subspaces.overlaps(torch.stack([x, 0 * x]))[:, 0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(64, 96), (600, 500)])
def test_unrelated_noise_overlaps_by_chance_only(shape: tuple[int, int]) -> None:
    """The mean over pairs is 0; the standard error of phi is about sqrt(2) / d."""
    matrices = torch.stack([normal(*shape, seed=seed) for seed in range(6)])
    part, weight = subspaces.overlaps(matrices)
    values = (part / weight)[*torch.triu_indices(6, 6, 1)]
    error = math.sqrt(2) * (1 / shape[0] + 1 / shape[1]) / 2 / math.sqrt(len(values))
    assert abs(float(values.mean())) < 5 * error


def test_wide_matrices_have_their_leading_vectors_too() -> None:
    """A block Krylov basis finds what a whole decomposition does, where there is something to be found."""
    spectrum = torch.cat([torch.linspace(3, 2, 16), 0.9 ** torch.arange(400.0)])
    left, right = torch.linalg.qr(normal(520, 416, seed=2)).Q, torch.linalg.qr(normal(430, 416, seed=3)).Q
    matrix = (left * spectrum) @ right.T
    u, v = subspaces.leading(matrix, 16)
    assert float((u.T @ left[:, :16]).square().sum()) == pytest.approx(16, abs=1e-3)
    assert float((v.T @ right[:, :16]).square().sum()) == pytest.approx(16, abs=1e-3)
    assert torch.allclose(u.T @ u, torch.eye(16), atol=1e-5)


def test_matrices_weigh_as_in_the_cosine_and_tables_not_at_all() -> None:
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    x, y = normal(32, 32, seed=5), normal(32, 32, seed=6)
    zero = torch.zeros(32, 32)
    base = Memory({**dict.fromkeys(names, zero), "model.embed_tokens.weight": zero})
    models = {
        "a": Memory({names[0]: x, names[1]: 2 * y, "model.embed_tokens.weight": x}),
        "b": Memory({names[0]: 3 * x, names[1]: x, "model.embed_tokens.weight": y}),
    }
    [row] = kinship(models, base, ["subspace_overlap"], by=["kind"])
    first, second = 3 * float(x.norm()) ** 2, 2 * float(y.norm() * x.norm())
    expected = (first + second * overlap_of(y, x)) / (first + second)
    assert row["subspace_overlap"] == pytest.approx(expected, abs=1e-5)
    assert row["kinds"]["embedding"] == {"subspace_overlap": None}


# ------------------------------------------------------------------------------------------------- statuses and sums


def test_a_model_that_equals_the_base_has_a_status_by_any_measure() -> None:
    models, base = family(1)
    [row] = kinship({**models, "same": Memory(base.tensors)}, base, list(WEIGHTS))
    assert row["status"] == "'same' equals the base: its task vector is zero"
    assert row["norm_ratio"] == 0.0
    assert [measure for measure in WEIGHTS if row[measure] is None] == [
        *("pcc", "cosine", "relative_euclidean", "sign_agreement", "sign_excess", "top_agreement", "subspace_overlap"),
    ]
    [row] = kinship({**models, "same": Memory(base.tensors)}, base, ["euclidean"])
    assert "equals the base" in row["status"]


def test_one_model_under_two_names_is_as_close_as_can_be() -> None:
    models, base = family(1)
    [row] = kinship({"x": models["m0"], "y": models["m0"]}, base, list(WEIGHTS))
    expected = {"euclidean": 0.0, "relative_euclidean": 0.0, "norm_ratio": 1.0, "sign_agreement": 1.0,
                "top_agreement": 1.0, "cosine": pytest.approx(1.0, rel=1e-14),
                "subspace_overlap": pytest.approx(1.0, abs=1e-5)}  # fmt: skip
    assert {measure: row[measure] for measure in expected} == expected
    assert "status" not in row


def test_a_summary_is_over_all_pairs_or_is_not() -> None:
    rows = [
        {"a": "x", "b": "y", "pcc": 0.5, "cosine": 0.25, "layers": {}},
        {"a": "x", "b": "z", "pcc": None, "cosine": 0.75, "status": "why"},
    ]
    assert summary(rows) == {"cosine": {"mean": 0.5, "min": 0.25, "max": 0.75}}
    assert summary([]) == {}


@pytest.mark.parametrize(
    ("name", "in_layer", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True, "attention"),
        ("model.layers.0.self_attn.q_norm.weight", True, "norm"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", True, "mlp"),
        ("gpt_neox.layers.0.attention.dense.bias", True, "attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", True, "mlp"),
        ("gpt_neox.embed_in.weight", False, "embedding"),
        ("embed_out.weight", False, "head"),
        ("transformer.h.0.ln_1.bias", True, "norm"),
        ("transformer.ln_f.weight", False, "norm"),
        ("transformer.wte.weight", False, "embedding"),
        ("transformer.wpe.weight", False, "embedding"),
        ("model.decoder.layers.1.fc1.weight", True, "mlp"),
        ("model.decoder.layers.1.self_attn_layer_norm.weight", True, "norm"),
        ("transformer.blocks.0.ffn.down_proj.weight", True, "mlp"),
        ("model.layers.0.attention_norm.weight", True, "norm"),
        ("model.layers.0.feed_forward.w2.weight", True, "mlp"),
        ("model.tok_embeddings.weight", False, "embedding"),
        ("lm_head.bias", False, "head"),
        ("backbone.layers.0.mixer.in_proj.weight", True, "other"),
        ("w", False, "other"),
    ],
)
def test_kinds_of_modules_by_name(name: str, in_layer: bool, kind: str) -> None:
    assert kind_of(name, in_layer) == kind
