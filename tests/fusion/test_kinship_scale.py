"""Long sums, and checkpoints that are read piece by piece."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.checkpoint import Checkpoint
from fusion.errors import CheckpointError
from fusion.kinship import moments
from fusion.kinship.weights import WEIGHTS, kinship
from tests.fusion.models import Memory, save_plain


class Repeated(Memory):
    """One tensor under many names: as many elements as a large model, of which all sums are known."""

    def __init__(self, tensor: torch.Tensor, times: int) -> None:
        super().__init__({f"{i:03}": tensor for i in range(times)})


def test_three_hundred_million_elements() -> None:
    """Deltas of correlation .5 and length 2e-3 in float32 weights, of which float32 sums are off by several percent."""
    generator = torch.Generator().manual_seed(0)
    base, common, x, y = (torch.randn(3_000_000, generator=generator) for _ in range(4))
    first, second = (0.02 * base + 2e-3 * 0.5**0.5 * (common + own) for own in (x, y))
    base = 0.02 * base
    times = 100
    models = {"x": Repeated(first, times), "y": Repeated(second, times)}
    [row] = kinship(models, Repeated(base, times))
    d, e = ((tensor.double() - base.double()).numpy() for tensor in (first, second))
    assert row["pcc"] == pytest.approx(float(np.corrcoef(d, e)[0, 1]), rel=1e-10)
    assert row["cosine"] == pytest.approx(float(d @ e / np.sqrt((d @ d) * (e @ e))), rel=1e-10)
    assert row["euclidean"] == pytest.approx(float(np.linalg.norm(d - e)) * times**0.5, rel=1e-10)
    assert row["pcc"] == pytest.approx(0.5, abs=5 * 0.75 / 3_000_000**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_read_in_pieces_are_the_models_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Also where pieces end within blocks, and the tensors' bytes begin anywhere in the file."""
    monkeypatch.setattr(moments, "PIECE", 10_000)
    generator = torch.Generator().manual_seed(1)

    def tensors() -> dict[str, torch.Tensor]:
        return {
            "a.weight": torch.randn(7, generator=generator).to(dtype),
            "b.weight": torch.randn(230, 101, generator=generator).to(dtype),
            "c": torch.randn((), generator=generator).to(dtype),
            "d": torch.empty(0, dtype=dtype),
        }

    plain = {name: tensors() for name in ("base", "x", "y", "z")}
    stored = {name: Checkpoint(save_plain(tmp_path / name, one)) for name, one in plain.items()}
    memory = {name: Memory(one) for name, one in plain.items()}
    for measures in (("pcc", "cosine", "euclidean"), tuple(WEIGHTS)):
        expected = kinship({name: memory[name] for name in "xyz"}, memory["base"], measures)
        assert kinship({name: stored[name] for name in "xyz"}, stored["base"], measures) == expected


def test_pieces_are_read_and_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = {
        name: Checkpoint(save_plain(tmp_path / name, {"w": torch.randn(10, 10)})) for name in ("base", "x", "y")
    }
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: pytest.fail(f"{name} was mapped"))
    kinship({name: checkpoints[name] for name in "xy"}, checkpoints["base"], ["cosine", "sign_agreement"])


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_plain(tmp_path / "x", {"w": torch.ones(1000)}))
    file = tmp_path / "x" / "model.safetensors"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 400)
    assert [len(block) for block in checkpoint.blocks("w", 0, 900, 400)] == [400, 400, 100]
    with pytest.raises(CheckpointError, match="ended within w, though it was whole when it was opened"):
        list(checkpoint.blocks("w", 0, 1000, 400))
