from pathlib import Path

import pytest
import torch

from fusion.errors import CheckpointError, LineageError
from fusion.lineage import KIN_COSINE, PIECE, PIECES, check_kin, lineage, nearest, to_json
from fusion.merge import check_lineage, write
from fusion.modelref import Delta, Folder
from fusion.recipe import Recipe
from tests.fusion.models import Memory, save_llama, tiny_llama


def random(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("_", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(tensors: dict[str, torch.Tensor], seed: int, by: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: t + by * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}


SHAPES = {"h_0_w": (40, 50), "h_1_w": (40, 50), "h_0_norm": (50,), "embed_w": (90, 50)}


def test_the_numbers_are_those_of_the_definition() -> None:
    base = random(0, **SHAPES)
    model = moved(base, 1, 0.3)
    found = lineage(Memory(model), Memory(base))
    matrices = [name for name, tensor in base.items() if tensor.ndim > 1]
    cosines = sorted(
        float(torch.nn.functional.cosine_similarity(model[n].double().ravel(), base[n].double().ravel(), dim=0))
        for n in matrices
    )
    assert found.cosine == pytest.approx(cosines[1], abs=1e-12)
    gap = sum(float((model[n] - base[n]).double().square().sum()) for n in matrices)
    size = sum(float(base[n].double().square().sum()) for n in matrices)
    assert found.distance == pytest.approx((gap / size) ** 0.5, rel=1e-6)
    assert len(found.layers) == 2 and found.kin and found.same == len(base)


def test_strangers_have_no_cosine_to_speak_of() -> None:
    found = lineage(Memory(random(1, **SHAPES)), Memory(random(0, **SHAPES)))
    # The standard deviation of a cosine of n independent normals is 1 / sqrt(n); the smallest matrix has 2,000.
    assert found.cosine is not None and abs(found.cosine) < 5 / 2000**0.5
    assert found.distance == pytest.approx(2**0.5, rel=0.1)
    assert not found.kin


def test_a_large_matrix_is_known_from_its_sample() -> None:
    big = {"w": torch.randn(1, PIECES * PIECE * 4, generator=torch.Generator().manual_seed(0))}
    found = lineage(Memory(moved(big, 1, 1.0)), Memory(big))
    assert found.cosine == pytest.approx(0.5**0.5, abs=5 / (PIECES * PIECE) ** 0.5)
    assert found.distance == pytest.approx(1.0, rel=0.05)


def test_the_same_weights_and_weights_of_zero_are_kin() -> None:
    base = random(0, **SHAPES)
    assert lineage(Memory(base), Memory(base)).cosine == pytest.approx(1.0)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    assert lineage(Memory(zeros), Memory(zeros)).kin


def test_other_shapes_are_counted_and_not_compared() -> None:
    base = random(0, **SHAPES)
    other = {**base, "embed.w": torch.randn(91, 50), "more": torch.ones(2, 2)}
    del other["h.0.norm"]
    found = lineage(Memory(other), Memory(base))
    assert (found.same, found.reshaped, found.missing, found.extra) == (2, 1, 1, 1)
    assert found.kin, "a resized vocabulary does not make a stranger"
    assert "1 tensors of another shape" in found.words()


def test_another_architecture_is_no_kin() -> None:
    found = lineage(Memory(random(0, x_0_q=(4, 5))), Memory(random(0, h_0_w=(4, 5))))
    assert found.cosine is None and not found.kin and "missing" in found.words()


def test_a_nan_is_named() -> None:
    base = random(0, **SHAPES)
    broken = {**base, "h.1.w": base["h.1.w"].clone().index_fill_(0, torch.tensor([3]), float("nan"))}
    with pytest.raises(CheckpointError, match=r"h\.1\.w holds 50 NaN"):
        lineage(Memory(broken), Memory(base))


def test_all_strangers_are_named_with_their_numbers() -> None:
    base = random(0, **SHAPES)
    models = {"base": base, "kin": moved(base, 1, 0.1), "far": random(2, **SHAPES), "other": random(3, **SHAPES)}
    with pytest.raises(LineageError) as caught:
        check_kin({name: Memory(tensors) for name, tensors in models.items()}, "base")
    text = str(caught.value)
    assert "far: cosine" in text and "other: cosine" in text and "kin: cosine" not in text
    assert f"at least {KIN_COSINE}" in text and "allow_unrelated" in text


def test_the_nearest_base_is_told() -> None:
    first, second = random(0, **SHAPES), random(1, **SHAPES)
    model = Memory(moved(second, 2, 0.2))
    found = {"first": lineage(model, Memory(first)), "second": lineage(model, Memory(second))}
    assert nearest(found) == "second"
    assert nearest({"first": found["first"]}) is None
    assert to_json(found)["second"]["kin"] is True


def test_a_merge_of_strangers_stops_unless_it_is_allowed(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "stranger")):
        save_llama(tmp_path / name, tiny_llama(seed, hidden_size=64, intermediate_size=96))
    parents = tuple((name, Folder(str(tmp_path / name))) for name in ("base", "stranger"))
    recipe = Recipe("task_arithmetic", ("stranger",), "base", None, {})
    with pytest.raises(LineageError, match="stranger: cosine"):
        write(Delta(recipe, parents), tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()
    allowed = Recipe("task_arithmetic", ("stranger",), "base", None, {}, allow_unrelated=True)
    assert check_lineage(Delta(allowed, parents)) == {}
    assert write(Delta(allowed, parents), tmp_path / "out", check=True)["tensors"] > 0
